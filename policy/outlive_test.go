package policy_test

import (
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
	"github.com/selvage-net/selvage/policy/policytest"
	"github.com/selvage-net/selvage/policy/trace"
)

// flows are connections that were judged and allowed under the generation in
// force.
type flows map[oracle.Packet]flow

// flow is the pods that a connection was between when it was judged.
type flow struct{ src, dst types.UID }

// outlived wants every flow to be allowed still, unless the change made the
// generation move on, which ends them all (or has them judged anew). The value
// of a generation comes back one day; conntrack is rid of its flows by then.
//
// Flows of a pod that is gone are excepted as long as nobody has its address:
// there is nobody to send.
func (fs flows) outlived(t *rapid.T, s policy.Snapshot, before, after *policy.Ruleset, change *policy.Change) {
	if change.Tightens {
		clear(fs)
		return
	}
	for p, f := range fs {
		if oracle.Allowed(s, policytest.NodeA, p) {
			continue
		}
		if f.src != "" && !held(s, p.Src) || f.dst != "" && !held(s, p.Dst) {
			continue
		}
		t.Fatalf("%s, once from %q to %q, is denied now and still counts as judged\n%s\nbefore:\n%s\nafter:\n%s",
			p, f.src, f.dst, policytest.Text(s), before, after)
	}
}

// restarted is for an agent that comes back. It sees what is in force, and not who had
// which address before: a flow whose end has another owner by now may pass for judged,
// if no set shows the difference. docs/semantics.md says so.
func (fs flows) restarted(s policy.Snapshot) {
	for p, f := range fs {
		if f.src != "" && f.src != owner(s, p.Src) || f.dst != "" && f.dst != owner(s, p.Dst) {
			delete(fs, p)
		}
	}
}

// flow lets packets flow, and wants the verdict that the oracle says.
func (fs flows) flow(t *rapid.T, s policy.Snapshot, r *policy.Ruleset, packets []oracle.Packet) {
	tracer := trace.New(r)
	for _, p := range packets {
		allowed := oracle.Allowed(s, policytest.NodeA, p)
		got, err := tracer.Run("forward", policytest.Opening(p))
		if err != nil || (got.Verdict == policy.VerdictAccept) != allowed {
			t.Fatalf("%s: allowed %v, error %v\n%s\n%s\n%s", p, allowed, err, got, policytest.Text(s), r)
		}
		if _, known := fs[p]; !known && allowed {
			fs[p] = flow{owner(s, p.Src), owner(s, p.Dst)}
		}
	}
}

func owner(s policy.Snapshot, a netip.Addr) types.UID {
	if p := oracle.Owner(s, a); p != nil {
		return p.UID
	}
	return ""
}

// held tells whether somebody can use the address: a pod of another node cannot
// use one that is routed to this node.
func held(s policy.Snapshot, a netip.Addr) bool {
	p := oracle.Owner(s, a)
	if p == nil || p.Node == policytest.NodeA {
		return p != nil
	}
	for _, n := range s.Nodes {
		for _, cidr := range n.PodCIDRs {
			if n.Name == policytest.NodeA && cidr.Contains(a) {
				return false
			}
		}
	}
	return true
}

// TestNothingOutlivesItsPermission changes one object at a time, so that no
// change hides behind another one that moves the generation on, and keeps flows
// between all pods.
func TestNothingOutlivesItsPermission(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := policy.DefaultConfig(policytest.NodeA)
		cfg.SharedAbove = rapid.SampledFrom([]int{0, 1, 2, policy.DefaultSharedAbove}).Draw(t, "shared above")
		o := policytest.Options{Valid: true, Pools: true}
		s := policytest.Snapshots(o).Draw(t, "start")
		c, m := policy.NewCompiler(cfg), policytest.NewModel(policy.Snapshot{})
		live := flows{}
		kernel := empty()
		previous := policy.Snapshot{}
		for range rapid.IntRange(2, 25).Draw(t, "steps") {
			deltas := policytest.Events(o, previous, s).Draw(t, "deltas")
			c.Update(deltas...)
			m.Apply(deltas...)
			change := c.Changes()
			before := kernel
			kernel = c.Ruleset()
			live.outlived(t, m.Snapshot(), before, kernel, change)
			live.flow(t, m.Snapshot(), kernel, policytest.Pairs(m.Snapshot()).Draw(t, "packets"))
			previous, s = s, policytest.Step(o, s).Draw(t, "next")
		}
	})
}
