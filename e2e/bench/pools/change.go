package pools

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nft"
)

// ChangeResult says what a pool costs that comes, changes and goes.
type ChangeResult struct {
	Cluster Cluster `json:"cluster"`
	// Elements are how many elements the sets that masquerade have before.
	Elements int    `json:"elements"`
	Steps    []Step `json:"steps"`
}

// Step is one change of a pool, with a block of each family, made many times.
type Step struct {
	Name string `json:"name"`
	// Own are how many elements the change is about: the pool's blocks, once in each
	// set that they come into or leave.
	Own int `json:"own"`
	// Elements, Messages and Batches are the most that the change was.
	Elements int `json:"elements"`
	Messages int `json:"messages"`
	Batches  int `json:"batches"`
	// Others are how many elements, chains and sets that have nothing to do with the
	// pool were changed at the most. It should be 0.
	Others int `json:"others"`
	// Compile and Commit are microseconds: from the pool to the change, and from there
	// to the kernel's acknowledgement.
	Compile []float64 `json:"compile"`
	Commit  []float64 `json:"commit"`
}

// Changes measures n times how long a pool takes that is added to a cluster, loses its
// natOutgoing, and goes.
func Changes(cluster Cluster, n int) (r ChangeResult, err error) {
	r = ChangeResult{Cluster: cluster}
	ns, err := bench.NewNamespace()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	conn, err := nft.Open(nft.Options{NetNS: ns.FD()})
	if err != nil {
		return r, fmt.Errorf("open nftables: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	c := cluster.compiler()
	if _, err := conn.Apply(c.Changes()); err != nil {
		return r, fmt.Errorf("apply %s: %w", cluster, err)
	}
	for _, t := range masquerade(c.Ruleset()).Tables {
		for _, s := range t.Sets {
			r.Elements += len(s.Elements)
		}
	}
	runtime.GC()
	silent := *pool(cluster.Pools)
	silent.NATOutgoing = false
	steps := []struct {
		delta policy.Delta
		sets  int // that the blocks come into or leave
	}{
		{policy.Delta{Object: pool(cluster.Pools)}, 2},
		{policy.Delta{Object: &silent}, 1},
		{policy.Delta{Object: &silent, Deleted: true}, 1},
	}
	r.Steps = []Step{{Name: "pool added"}, {Name: "natOutgoing off"}, {Name: "pool deleted"}}
	for range n {
		for i, s := range steps {
			step := &r.Steps[i]
			step.Own = s.sets * len(silent.CIDRs)
			if err := step.measure(conn, c, s.delta); err != nil {
				return r, fmt.Errorf("%s: %w", step.Name, err)
			}
		}
	}
	return r, nil
}

func (s *Step) measure(conn *nft.Conn, c *policy.Compiler, d policy.Delta) error {
	start := time.Now()
	c.Update(d)
	change := c.Changes()
	compiled := time.Now()
	stats, err := conn.Apply(change)
	end := time.Now()
	if err != nil {
		return err
	}
	s.Compile = append(s.Compile, float64(compiled.Sub(start).Nanoseconds())/1e3)
	s.Commit = append(s.Commit, float64(end.Sub(compiled).Nanoseconds())/1e3)
	s.Elements, s.Messages, s.Batches = max(s.Elements, stats.Elements), max(s.Messages, stats.Messages), max(s.Batches, stats.Batches)
	s.Others = max(s.Others, others(change, d.Object.(*policy.Pool)))
	return nil
}

// others counts what a change has that is no block of the pool.
func others(c *policy.Change, p *policy.Pool) int {
	n := 0
	for _, t := range c.Tables {
		n += len(t.AddSets) + len(t.DelSets) + len(t.AddChains) + len(t.SetChains) + len(t.DelChains)
		for _, set := range t.Elements {
			for _, list := range [][]policy.Element{set.Add, set.Del} {
				for _, e := range list {
					if !isBlock(p, e) {
						n++
					}
				}
			}
		}
	}
	return n
}

func isBlock(p *policy.Pool, e policy.Element) bool {
	for _, c := range p.CIDRs {
		if e.Key == policy.AddrKey(c.Addr()) {
			return true
		}
	}
	return false
}
