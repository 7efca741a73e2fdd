package shape

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/shaping"
	"github.com/selvage-net/selvage/shaping/tc"
)

// The variants that are compared.
const (
	// Unshaped is a node that holds nobody to anything. It is the baseline of cost.
	Unshaped = "unshaped"
	// Plugin is a node with what the CNI's bandwidth plugin makes of a rate and of
	// the burst that the container runtime gives it.
	Plugin = "bandwidth plugin"
	// Selvage is a node with what the product makes of the rate.
	Selvage = "selvage"
)

// hostVeth is the node's end of the pod's veth in a bench.Triple.
const hostVeth = "pod0"

// limiter holds the pod of a world to the same rate in both directions.
type limiter interface {
	// limit begins anew, with buckets that are full. 0 is no limit.
	limit(shaping.Rate) error
	close() error
}

// newLimiter returns that of a variant for a node.
func newLimiter(variant string, node *bench.Namespace) (limiter, error) {
	if variant == Unshaped {
		return unlimited{}, nil
	}
	h, err := node.Netlink()
	if err != nil {
		return nil, err
	}
	l, err := h.LinkByName(hostVeth)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("find the pod's veth: %w", err)
	}
	if variant == Plugin {
		return &plugin{netlink: h, veth: l}, nil
	}
	h.Close()
	conn, err := openTC(node)
	if err != nil {
		return nil, err
	}
	s := &selvage{conn: conn, at: interfaceOf(l), pod: podNumber(0)}
	if s.options.FQCodel, err = conn.HasFQCodel(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

// openTC opens traffic control in a namespace as an agent does that runs there.
func openTC(ns *bench.Namespace) (conn *tc.Conn, err error) {
	err = ns.Do(func() error {
		conn, err = tc.Open()
		return err
	})
	return conn, err
}

type unlimited struct{}

func (unlimited) limit(shaping.Rate) error { return nil }
func (unlimited) close() error             { return nil }

// selvage is the product's way: plans, their difference to what is there, and its
// steps.
type selvage struct {
	conn    *tc.Conn
	at      shaping.Interface
	pod     shaping.Pod
	options shaping.Options
}

func interfaceOf(l netlink.Link) shaping.Interface {
	const header = 14
	a := l.Attrs()
	return shaping.Interface{Index: a.Index, Name: a.Name, Frame: a.MTU + header}
}

func podNumber(i int) shaping.Pod {
	return shaping.Pod{Key: shaping.Key{Namespace: "bench", Name: fmt.Sprintf("pod-%d", i)}, UID: fmt.Sprintf("uid-%d", i)}
}

// both are limits that are the same in both directions.
func both(r shaping.Rate) shaping.Limits { return shaping.Limits{{Rate: r}, {Rate: r}} }

func (s *selvage) limit(r shaping.Rate) error {
	if _, err := s.conn.Cleanup(); err != nil {
		return err
	}
	_, err := s.apply(both(r))
	return err
}

// apply brings limits into force, and returns how many steps that took.
func (s *selvage) apply(l shaping.Limits) (int, error) {
	p := shaping.NewPlan(s.pod, l, s.at, s.options)
	state, err := s.conn.Read(p)
	if err != nil {
		return 0, err
	}
	steps, refused := shaping.Diff(p, state, false)
	if len(refused) > 0 {
		return 0, fmt.Errorf("%s of %s cannot be shaped: there is %s", refused[0].Direction, s.at.Name, refused[0].Kind)
	}
	for _, step := range steps {
		if err := s.conn.Do(p, step); err != nil {
			return 0, err
		}
	}
	return len(steps), nil
}

func (s *selvage) close() error { return s.conn.Close() }

// HasFQCodel tells whether the kernel has fq_codel, which is then below all filters
// of the product.
func HasFQCodel() (has bool, err error) {
	ns, err := bench.NewNamespace()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	conn, err := openTC(ns)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return conn.HasFQCodel()
}
