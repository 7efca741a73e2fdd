package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nft"
)

// ScratchResult says how long it takes from nothing: objects known, tables
// empty. All durations are in milliseconds, one per repetition.
type ScratchResult struct {
	Shape Shape `json:"shape"`
	// Compile is from the first delta to the change.
	Compile []float64 `json:"compile"`
	// Apply is encoding and committing; Encode is encoding alone, measured
	// once more for itself.
	Apply  []float64 `json:"apply"`
	Encode []float64 `json:"encode"`
	// Total is Compile and Apply.
	Total    []float64 `json:"total"`
	Elements int       `json:"elements"`
	Chains   int       `json:"chains"`
	Messages int       `json:"messages"`
	Batches  int       `json:"batches"`
}

// Scratch measures n times how long the node takes to be programmed from
// nothing, each time in a new network namespace.
func Scratch(s Shape, n int) (ScratchResult, error) {
	r := ScratchResult{Shape: s}
	deltas := Deltas(s.Snapshot())
	for range n {
		if err := r.once(deltas); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *ScratchResult) once(deltas []policy.Delta) (err error) {
	ns, err := NewNamespace()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	conn, err := nft.Open(nft.Options{NetNS: ns.FD()})
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	// What earlier rounds left behind is no cost of this one.
	debug.FreeOSMemory()

	start := time.Now()
	c := policy.NewCompiler(policy.DefaultConfig(Node))
	c.Update(deltas...)
	change := c.Changes()
	compiled := time.Since(start)
	stats, err := conn.Apply(change)
	total := time.Since(start)
	if err != nil {
		return fmt.Errorf("apply %s: %w", r.Shape, err)
	}
	start = time.Now()
	if _, err := nft.Encode(change); err != nil {
		return fmt.Errorf("encode %s: %w", r.Shape, err)
	}
	r.Encode = append(r.Encode, millis(time.Since(start)))
	r.Compile = append(r.Compile, millis(compiled))
	r.Apply = append(r.Apply, millis(total-compiled))
	r.Total = append(r.Total, millis(total))
	r.Elements, r.Chains = Count(change)
	r.Messages, r.Batches = stats.Messages, stats.Batches
	return nil
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// CommitResult says what one remote pod costs that comes and goes.
type CommitResult struct {
	Shape Shape `json:"shape"`
	// Elements are how many elements the tables have before.
	Elements int `json:"elements"`
	// Want is how many sets must hold a pod at the most: as many as hold one of
	// the same labels already. Excess is the greatest difference between
	// that and the elements that an event changed; it should be 0. Messages are
	// the most messages that an event took.
	Want     int `json:"want"`
	Excess   int `json:"excess"`
	Messages int `json:"messages"`
	// Compile, Add and Delete are microseconds: of the compiler for one event,
	// and of encoding and committing one.
	Compile []float64 `json:"compile"`
	Add     []float64 `json:"add"`
	Delete  []float64 `json:"delete"`
	// Again is like Add for a pod that gets the address of one that went: the
	// generation changes as well, lest it inherit flows.
	Again         []float64 `json:"again"`
	AgainMessages int       `json:"againMessages"`
}

// Commit measures n times how long a remote pod takes from the compiler's
// change to the kernel's acknowledgement, on a node with the shape's cluster.
func Commit(s Shape, n int) (r CommitResult, err error) {
	r = CommitResult{Shape: s}
	ns, err := NewNamespace()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	conn, err := nft.Open(nft.Options{NetNS: ns.FD()})
	if err != nil {
		return r, fmt.Errorf("open nftables: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	c := policy.NewCompiler(policy.DefaultConfig(Node))
	c.Update(Deltas(s.Snapshot())...)
	all := c.Changes()
	r.Elements, _ = Count(all)
	if _, err := conn.Apply(all); err != nil {
		return r, fmt.Errorf("apply %s: %w", s, err)
	}
	known := holders(c.Ruleset())
	runtime.GC()
	for i := range n {
		// Always an address that nobody had before.
		pod := s.RemotePod(s.RemotePods + i)
		for _, part := range []struct {
			deleted bool
			times   *[]float64
		}{{false, &r.Add}, {true, &r.Delete}} {
			start := time.Now()
			c.Update(policy.Delta{Object: pod, Deleted: part.deleted})
			change := c.Changes()
			compiled := time.Now()
			stats, err := conn.Apply(change)
			end := time.Now()
			if err != nil {
				return r, fmt.Errorf("apply a pod's change: %w", err)
			}
			r.Compile = append(r.Compile, micros(compiled.Sub(start)))
			*part.times = append(*part.times, micros(end.Sub(compiled)))
			want := held(known, s.sibling(s.RemotePods+i))
			r.Want, r.Excess = max(r.Want, want), max(r.Excess, stats.Elements-want, want-stats.Elements)
			r.Messages = max(r.Messages, stats.Messages)
		}
	}
	pod := s.RemotePod(s.RemotePods)
	for range n / 10 {
		for _, deleted := range []bool{false, true} {
			c.Update(policy.Delta{Object: pod, Deleted: deleted})
			change := c.Changes()
			start := time.Now()
			stats, err := conn.Apply(change)
			if err != nil {
				return r, fmt.Errorf("apply a pod's change: %w", err)
			}
			if !deleted {
				r.Again = append(r.Again, micros(time.Since(start)))
				r.AgainMessages = max(r.AgainMessages, stats.Messages)
			}
		}
	}
	return r, nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// holders tells by address in how many sets and maps it is.
func holders(r *policy.Ruleset) map[netip.Addr]int {
	n := make(map[netip.Addr]int)
	for i := range r.Tables {
		bytes := r.Tables[i].Family.Bits() / 8
		for _, s := range r.Tables[i].Sets {
			if s.Key[0] != policy.TypeAddr || s.Interval {
				continue
			}
			for _, e := range s.Elements {
				a, _ := netip.AddrFromSlice([]byte(e.Key[:bytes]))
				n[a]++
			}
		}
	}
	return n
}

// sibling returns a pod of the cluster that differs from a new remote pod only
// by its name and addresses: both must be in the same sets.
func (s Shape) sibling(remotePod int) *policy.Pod {
	return s.RemotePod(remotePod / s.Peers % s.groups() * s.Peers)
}

// held adds up in how many sets the addresses of a pod are.
func held(n map[netip.Addr]int, p *policy.Pod) int {
	sum := 0
	for _, a := range p.Addrs {
		sum += n[a]
	}
	return sum
}
