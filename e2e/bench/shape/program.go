package shape

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/shaping"
	"github.com/selvage-net/selvage/shaping/tc"
)

// ProgramResult is how long the kernel takes to be told.
type ProgramResult struct {
	// Pods is how many are shaped in both directions before.
	Pods int `json:"pods"`
	// New is for one pod more, in both directions: to read what there is, to
	// compare, and all Steps. In milliseconds.
	New   []float64 `json:"new"`
	Steps int       `json:"steps"`
	// Change is for another rate in one direction where it is known what there is,
	// as the agent does: to compare, and the step. Do is the step alone. Read is
	// what it takes to read first, as after a change that somebody else made. All
	// are in microseconds.
	Change []float64 `json:"change"`
	Do     []float64 `json:"do"`
	Read   []float64 `json:"read"`
}

// Program measures n times how long a new pod takes, and ten times as often a new
// rate, on a node with pods that are shaped in both directions.
func Program(pods, n int) (r ProgramResult, err error) {
	r.Pods = pods
	c, err := newCrowd()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	for i := range pods + n {
		s, err := c.add(i)
		if err != nil {
			return r, fmt.Errorf("pod %d: %w", i, err)
		}
		start := time.Now()
		steps, err := s.apply(both(10_000_000))
		took := time.Since(start)
		if err != nil {
			return r, fmt.Errorf("pod %d: %w", i, err)
		}
		if i >= pods {
			r.New = append(r.New, float64(took.Nanoseconds())/1e6)
			r.Steps = steps
		}
	}
	for i := range 10 * n {
		if err := r.change(c.pods[i%pods], i); err != nil {
			return r, err
		}
	}
	return r, nil
}

// change gives a pod another rate, now in the one direction and now in the other.
func (r *ProgramResult) change(s *selvage, i int) error {
	limits := both(10_000_000)
	limits[i%2].Rate = shaping.Rate(20_000_000 + 1000*i)
	p := shaping.NewPlan(s.pod, limits, s.at, s.options)
	start := time.Now()
	state, err := s.conn.Read(p)
	if err != nil {
		return err
	}
	read := time.Now()
	steps, _ := shaping.Diff(p, state, false)
	compared := time.Now()
	for _, step := range steps {
		if err := s.conn.Do(p, step); err != nil {
			return err
		}
	}
	end := time.Now()
	// A pod that had its turn has its other direction put back as well.
	if len(steps) == 0 || len(steps) > 2 {
		return fmt.Errorf("a new rate takes %d steps", len(steps))
	}
	if len(steps) == 1 {
		r.Read = append(r.Read, micros(read.Sub(start)))
		r.Change = append(r.Change, micros(end.Sub(read)))
		r.Do = append(r.Do, micros(end.Sub(compared)))
	}
	return nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// crowd is a node with many pods, whose ends of their veths are all in one network
// namespace: nobody looks there.
type crowd struct {
	node, other *bench.Namespace
	netlink     *netlink.Handle
	conn        *tc.Conn
	pods        []*selvage
}

func newCrowd() (*crowd, error) {
	var c crowd
	var err error
	if c.node, err = bench.NewNamespace(); err != nil {
		return nil, err
	}
	if c.other, err = bench.NewNamespace(); err != nil {
		return nil, errors.Join(err, c.close())
	}
	if c.netlink, err = c.node.Netlink(); err != nil {
		return nil, errors.Join(err, c.close())
	}
	if c.conn, err = openTC(c.node); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return &c, nil
}

// add adds the veth of a pod.
func (c *crowd) add(i int) (*selvage, error) {
	veth := netlink.NewVeth(netlink.NewLinkAttrs())
	veth.Name, veth.PeerName = fmt.Sprintf("veth%d", i), fmt.Sprintf("eth%d", i)
	veth.Flags, veth.PeerNamespace = veth.Flags|net.FlagUp, netlink.NsFd(c.other.FD())
	if err := c.netlink.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("add a veth: %w", err)
	}
	l, err := c.netlink.LinkByName(veth.Name)
	if err != nil {
		return nil, fmt.Errorf("find a veth: %w", err)
	}
	fqCodel, err := c.conn.HasFQCodel()
	if err != nil {
		return nil, err
	}
	s := &selvage{conn: c.conn, at: interfaceOf(l), pod: podNumber(i), options: shaping.Options{FQCodel: fqCodel}}
	c.pods = append(c.pods, s)
	return s, nil
}

func (c *crowd) close() error {
	var errs []error
	if c.conn != nil {
		errs = append(errs, c.conn.Close())
	}
	if c.netlink != nil {
		c.netlink.Close()
	}
	for _, n := range []*bench.Namespace{c.node, c.other} {
		if n != nil {
			errs = append(errs, n.Close())
		}
	}
	return errors.Join(errs...)
}
