package policytest_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

// TestApplyChange spoils a good change in one place each.
func TestApplyChange(t *testing.T) {
	addr := func(a string) policy.Element { return policy.Element{Key: policy.AddrKey(netip.MustParseAddr(a))} }
	peers := policy.Set{Name: "peers-v4", Key: [2]policy.Type{policy.TypeAddr}}
	uses := func(set, chain string) policy.Chain {
		return policy.Chain{Name: chain, Rules: []policy.Rule{{
			Match:   []policy.Match{{Field: policy.FieldSaddr, Op: policy.OpIn, Name: set}},
			Count:   chain,
			Verdict: policy.Verdict{Kind: policy.VerdictDrop},
		}}}
	}
	forward := func(to string) policy.Chain {
		return policy.Chain{Name: "forward", Hook: &policy.Hook{Name: "forward"}, Rules: []policy.Rule{{Verdict: policy.Verdict{Kind: policy.VerdictJump, Chain: to}}}}
	}
	start := func() *policy.Ruleset {
		var r policy.Ruleset
		r.Tables[policy.IPv6].Family = policy.IPv6
		full := peers
		full.Elements = []policy.Element{addr("10.0.0.1"), addr("10.0.0.2")}
		r.Tables[policy.IPv4] = policy.Table{Counters: []policy.Counter{{Name: "a"}}, Sets: []policy.Set{full}, Chains: []policy.Chain{uses("peers-v4", "a"), forward("a")}}
		return &r
	}
	other := peers
	other.Name = "other-v4"
	good := func() *policy.Change {
		c := &policy.Change{}
		c.Tables[policy.IPv6].Family = policy.IPv6
		c.Tables[policy.IPv4] = policy.TableChange{
			AddCounters: []policy.Counter{{Name: "b"}},
			AddSets:     []policy.Set{other},
			AddChains:   []policy.Chain{uses("other-v4", "b")},
			SetChains:   []policy.Chain{forward("b")},
			DelChains:   []string{"a"},
			DelSets:     []string{"peers-v4"},
			DelCounters: []string{"a"},
		}
		return c
	}
	steps, err := policytest.ApplyChange(start(), good())
	if err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]bool{"chain a": true, "chain b": true, "set other-v4": true, "counter a": true, "counter b": true, "jump a": true, "jump b": false} {
		if got := strings.Contains(steps.Prepared.String(), what); got != want {
			t.Errorf("prepared: %q is there: %v", what, got)
		}
	}
	for what, want := range map[string]bool{"chain a": true, "jump a": false, "jump b": true} {
		if got := strings.Contains(steps.Switched.String(), what); got != want {
			t.Errorf("switched: %q is there: %v", what, got)
		}
	}
	for what, want := range map[string]bool{"chain a": false, "set peers-v4": false, "counter a": false, "chain b": true, "counter b": true} {
		if got := strings.Contains(steps.Swept.String(), what); got != want {
			t.Errorf("swept: %q is there: %v", what, got)
		}
	}

	elements := func(del, add []policy.Element) func(*policy.TableChange) {
		return func(c *policy.TableChange) {
			*c = policy.TableChange{Elements: []policy.ElementChange{{Set: peers, Del: del, Add: add}}}
		}
	}
	full := peers
	full.Elements = []policy.Element{addr("10.0.0.1")}
	tests := []struct {
		name  string
		spoil func(*policy.TableChange)
		want  string
	}{
		{"adds a set that is there", func(c *policy.TableChange) { c.AddSets = append(c.AddSets, peers) }, "there already"},
		{"adds a chain that is there", func(c *policy.TableChange) { c.AddChains = append(c.AddChains, uses("peers-v4", "a")) }, "there already"},
		{"prepares a base chain", func(c *policy.TableChange) {
			c.AddChains = append(c.AddChains, policy.Chain{Name: "input", Hook: &policy.Hook{Name: "input"}})
		}, "in force at once"},
		{"a new chain uses a set that is not there", func(c *policy.TableChange) { c.AddSets = nil }, "not there"},
		{"switches to a chain that was not prepared", func(c *policy.TableChange) { c.SetChains = append(c.SetChains, uses("peers-v4", "c")) }, "not prepared"},
		{"sets a chain to what it is", func(c *policy.TableChange) { c.SetChains = append(c.SetChains, uses("peers-v4", "a")) }, "what it is"},
		{"adds a counter that is there", func(c *policy.TableChange) { c.AddCounters = append(c.AddCounters, policy.Counter{Name: "a"}) }, "there already"},
		{"counts in a counter that is not there", func(c *policy.TableChange) { c.AddCounters = nil }, "counter b is in use and not there"},
		{"sweeps a counter in use", func(c *policy.TableChange) { c.DelChains, c.DelSets = nil, nil }, "counter a is in use and not there"},
		{"sweeps a counter that is not there", func(c *policy.TableChange) { c.DelCounters = append(c.DelCounters, "c") }, "counter c is not there"},
		{"samples in a set that is not there", func(c *policy.TableChange) {
			c.AddChains[0].Rules[0].Sample.Set = "none-v4"
		}, "set none-v4 is in use and not there"},
		{"sweeps a set in use", func(c *policy.TableChange) { c.DelChains = nil }, "in use"},
		{"sweeps a chain in use", func(c *policy.TableChange) { c.SetChains = nil }, "in use"},
		{"sweeps a set that a rule looks out of", func(c *policy.TableChange) {
			b := uses("peers-v4", "b")
			b.Rules[0].Match[0].Op = policy.OpNotIn
			c.AddChains = []policy.Chain{b}
		}, "in use"},
		{"sweeps a chain that is not there", func(c *policy.TableChange) { c.DelChains = append(c.DelChains, "c") }, "not there"},
		{"sweeps a set that is not there", func(c *policy.TableChange) { c.DelSets = append(c.DelSets, "none-v4") }, "not there"},
		{"deletes an absent element", elements([]policy.Element{addr("10.0.0.3")}, nil), "not there"},
		{"adds a present element", elements(nil, []policy.Element{addr("10.0.0.1")}), "is there"},
		{"deletes what it adds", elements([]policy.Element{addr("10.0.0.1")}, []policy.Element{addr("10.0.0.1")}), "deletes and adds"},
		{"does nothing", elements(nil, nil), "nothing to do"},
		{"elements of no set", func(c *policy.TableChange) {
			c.Elements = []policy.ElementChange{{Set: policy.Set{Name: "none-v4"}, Add: []policy.Element{addr("10.0.0.3")}}}
		}, "not there"},
		{"another set", func(c *policy.TableChange) {
			c.Elements = []policy.ElementChange{{Set: policy.Set{Name: "peers-v4", Interval: true}, Add: []policy.Element{addr("10.0.0.3")}}}
		}, "another than"},
		{"a set with its elements", func(c *policy.TableChange) {
			c.Elements = []policy.ElementChange{{Set: full, Add: []policy.Element{addr("10.0.0.3")}}}
		}, "has elements"},
		{"another family", func(c *policy.TableChange) { c.Family = policy.IPv6 }, "of family"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := good()
			tt.spoil(&c.Tables[policy.IPv4])
			if _, err := policytest.ApplyChange(start(), c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("want an error with %q, got %v", tt.want, err)
			}
		})
	}
}
