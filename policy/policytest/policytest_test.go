package policytest_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

// TestEventsLeadThere: whatever happens to the deltas on the way, the end is the
// last snapshot.
func TestEventsLeadThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := policytest.Options{}
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
	for _, o := range []policytest.Options{{}, {Physical: true, Valid: true, Packets: 5}} {
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
		valid := policytest.Example(policytest.Options{Valid: true, Physical: true}, seed)
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
