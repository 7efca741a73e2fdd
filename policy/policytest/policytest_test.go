package policytest_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

// TestEventsLeadThere: whatever happens to the deltas on the way, the end is the
// last snapshot.
func TestEventsLeadThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := policytest.Options{Pools: true}
		history := []policy.Snapshot{policytest.Snapshots(o).Draw(t, "start")}
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			history = append(history, policytest.Next(o, history[len(history)-1]).Draw(t, "next"))
		}
		m := policytest.NewModel(history[0])
		m.Apply(policytest.Events(o, history...).Draw(t, "deltas")...)
		got := policytest.Text(m.Snapshot())
		if want := policytest.Text(policytest.NewModel(history[len(history)-1]).Snapshot()); got != want {
			t.Fatalf("the deltas lead to %s\ninstead of %s", got, want)
		}
	})
}

// TestExample: a seed always gives the same world, and no other one.
func TestExample(t *testing.T) {
	for _, o := range []policytest.Options{{}, {Physical: true, Valid: true, Packets: 5}, {Pools: true}} {
		a, again, b := policytest.Example(o, 7), policytest.Example(o, 7), policytest.Example(o, 8)
		if policytest.Text(a.Snapshot) != policytest.Text(again.Snapshot) || policytest.Text(a.Snapshot) == policytest.Text(b.Snapshot) {
			t.Errorf("%+v: the seed does not decide", o)
		}
	}
}

// TestValid: worlds that should be valid are, by the compiler's own account,
// and others are not always.
func TestValid(t *testing.T) {
	problems := 0
	for seed := range 200 {
		cfg := policy.DefaultConfig(policytest.NodeA)
		valid := policytest.Example(policytest.Options{Valid: true, Physical: true, Pools: true}, seed)
		if _, found := policy.Compile(cfg, valid.Snapshot); len(found) > 0 {
			t.Errorf("seed %d: %v%s", seed, found[0].Err, policytest.Text(valid.Snapshot))
		}
		_, found := policy.Compile(cfg, policytest.Example(policytest.Options{}, seed).Snapshot)
		problems += len(found)
	}
	if problems == 0 {
		t.Error("no world was invalid")
	}
}

// TestPools: worlds with pools are what such a world is made for, often enough.
func TestPools(t *testing.T) {
	const worlds = 300
	seen := map[string]int{}
	for seed := range worlds {
		s := policytest.Example(policytest.Options{Pools: true}, seed).Snapshot
		once := map[string]bool{}
		pools := policy.Resolve(s.Pools, s.Nodes, s.Services)
		for _, p := range pools.Problems {
			once[string(p.Reason)] = true
			once["in force all the same"] = once["in force all the same"] || p.InForce
		}
		for _, p := range s.Pods {
			once["pods that pretend"] = once["pods that pretend"] || p.Labels.Has(policy.PoolLabel)
			once["pods in pools"] = once["pods in pools"] || !pools.Implicit && pools.OfPod(p) != nil
		}
		for _, np := range s.Policies {
			once["policies by pool"] = once["policies by pool"] || strings.Contains(np.Spec.String(), policy.PoolLabel)
		}
		for _, p := range pools.All {
			once["masquerades"] = once["masquerades"] || p.NATOutgoing && len(p.CIDRs) > 0
		}
		for what, is := range once {
			if is {
				seen[what]++
			}
		}
	}
	for what, least := range map[string]int{
		"pods in pools": 30, "pods that pretend": 30, "policies by pool": 30, "masquerades": 20,
		string(policy.PoolOverlap): 10, string(policy.PoolHoldsNode): 10, string(policy.PoolHoldsServices): 10, "in force all the same": 5,
	} {
		if seen[what]*100 < least*worlds {
			t.Errorf("%s: in %d of %d worlds, want %d %%", what, seen[what], worlds, least)
		}
	}
	for seed := range worlds {
		for _, p := range policytest.Example(policytest.Options{Pools: true, Physical: true}, seed).Snapshot.Pools {
			if p.NATOutgoing {
				t.Fatalf("seed %d: %s masquerades", seed, p.Name)
			}
		}
	}
}
