package bench

import (
	"fmt"
	"runtime"
	"time"

	"github.com/selvage-net/selvage/policy"
)

// Times are the durations of a repeated operation, with what it changed.
type Times struct {
	Name   string    `json:"name"`
	Micros []float64 `json:"micros"`
	// Elements and Chains are the means of how many of a set's or map's
	// elements, and of the chains, one operation adds, deletes or replaces.
	Elements float64 `json:"elements"`
	Chains   float64 `json:"chains"`
}

func (t *Times) add(d time.Duration, c *policy.Change) {
	t.Micros = append(t.Micros, float64(d.Nanoseconds())/1e3)
	n := float64(len(t.Micros))
	elements, chains := Count(c)
	t.Elements += (float64(elements) - t.Elements) / n
	t.Chains += (float64(chains) - t.Chains) / n
}

// Count returns the numbers of elements and of chains that a change touches.
func Count(c *policy.Change) (elements, chains int) {
	for i := range c.Tables {
		t := &c.Tables[i]
		for _, s := range t.AddSets {
			elements += len(s.Elements)
		}
		for _, e := range t.Elements {
			elements += len(e.Add) + len(e.Del)
		}
		chains += len(t.AddChains) + len(t.SetChains) + len(t.DelChains)
	}
	return elements, chains
}

// event is one kind of change of one pod. It is made to pod i and its second
// part takes it back, so that the cluster stays as big as it was.
type event struct {
	names [2]string
	// pair returns the pod's change and what takes it back, for the i-th time.
	pair func(i int) [2]policy.Delta
	// each is how many times less often it is measured: what builds a chain.
	each int
}

func (s Shape) events() []event {
	grow := func(pod func(int) *policy.Pod, from int) func(int) [2]policy.Delta {
		return func(i int) [2]policy.Delta {
			p := pod(from + i)
			return [2]policy.Delta{{Object: p}, {Object: p, Deleted: true}}
		}
	}
	relabel := func(pod func(int) *policy.Pod, n int, key string, value func(int) string) func(int) [2]policy.Delta {
		return func(i int) [2]policy.Delta {
			before := pod(i * 7919 % n)
			after := *before
			after.Labels = with(before.Labels, key, value(i))
			return [2]policy.Delta{{Object: &after}, {Object: before}}
		}
	}
	bounce := func(i int) [2]policy.Delta {
		p := s.LocalPod(i * 7919 % s.LocalPods)
		return [2]policy.Delta{{Object: p, Deleted: true}, {Object: p}}
	}
	local, _ := s.apps()
	return []event{
		{[2]string{"remote pod added", "remote pod deleted"}, grow(s.RemotePod, s.RemotePods), 1},
		{
			[2]string{"remote pod joins another group", "remote pod comes back"},
			relabel(s.RemotePod, s.RemotePods, groupLabel, func(i int) string { return groupName(i % s.groups()) }), 1,
		},
		{
			[2]string{"remote pod's label of no interest", "... and back"},
			relabel(s.RemotePod, s.RemotePods, "version", func(i int) string { return fmt.Sprint("v", i) }), 1,
		},
		{[2]string{"local pod added, signature known", "local pod deleted, signature stays"}, grow(s.LocalPod, s.LocalPods), 1},
		{
			[2]string{"local pod's label of no interest", "... and back"},
			relabel(s.LocalPod, s.LocalPods, "version", func(i int) string { return fmt.Sprint("v", i) }), 1,
		},
		{
			[2]string{"local pod moves to another app", "local pod moves back"},
			relabel(s.LocalPod, s.LocalPods, appLabel, func(i int) string { return appName(i % local) }), 1,
		},
		{[2]string{"last pod of its signature deleted", "local pod added, signature new"}, bounce, 10},
	}
}

func with(l policy.Labels, key, value string) policy.Labels {
	m := map[string]string{key: value}
	for _, x := range l {
		if x.Key != key {
			m[x.Key] = x.Value
		}
	}
	return policy.NewLabels(m)
}

// Events measures how long the compiler takes for one pod event each, from the
// delta to the change, in the cluster of the shape. Every kind of event is
// measured n times, kinds in turn.
func Events(s Shape, n int) ([]Times, error) {
	c := policy.NewCompiler(policy.DefaultConfig(Node))
	c.Update(Deltas(s.Snapshot())...)
	if c.Changes().Empty() {
		return nil, fmt.Errorf("the cluster %s compiles to nothing", s)
	}
	if problems := c.Problems(); len(problems) > 0 {
		return nil, fmt.Errorf("%s/%s does not compile: %w", problems[0].Namespace, problems[0].Name, problems[0].Err)
	}
	runtime.GC()
	events := s.events()
	times := make([]Times, 2*len(events))
	for i := range n {
		for k, e := range events {
			if i%e.each != 0 {
				continue
			}
			for part, d := range e.pair(i) {
				start := time.Now()
				c.Update(d)
				change := c.Changes()
				took := time.Since(start)
				t := &times[2*k+part]
				t.Name = e.names[part]
				t.add(took, change)
			}
		}
	}
	return times, nil
}

// Deltas returns what a compiler learns of a snapshot first.
func Deltas(s policy.Snapshot) []policy.Delta {
	out := make([]policy.Delta, 0, len(s.Namespaces)+len(s.Nodes)+len(s.Pods)+len(s.Policies))
	for _, o := range s.Namespaces {
		out = append(out, policy.Delta{Object: o})
	}
	for _, o := range s.Nodes {
		out = append(out, policy.Delta{Object: o})
	}
	for _, o := range s.Pods {
		out = append(out, policy.Delta{Object: o})
	}
	for _, o := range s.Policies {
		out = append(out, policy.Delta{Object: o})
	}
	return out
}
