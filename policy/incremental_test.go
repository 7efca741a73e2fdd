package policy_test

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
	"github.com/selvage-net/selvage/policy/trace"
)

// withPools has everything in a world.
var withPools = policytest.Options{Pools: true}

// TestIncremental lives through random histories: deltas in any order, squashed,
// split and duplicated, agents that come back, generations that wrap around.
// After each batch the rulesets that three ways lead to must be the same, the
// kernel could have taken every step, no packet on its way went wrong, and no
// flow that is denied now is still taken for one that was judged.
func TestIncremental(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLife(t)
		for _, deltas := range policytest.Histories(withPools, 8).Draw(t, "history") {
			l.batch(deltas)
		}
		l.forget()
	})
}

// forget takes all objects away again: nothing may be left of them.
func (l *life) forget() {
	if l.down {
		l.restart()
	}
	deltas := policytest.Events(withPools, l.model.Snapshot(), policy.Snapshot{}).Draw(l.t, "deletions")
	l.model.Apply(deltas...)
	l.compiler.Update(deltas...)
	l.apply(l.compiler.Changes())
	if left := l.compiler.Leftovers(); left != "" {
		l.t.Fatalf("of nothing there is left:\n%s", left)
	}
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
	flows  flows
}

func newLife(t *rapid.T) *life {
	cfg := policy.DefaultConfig(policytest.NodeA)
	cfg.SharedAbove = rapid.SampledFrom([]int{0, 1, 2, 3, policy.DefaultSharedAbove}).Draw(t, "shared above")
	cfg.MarkMask = rapid.SampledFrom([]policy.MarkMask{policy.DefaultMarkMask, 0x11, 0xffff}).Draw(t, "mark mask")
	cfg.PodToNode = rapid.SampledFrom([]policy.PodToNode{policy.PodToNodeAllow, policy.PodToNodePolicy}).Draw(t, "pod to node")
	cfg.Masquerade = rapid.IntRange(0, 7).Draw(t, "masquerade") != 7
	cfg.NoMasquerade = rapid.SampledFrom([][]netip.Prefix{nil, {netip.MustParsePrefix("203.0.0.0/8")}}).Draw(t, "no masquerade")
	cfg.ServiceCIDRs = rapid.SampledFrom([][]netip.Prefix{nil, nil, {netip.MustParsePrefix("10.96.0.0/12")}}).Draw(t, "services")
	cfg.Generation = 0
	return &life{
		t: t, cfg: cfg, compiler: policy.NewCompiler(cfg),
		model: policytest.NewModel(policy.Snapshot{}), kernel: empty(), flows: flows{},
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
	if l.draw("tightens for another reason", 15) {
		l.compiler.Tighten()
	}
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
	l.compiler.Update(policytest.Events(withPools, policy.Snapshot{}, l.model.Snapshot()).Draw(l.t, "objects")...)
	l.compiler.Changes()
	change := policy.Diff(l.kernel, l.compiler.Ruleset())
	if change.Tightens {
		l.compiler.Tighten()
		l.compiler.Changes()
		change = policy.Diff(l.kernel, l.compiler.Ruleset())
	}
	l.flows.restarted(l.model.Snapshot())
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
	if stale := l.compiler.Stale(); stale != "" {
		t.Fatal(stale)
	}
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
func (l *life) sound(before *policy.Ruleset, change *policy.Change) {
	s := withFlags(l.model.Snapshot(), l.cfg)
	l.flows.outlived(l.t, s, before, l.kernel, change)
	l.flows.flow(l.t, s, l.kernel, rapid.SliceOfN(policytest.Packets(s), 20, 20).Draw(l.t, "packets"))
}
