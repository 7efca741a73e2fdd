package policy_test

import (
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
	"github.com/selvage-net/selvage/policy/policytest"
	"github.com/selvage-net/selvage/policy/trace"
)

// TestIncremental lives through random histories: deltas in any order, squashed,
// split and duplicated, agents that come back, generations that wrap around.
// After each batch the rulesets that three ways lead to must be the same, the
// kernel could have taken every step, no packet on its way went wrong, and no
// flow that is denied now is still taken for one that was judged.
func TestIncremental(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLife(t)
		for _, deltas := range policytest.Histories(policytest.Options{}, 8).Draw(t, "history") {
			l.batch(deltas)
		}
	})
}

// life is an agent's, and the kernel's under it.
type life struct {
	t        *rapid.T
	cfg      policy.Config
	compiler *policy.Compiler
	model    *policytest.Model
	// down is true while there is no agent to take in what happens.
	down   bool
	kernel *policy.Ruleset
	flows  map[oracle.Packet]flow
}

// flow is a connection that was allowed, with the mark that it got then and the
// pods that it was between.
type flow struct {
	mark     uint32
	src, dst types.UID
}

func newLife(t *rapid.T) *life {
	cfg := policy.DefaultConfig(policytest.NodeA)
	cfg.SharedAbove = rapid.SampledFrom([]int{0, 1, 2, 3, policy.DefaultSharedAbove}).Draw(t, "shared above")
	cfg.MarkMask = rapid.SampledFrom([]policy.MarkMask{policy.DefaultMarkMask, 0x11, 0xffff}).Draw(t, "mark mask")
	cfg.PodToNode = rapid.SampledFrom([]policy.PodToNode{policy.PodToNodeAllow, policy.PodToNodePolicy}).Draw(t, "pod to node")
	cfg.Generation = 0
	return &life{
		t: t, cfg: cfg, compiler: policy.NewCompiler(cfg),
		model: policytest.NewModel(policy.Snapshot{}), kernel: empty(), flows: map[oracle.Packet]flow{},
	}
}

func empty() *policy.Ruleset {
	var r policy.Ruleset
	for _, f := range policy.Families {
		r.Tables[f].Family = f
	}
	return &r
}

func (l *life) draw(label string, n int) bool {
	return rapid.IntRange(0, n).Draw(l.t, label) == n
}

// batch lives through some deltas.
func (l *life) batch(deltas []policy.Delta) {
	l.model.Apply(deltas...)
	switch {
	case l.down && !l.draw("comes back", 2):
		return
	case l.down || l.draw("restarts", 15):
		l.restart()
		return
	case l.draw("goes down", 20):
		l.down = true
		return
	}
	l.compiler.Update(deltas...)
	generation := l.compiler.Generation()
	if l.draw("looks first", 3) {
		l.sameAsFromScratch("before Changes")
	}
	if l.draw("more to come", 6) {
		return // Changes covers several batches
	}
	change := l.compiler.Changes()
	if moved := l.compiler.Generation() != generation; moved && !change.Tightens {
		l.t.Fatalf("the generation moved from %d to %d, and the change does not tighten", generation, l.compiler.Generation())
	}
	l.apply(change)
}

// restart is an agent that comes back and goes on from what it finds.
func (l *life) restart() {
	l.down = false
	if len(l.kernel.Tables[0].Chains) > 0 {
		l.cfg.Generation = l.compiler.Generation()
	}
	l.compiler = policy.NewCompiler(l.cfg)
	l.compiler.Update(policytest.Events(policytest.Options{}, policy.Snapshot{}, l.model.Snapshot()).Draw(l.t, "objects")...)
	l.compiler.Changes()
	change := policy.Diff(l.kernel, l.compiler.Ruleset())
	if change.Tightens {
		l.compiler.Tighten()
		l.compiler.Changes()
		change = policy.Diff(l.kernel, l.compiler.Ruleset())
	}
	l.apply(change)
}

// apply brings a change to the kernel and checks all there is to check.
func (l *life) apply(change *policy.Change) {
	t := l.t
	if want := l.cfg.MarkMask.Mark(l.compiler.Generation()); change.Mark != want {
		t.Fatalf("the change leads to mark %+v instead of %+v", change.Mark, want)
	}
	steps, err := policytest.ApplyChange(l.kernel, change)
	if err != nil {
		t.Fatalf("%v\nbefore:\n%s\nafter:\n%s", err, l.kernel, l.compiler.Ruleset())
	}
	before := l.kernel
	l.kernel = steps.Swept
	wantText(t, "the kernel's ruleset and the compiler's", l.kernel, l.compiler.Ruleset())
	l.sameAsFromScratch("after Changes")
	if err := trace.Check(l.kernel); err != nil {
		t.Fatalf("%v\n%s", err, l.kernel)
	}
	l.sound(before, change)
}

func (l *life) sameAsFromScratch(when string) {
	cfg := l.cfg
	got := l.compiler.Ruleset()
	cfg.Generation = l.compiler.Generation()
	want, problems := policy.Compile(cfg, l.model.Snapshot())
	wantText(l.t, when+", incremental and from scratch", got, want)
	got2 := l.compiler.Problems()
	same := slices.EqualFunc(got2, problems, func(a, b policy.Problem) bool {
		return a.Namespace == b.Namespace && a.Name == b.Name && a.Err.Error() == b.Err.Error()
	})
	if !same {
		l.t.Fatalf("%s: problems %v, from scratch %v", when, got2, problems)
	}
}

// sound wants every flow that still counts as judged to be allowed, and then
// lets some packets flow.
//
// Flows of a pod that is gone are excepted as long as nobody has its address:
// there is nobody to send.
func (l *life) sound(before *policy.Ruleset, change *policy.Change) {
	s := l.model.Snapshot()
	mark := change.Mark.Value
	if change.Tightens {
		// The generation's value may have been in use a turn ago; conntrack is
		// rid of such flows before it comes back.
		for p, f := range l.flows {
			if f.mark == mark {
				delete(l.flows, p)
			}
		}
	}
	for p, f := range l.flows {
		if f.mark != mark || oracle.Allowed(s, policytest.NodeA, p) {
			continue
		}
		if f.src != "" && owner(s, p.Src) == "" || f.dst != "" && owner(s, p.Dst) == "" {
			continue
		}
		l.t.Fatalf("%+v, once from %q to %q, is denied now and still counts as judged\n%s\nbefore:\n%s\nafter:\n%s",
			p, f.src, f.dst, policytest.Text(s), before, l.kernel)
	}
	tracer := trace.New(l.kernel)
	for _, p := range rapid.SliceOfN(policytest.Packets(s), 20, 20).Draw(l.t, "packets") {
		allowed := oracle.Allowed(s, policytest.NodeA, p)
		got, err := tracer.Run("forward", policytest.Opening(p))
		if err != nil || (got.Verdict == policy.VerdictAccept) != allowed {
			l.t.Fatalf("%+v: allowed %v, error %v\n%s", p, allowed, err, got)
		}
		if allowed {
			l.flows[p] = flow{got.Mark, owner(s, p.Src), owner(s, p.Dst)}
		}
	}
}

func owner(s policy.Snapshot, a netip.Addr) types.UID {
	if p := oracle.Owner(s, a); p != nil {
		return p.UID
	}
	return ""
}
