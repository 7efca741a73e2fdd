package kernel

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

// TestIncrementalInKernel lets an enforcer live through random histories and
// wants, after every batch of events, the same ruleset in its kernel as one
// that is made from nothing in another namespace.
func TestIncrementalInKernel(t *testing.T) {
	requireRoot(t)
	w, err := world.New()
	must(t, err)
	t.Cleanup(func() { must(t, w.Close()) })
	seed := envInt(t, "SELVAGE_SEED", rand.IntN(1<<30))
	t.Logf("SELVAGE_SEED=%d", seed)
	lived, err := w.AddNode(world.NodeOptions{Name: "lived"})
	must(t, err)
	fresh, err := w.AddNode(world.NodeOptions{Name: "fresh"})
	must(t, err)
	histories := policytest.Histories(policytest.Options{}, 6)
	compared := 0
	for i := range max(10, envInt(t, "SELVAGE_CHECKS", 0)/100) {
		cfg := policy.DefaultConfig(policytest.NodeA)
		cfg.SharedAbove = []int{policy.DefaultSharedAbove, 0, 2}[i%3]
		compared += liveThrough(t, lived, fresh, cfg, histories.Example(seed+i), seed+i)
	}
	t.Logf("%d rulesets compared", compared)
}

func liveThrough(t *testing.T, lived, fresh *world.Node, cfg policy.Config, history []policytest.Deltas, seed int) (compared int) {
	t.Helper()
	e := enforce(t, lived, cfg)
	defer e.enforcer.Close()
	other := openConn(t, fresh)
	model := policytest.NewModel(policy.Snapshot{})
	for _, deltas := range history {
		model.Apply(deltas...)
		_, err := e.enforcer.Sync(context.Background(), deltas)
		must(t, err)
		cfg.Generation = e.enforcer.Generation()
		desired, _ := policy.Compile(cfg, model.Snapshot())
		_, err = other.Cleanup()
		must(t, err)
		_, err = other.Apply(policy.Diff(&policy.Ruleset{}, desired))
		must(t, err)
		if a, b := listing(t, lived), listing(t, fresh); a != b {
			t.Fatalf("SELVAGE_SEED=%d: after these events\n%#v\nthe kernel has\n%s\nand from nothing\n%s\nof\n%s", seed, deltas, a, b, manifests(t, model.Snapshot()))
		}
		compared++
	}
	// The next history finds no tables.
	_, err := openConn(t, lived).Cleanup()
	must(t, err)
	return compared
}

// listing is the whole ruleset of a namespace, without its counters and what packets
// have put into sets. nft lists sets and chains in the order in which they were made,
// which says nothing; here they are sorted within their table.
func listing(t *testing.T, n *world.Node) string {
	t.Helper()
	out, err := n.Run(t.Context(), "nft", "-s", "list", "ruleset")
	must(t, err)
	var sorted strings.Builder
	for _, table := range strings.SplitAfter(out, "\n}\n") {
		head, body, _ := strings.Cut(strings.TrimSuffix(table, "}\n"), "{\n")
		blocks := strings.Split(body, "\n\n")
		for i := range blocks {
			blocks[i] = strings.Trim(blocks[i], "\n")
			if before, _, ok := strings.Cut(blocks[i], "\n\t\telements = {"); ok && strings.Contains(before, "flags dynamic") {
				blocks[i] = before + "\n\t}"
			}
		}
		slices.Sort(blocks)
		sorted.WriteString(head + "{\n" + strings.Join(blocks, "\n\n") + "\n}\n")
	}
	return sorted.String()
}
