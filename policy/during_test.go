package policy_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
	"github.com/selvage-net/selvage/policy/policytest"
	"github.com/selvage-net/selvage/policy/trace"
)

// TestDuringAChange follows packets that are on their way while the kernel goes
// over from one ruleset to the next: they are under the rules from before the
// switch, and under its elements from one of their look-ups on. The two ends of a
// connection are looked up one after the other, so that each may still be judged
// by the state before or already by the one after; but what both deny at one end
// must not pass, and what both allow at both ends must, if only pods changed.
//
// When a selector gets a set of its own, or a policy's peers are written
// otherwise, a packet that is on its way just then can be lost; whoever sent it
// will send it again.
func TestDuringAChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := policy.DefaultConfig(policytest.NodeA)
		cfg.SharedAbove = rapid.SampledFrom([]int{0, 1, 2, policy.DefaultSharedAbove}).Draw(t, "shared above")
		o := policytest.Options{Valid: true, Pools: true}
		s := policytest.Snapshots(o).Draw(t, "start")
		c := policy.NewCompiler(cfg)
		c.Update(policytest.Events(o, policy.Snapshot{}, s).Draw(t, "objects")...)
		c.Changes()
		for range rapid.IntRange(1, 4).Draw(t, "steps") {
			before := c.Ruleset()
			next := policytest.Step(o, s).Draw(t, "next")
			c.Update(policytest.Events(o, s, next).Draw(t, "deltas")...)
			steps, err := policytest.ApplyChange(before, c.Changes())
			if err != nil {
				t.Fatal(err)
			}
			packets := append(policytest.Pairs(s).Draw(t, "packets"), policytest.Pairs(next).Draw(t, "packets")...)
			lossless := cfg.SharedAbove == policy.DefaultSharedAbove && slices.Equal(s.Policies, next.Policies) &&
				slices.Equal(s.Namespaces, next.Namespaces) && slices.Equal(s.Nodes, next.Nodes)
			during(t, s, next, steps, packets, lossless)
			s = next
		}
	})
}

func during(t *rapid.T, s, next policy.Snapshot, steps policytest.Steps, packets []oracle.Packet, lossless bool) {
	from, to := trace.New(steps.Prepared), trace.New(steps.Switched)
	for _, p := range packets {
		out := [2]bool{oracle.EgressAllowed(s, policytest.NodeA, p), oracle.EgressAllowed(next, policytest.NodeA, p)}
		in := [2]bool{oracle.IngressAllowed(s, policytest.NodeA, p), oracle.IngressAllowed(next, policytest.NodeA, p)}
		if out[0] != out[1] || in[0] != in[1] {
			continue
		}
		if owner(s, p.Src) != owner(next, p.Src) || owner(s, p.Dst) != owner(next, p.Dst) {
			continue // not the same connection, and to a pod that is gone no loss
		}
		// No packet makes more look-ups than this: two dispatches, and in both
		// chains the blocks, the shared sets, the peers and the pod itself.
		for at := range 6 {
			got, err := from.RunDuring("forward", policytest.Opening(p), to, at)
			if err != nil {
				t.Fatal(err)
			}
			accepted, allowed := got.Verdict == policy.VerdictAccept, out[0] && in[0]
			if accepted && !allowed || !accepted && allowed && lossless && p.Src != p.Dst {
				t.Fatalf("%s: egress %v and ingress %v before and after, but not on its way from look-up %d on\n%s\nbefore: %s\nafter: %s\nprepared:\n%s\nswitched:\n%s",
					p, out[0], in[0], at, got, policytest.Text(s), policytest.Text(next), steps.Prepared, steps.Switched)
			}
		}
	}
}
