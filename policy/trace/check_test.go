package trace_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/trace"
)

// TestCheck spoils a good ruleset in one place each.
func TestCheck(t *testing.T) {
	good := func() *policy.Ruleset {
		return ruleset([]policy.Set{
			{
				Name: "block-v4", Key: [2]policy.Type{policy.TypeAddr}, Interval: true,
				Elements: []policy.Element{{Key: "\x0a\x00\x00\x00", To: "\x0a\x00\x00\xff"}, {Key: "\x0b\x00\x00\x00", To: "\xff\xff\xff\xff"}},
			},
			addrs("peers-v4", client, server), pods(gotoChain("a")),
		},
			chain("a", rule(ret, inPeers), rule(ret, policy.Match{Field: policy.FieldSaddr, Op: policy.OpIn, Name: "block-v4"}), rule(drop)),
			chain("forward", rule(policy.Verdict{}, vmapPods), policy.Rule{Stamp: policy.Mark{Mask: 3, Value: 1}, Verdict: accept}))
	}
	if err := trace.Check(good()); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		spoil func(*policy.Table)
		want  string
	}{
		{"chains out of order", func(p *policy.Table) { p.Chains[0], p.Chains[1] = p.Chains[1], p.Chains[0] }, "not in order"},
		{"sets out of order", func(p *policy.Table) { p.Sets[0], p.Sets[1] = p.Sets[1], p.Sets[0] }, "not in order"},
		{"elements out of order", func(p *policy.Table) { e := p.Sets[1].Elements; e[0], e[1] = e[1], e[0] }, "not in order"},
		{"an element twice", func(p *policy.Table) { p.Sets[1].Elements[1] = p.Sets[1].Elements[0] }, "there twice"},
		{"intervals touch", func(p *policy.Table) { p.Sets[0].Elements[1].Key = "\x0a\x00\x01\x00" }, "touches"},
		{"an interval after the last address", func(p *policy.Table) { p.Sets[0].Elements[0].To = "\xff\xff\xff\xff" }, "overlaps"},
		{"an interval that ends before it begins", func(p *policy.Table) { p.Sets[0].Elements[0].To = "\x09\x00\x00\x00" }, "ends before"},
		{"a key that is too long", func(p *policy.Table) { p.Sets[1].Elements[0].Key += "\x00" }, "a key of"},
		{"an unknown type", func(p *policy.Table) { p.Sets[1].Key[0] = 9 }, "no key of this type"},
		{"a set with verdicts", func(p *policy.Table) { p.Sets[1].Elements[0].Verdict = drop }, "has a verdict"},
		{"a map without", func(p *policy.Table) { p.Sets[2].Elements[0].Verdict = policy.Verdict{} }, "has no verdict"},
		{"reject in a map", func(p *policy.Table) { p.Sets[2].Elements[0].Verdict = verdict(policy.VerdictReset) }, "a statement"},
		{"masquerade in a map", func(p *policy.Table) { p.Sets[2].Elements[0].Verdict = verdict(policy.VerdictMasquerade) }, "a statement"},
		{"a verdict with a chain", func(p *policy.Table) { p.Chains[0].Rules[2].Verdict.Chain = "forward" }, "with a chain"},
		{"a name that nft cannot read", func(p *policy.Table) { p.Chains[0].Name = "a b" }, "cannot read this name"},
		{"a name that is too long", func(p *policy.Table) { p.Chains[0].Name = strings.Repeat("a", 256) }, "cannot read this name"},
		{"a comment that nft cannot read", func(p *policy.Table) { p.Sets[0].Comment = `a "b"` }, "cannot read the comment"},
		{"a comment that is too long", func(p *policy.Table) { p.Chains[0].Rules[0].Comment = strings.Repeat("a", 129) }, "cannot read the comment"},
		{"a name without its family", func(p *policy.Table) { p.Sets[1].Name = "peers" }, "does not say the family"},
		{"a jump nowhere", func(p *policy.Table) { p.Sets[2].Elements[0].Verdict.Chain = "nowhere" }, "no such chain"},
		{"a set that is not there", func(p *policy.Table) { p.Chains[0].Rules[0].Match[0].Name = "none-v4" }, "no set"},
		{"a chain that nothing leads to", func(p *policy.Table) { p.Sets[2].Elements = nil }, "nothing leads to it"},
		{"a set that nothing uses", func(p *policy.Table) { p.Chains[0].Rules = p.Chains[0].Rules[1:] }, "no rule uses it"},
		{"rules that are never reached", func(p *policy.Table) { p.Chains[0].Rules = append(p.Chains[0].Rules, rule(ret, inPeers)) }, "never reached"},
		{"a rule without effect", func(p *policy.Table) { p.Chains[0].Rules[0].Verdict = policy.Verdict{} }, "without effect"},
		{"a stamp beyond its mask", func(p *policy.Table) { p.Chains[1].Rules[1].Stamp.Value = 4 }, "does not fit"},
		{"a match after a map", func(p *policy.Table) { p.Chains[1].Rules[0].Match = append(p.Chains[1].Rules[0].Match, inPeers) }, "after a verdict map"},
		{"a prefix with bits beyond its length", func(p *policy.Table) {
			p.Chains[0].Rules[0].Match[0] = policy.Match{Field: policy.FieldSaddr, Op: policy.OpPrefix, Prefix: netip.MustParsePrefix("10.0.0.1/8")}
		}, "prefix"},
		{"a prefix of the other family", func(p *policy.Table) {
			p.Chains[0].Rules[0].Match[0] = policy.Match{Field: policy.FieldSaddr, Op: policy.OpPrefix, Prefix: netip.MustParsePrefix("::/0")}
		}, "prefix"},
		{"an empty range", func(p *policy.Table) {
			p.Chains[0].Rules[0].Match[0] = policy.Match{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpRange, Value: 2, Arg: 1}
		}, "empty"},
		{"a value beyond its mask", func(p *policy.Table) {
			p.Chains[0].Rules[0].Match[0] = policy.Match{Field: policy.FieldCtMark, Op: policy.OpMasked, Value: 2, Arg: 1}
		}, "not within the mask"},
		{"a field of IPv6", func(p *policy.Table) {
			p.Chains[0].Rules[0].Match[0] = policy.Match{Field: policy.FieldHopLimit, Op: policy.OpEqual, Value: 255}
		}, "in a table of family"},
		{"a port that is none", func(p *policy.Table) {
			p.Chains[0].Rules[0].Match[0] = policy.Match{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpEqual, Value: 65536}
		}, "no port"},
		{"an interface that is none", func(p *policy.Table) {
			p.Chains[0].Rules[0].Match[0] = policy.Match{Field: policy.FieldIifname, Op: policy.OpEqual, Name: "longer-than-ifnamsiz"}
		}, "interface"},
		{"a second field outside a set", func(p *policy.Table) { p.Chains[1].Rules[0].Match[0].And = policy.FieldSaddr }, "second field"},
		{"a protocol looked up in a set", func(p *policy.Table) { p.Chains[0].Rules[0].Match[0].And = policy.FieldCtProtocol }, "cannot be looked up"},
		{"an unknown hook", func(p *policy.Table) { p.Chains[1].Hook.Name = "output" }, "unknown"},
		{"translation where packets are judged", func(p *policy.Table) { p.Chains[1].Hook.NAT = true }, "unknown"},
		{"judgement where sources are translated", func(p *policy.Table) { p.Chains[1].Hook.Name = "postrouting" }, "unknown"},
		{"masquerade in a chain that judges", func(p *policy.Table) { p.Chains[0].Rules[2].Verdict = masquerade }, "that and nothing else"},
		{"a stamp on what is translated", func(p *policy.Table) {
			p.Chains[1].Hook = &policy.Hook{Name: "postrouting", NAT: true}
			p.Chains[1].Rules = p.Chains[1].Rules[1:]
			p.Chains[1].Rules[0].Verdict = masquerade
		}, "that and nothing else"},
		{"another family", func(p *policy.Table) { p.Family = policy.IPv6 }, "family"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := good()
			tt.spoil(&r.Tables[policy.IPv4])
			if err := trace.Check(r); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("want an error with %q, got %v", tt.want, err)
			}
		})
	}
}
