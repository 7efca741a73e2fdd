package nft

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/selvage-net/selvage/policy"
)

// TestSameAsNft compares what Apply makes of a ruleset with what nft(8) makes
// of its text, and what Read makes of either with the ruleset.
func TestSameAsNft(t *testing.T) {
	want := everything()
	byNft, byApply := newNamespace(t), newNamespace(t)
	byNft.nft(t, want.String())
	if _, err := byApply.open(t).Apply(fill(want)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(byNft.list(t), byApply.list(t)); diff != "" {
		t.Errorf("listing after nft -f (-) and Apply (+):\n%s", diff)
	}
	for name, ns := range map[string]*namespace{"nft -f": byNft, "Apply": byApply} {
		got, err := ns.open(t).Read()
		if err != nil {
			t.Fatal(err)
		}
		if diff := diffRulesets(want, got); diff != "" {
			t.Errorf("ruleset (-) and what Read finds after %s (+):\n%s", name, diff)
		}
	}
}

// diffRulesets shows how two rulesets differ, or returns "".
func diffRulesets(want, got *policy.Ruleset) string {
	return cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{}))
}

func mustApply(t testing.TB, c *Conn, change *policy.Change) Stats {
	t.Helper()
	stats, err := c.Apply(change)
	if err != nil {
		t.Fatal(err)
	}
	return stats
}
