package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/selvage-net/selvage/policy"
)

// everything returns a ruleset that has every field, operation, verdict and
// kind of set in it.
func everything() *policy.Ruleset {
	r := &policy.Ruleset{}
	for _, f := range policy.Families {
		r.Tables[f] = everyTable(f)
	}
	return r
}

func addr(f policy.Family, v4, v6 string) netip.Addr {
	if f == policy.IPv4 {
		return netip.MustParseAddr(v4)
	}
	return netip.MustParseAddr(v6)
}

func interval(ranges ...string) []policy.Element {
	var elements []policy.Element
	for _, r := range ranges {
		from, to, _ := strings.Cut(r, "-")
		a, b := netip.MustParseAddr(from), netip.MustParseAddr(to)
		elements = append(elements, policy.Element{Key: policy.AddrKey(a), To: policy.AddrKey(b)})
	}
	return elements
}

func everyTable(f policy.Family) policy.Table {
	a, b := addr(f, "10.1.0.1", "fd00:1::1"), addr(f, "10.1.0.2", "fd00:1::2")
	v := f.Suffix()
	blocks := []string{"0.0.0.0-0.0.0.255", "10.0.0.0-10.255.255.253", "10.255.255.255-11.0.0.3", "192.0.2.7-192.0.2.7", "255.0.0.0-255.255.255.255"}
	all := "0.0.0.0-255.255.255.255"
	if f == policy.IPv6 {
		blocks = []string{"::-::ff", "fd00::-fd00::ffff:ffff:ffff", "fd01::5-fd01::9", "fe80::1-fe80::1", "ff00::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}
		all = "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	port := func(from, to uint16) policy.Element {
		return policy.Element{Key: policy.ServiceKey(from), To: policy.ServiceKey(to)}
	}
	t := policy.Table{Family: f, Sets: []policy.Set{
		{Name: "all" + v, Key: [2]policy.Type{policy.TypeAddr}, Interval: true, Elements: interval(all)},
		{Name: "block" + v, Key: [2]policy.Type{policy.TypeAddr}, Interval: true, Comment: "of shop/api", Elements: interval(blocks...)},
		{Name: "empty" + v, Key: [2]policy.Type{policy.TypeAddr}},
		{Name: "named" + v, Key: [2]policy.Type{policy.TypeAddr, policy.TypeService}, Elements: []policy.Element{
			{Key: policy.AddrServiceKey(a, 0)}, {Key: policy.AddrServiceKey(a, 8080)}, {Key: policy.AddrServiceKey(b, 65535)},
		}},
		{Name: "pods" + v, Key: [2]policy.Type{policy.TypeAddr}, Verdicts: true, Size: 4096, Comment: "local pods", Elements: []policy.Element{
			{Key: policy.AddrKey(a), Verdict: policy.Verdict{Kind: policy.VerdictGoto, Chain: "egress"}},
			{Key: policy.AddrKey(b), Verdict: policy.Verdict{Kind: policy.VerdictReturn}},
			{Key: policy.AddrKey(b.Next()), Verdict: policy.Verdict{Kind: policy.VerdictJump, Chain: "egress"}},
			{Key: policy.AddrKey(b.Next().Next()), Verdict: policy.Verdict{Kind: policy.VerdictAccept}},
			{Key: policy.AddrKey(b.Next().Next().Next()), Verdict: policy.Verdict{Kind: policy.VerdictDrop}},
		}},
		{Name: "ports", Key: [2]policy.Type{policy.TypeService}, Interval: true, Elements: []policy.Element{port(0, 1), port(80, 80), port(443, 445), port(65535, 65535)}},
		{Name: "sampled" + v, Key: [2]policy.Type{policy.TypeAddr}, Dynamic: true, Timeout: 90, Size: 1000, Comment: "of packets"},
		{Name: "self" + v, Key: [2]policy.Type{policy.TypeAddr, policy.TypeAddr}, Elements: []policy.Element{{Key: policy.AddrPairKey(a, a)}, {Key: policy.AddrPairKey(b, b)}}},
		{Name: "services", Key: [2]policy.Type{policy.TypeService}, Elements: []policy.Element{{Key: policy.ServiceKey(22)}, {Key: policy.ServiceKey(80)}}},
	}}
	t.Counters = []policy.Counter{{Name: "allow-ingress-x", Comment: "shop/api, shop/db"}, {Name: "deny-egress"}}
	t.Chains = []policy.Chain{
		{Name: "deny-egress", Rules: []policy.Rule{
			{Sample: policy.Sample{Set: "sampled" + v, Key: policy.FieldSaddr, Rate: 2, Burst: 5}, Log: policy.Log{Group: 24090, Prefix: "deny-egress", Snaplen: 128}},
			{Sample: policy.Sample{Set: "sampled" + v, Key: policy.FieldDaddr, Rate: 100, Burst: 1}, Count: "deny-egress"},
			{Log: policy.Log{Group: 1, Prefix: "x", Snaplen: 65535}, Counter: true, Count: "allow-ingress-x", Stamp: policy.Mark{Mask: 1}, Comment: "all at once"},
			{Match: []policy.Match{{Field: policy.FieldL4Proto, Op: policy.OpEqual, Value: 6}}, Count: "deny-egress", Verdict: policy.Verdict{Kind: policy.VerdictReset}},
			{Match: []policy.Match{{Field: policy.FieldCtOriginalSaddr, And: policy.FieldCtReplySaddr, Op: policy.OpIn, Name: "self" + v}}, Verdict: policy.Verdict{Kind: policy.VerdictReturn}},
			{Match: []policy.Match{{Field: policy.FieldL4Proto, Op: policy.OpEqual, Value: 6}}, Counter: true, Verdict: policy.Verdict{Kind: policy.VerdictReset}},
			{Counter: true, Verdict: policy.Verdict{Kind: policy.VerdictProhibit}},
			{Counter: true, Verdict: policy.Verdict{Kind: policy.VerdictDrop}, Comment: "denied"},
		}},
		{Name: "egress", Rules: everyRule(f)},
		{Name: "empty"},
		{Name: "forward", Hook: &policy.Hook{Name: "forward", Priority: -5}, Rules: []policy.Rule{
			{Match: []policy.Match{
				{Field: policy.FieldCtState, Op: policy.OpBits, Value: policy.StateEstablished | policy.StateRelated},
				{Field: policy.FieldCtMark, Op: policy.OpMasked, Arg: uint32(policy.DefaultMarkMask), Value: 4},
			}, Verdict: policy.Verdict{Kind: policy.VerdictAccept}},
			{Verdict: policy.Verdict{Kind: policy.VerdictJump, Chain: "egress"}},
			{Stamp: policy.Mark{Mask: uint32(policy.DefaultMarkMask), Value: 4}, Verdict: policy.Verdict{Kind: policy.VerdictAccept}},
		}},
		{Name: "input", Hook: &policy.Hook{Name: "input", Priority: 10}, Rules: []policy.Rule{
			{Match: []policy.Match{{Field: policy.FieldIifname, Op: policy.OpEqual, Name: "lo"}}, Verdict: policy.Verdict{Kind: policy.VerdictAccept}},
			{Match: []policy.Match{{Field: policy.FieldIifname, Op: policy.OpEqual, Name: "fifteen-letters"}}, Verdict: policy.Verdict{Kind: policy.VerdictAccept}},
			{Match: []policy.Match{{Field: policy.FieldCtDirection, Op: policy.OpEqual, Value: 0}}, Verdict: policy.Verdict{Kind: policy.VerdictJump, Chain: "egress"}},
			{Match: []policy.Match{{Field: policy.FieldCtDirection, Op: policy.OpEqual, Value: 1}}, Counter: true, Stamp: policy.Mark{Mask: 0xff, Value: 0x80}},
		}},
		{Name: "postrouting", Hook: &policy.Hook{Name: "postrouting", Priority: 110, NAT: true}, Rules: []policy.Rule{
			{Match: []policy.Match{
				{Field: policy.FieldSaddr, Op: policy.OpIn, Name: "block" + v},
				{Field: policy.FieldDaddr, Op: policy.OpNotIn, Name: "block" + v},
				{Field: policy.FieldDaddr, Op: policy.OpNotIn, Name: "empty" + v},
			}, Counter: true, Verdict: policy.Verdict{Kind: policy.VerdictMasquerade}},
			{Match: []policy.Match{
				{Field: policy.FieldCtProtocol, Op: policy.OpEqual, Value: uint32(policy.TCP)},
				{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpNotIn, Name: "services"},
			}, Verdict: policy.Verdict{Kind: policy.VerdictMasquerade}, Comment: "masqueraded"},
		}},
	}
	return t
}

func everyRule(f policy.Family) []policy.Rule {
	v := f.Suffix()
	ret := policy.Verdict{Kind: policy.VerdictReturn}
	tcp := policy.Match{Field: policy.FieldCtProtocol, Op: policy.OpEqual, Value: uint32(policy.TCP)}
	rules := []policy.Rule{
		{Match: []policy.Match{tcp, {Field: policy.FieldCtReplyProtoSrc, Op: policy.OpEqual, Value: 80}}, Verdict: ret, Comment: "shop/api"},
		{Match: []policy.Match{tcp, {Field: policy.FieldCtReplyProtoSrc, Op: policy.OpRange, Value: 443, Arg: 445}}, Verdict: ret},
		{Match: []policy.Match{tcp, {Field: policy.FieldCtReplyProtoSrc, Op: policy.OpIn, Name: "ports"}}, Verdict: ret},
		{Match: []policy.Match{tcp, {Field: policy.FieldCtReplyProtoSrc, Op: policy.OpIn, Name: "services"}}, Verdict: ret},
		{Match: []policy.Match{tcp, {Field: policy.FieldCtReplySaddr, And: policy.FieldCtReplyProtoSrc, Op: policy.OpIn, Name: "named" + v}}, Verdict: ret},
		{Match: []policy.Match{{Field: policy.FieldCtProtocol, Op: policy.OpEqual, Value: uint32(policy.SCTP)}}, Verdict: ret},
		{Match: []policy.Match{{Field: policy.FieldL4Proto, Op: policy.OpEqual, Value: uint32(policy.UDP)}}, Verdict: ret},
		{Match: []policy.Match{{Field: policy.FieldCtMark, Op: policy.OpEqual, Value: 5}}, Verdict: ret},
		{Match: []policy.Match{{Field: policy.FieldCtState, Op: policy.OpBits, Value: policy.StateInvalid | policy.StateUntracked}}, Verdict: ret},
		{Match: []policy.Match{{Field: policy.FieldCtState, Op: policy.OpBits, Value: policy.StateNew}}, Verdict: policy.Verdict{Kind: policy.VerdictGoto, Chain: "deny-egress"}},
	}
	if f == policy.IPv6 {
		rules = append(rules,
			policy.Rule{Match: []policy.Match{
				{Field: policy.FieldICMPv6Type, Op: policy.OpRange, Value: 133, Arg: 137},
				{Field: policy.FieldHopLimit, Op: policy.OpEqual, Value: 255},
			}, Verdict: ret},
			policy.Rule{Match: []policy.Match{
				{Field: policy.FieldICMPv6Type, Op: policy.OpRange, Value: 1, Arg: 127},
				{Field: policy.FieldICMPv6Type, Op: policy.OpEqual, Value: 3},
			}, Verdict: ret},
			policy.Rule{Match: []policy.Match{{Field: policy.FieldHopLimit, Op: policy.OpRange, Value: 1, Arg: 7}}, Verdict: ret},
			policy.Rule{Match: []policy.Match{{Field: policy.FieldICMPv6Type, Op: policy.OpEqual, Value: 143}}, Verdict: ret},
		)
	}
	lengths := []int{0, 1, 7, 8, 9, 16, 20, 24, 31, 32}
	if f == policy.IPv6 {
		lengths = []int{0, 7, 8, 61, 64, 72, 127, 128}
	}
	for _, fd := range []policy.Field{policy.FieldCtOriginalSaddr, policy.FieldCtReplySaddr, policy.FieldSaddr, policy.FieldDaddr} {
		for _, n := range lengths {
			p := netip.PrefixFrom(addr(f, "10.129.34.77", "fd12:3456:789a:bcde:f123:4567:89ab:cdef"), n).Masked()
			rules = append(rules, policy.Rule{Match: []policy.Match{{Field: fd, Op: policy.OpPrefix, Prefix: p}}, Verdict: ret})
		}
		rules = append(rules,
			policy.Rule{Match: []policy.Match{{Field: fd, Op: policy.OpIn, Name: "block" + v}}, Verdict: ret},
			policy.Rule{Match: []policy.Match{{Field: fd, Op: policy.OpIn, Name: "empty" + v}}, Verdict: ret},
		)
	}
	return rules
}

// fill returns the change that makes r out of nothing.
func fill(r *policy.Ruleset) *policy.Change {
	c := &policy.Change{}
	for i := range r.Tables {
		t := &c.Tables[i]
		t.Family, t.AddCounters, t.AddSets = r.Tables[i].Family, r.Tables[i].Counters, r.Tables[i].Sets
		for _, ch := range r.Tables[i].Chains {
			if ch.Hook == nil {
				t.AddChains = append(t.AddChains, ch)
			} else {
				t.SetChains = append(t.SetChains, ch)
			}
		}
	}
	return c
}

// large returns a ruleset of a node with the given numbers of rules, in chains
// of ten, and peers in one map.
func large(rules, peers int) *policy.Ruleset {
	r := &policy.Ruleset{}
	t := &r.Tables[policy.IPv4]
	r.Tables[policy.IPv6].Family = policy.IPv6
	forward := policy.Chain{Name: "forward", Hook: &policy.Hook{Name: "forward", Priority: -5}}
	for i := range (rules + 9) / 10 {
		ch := policy.Chain{Name: fmt.Sprintf("egress-%06d", i)}
		for j := range min(10, rules-10*i) {
			ch.Rules = append(ch.Rules, policy.Rule{
				Match: []policy.Match{
					{Field: policy.FieldCtProtocol, Op: policy.OpEqual, Value: uint32(policy.TCP)},
					{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpEqual, Value: uint32(j + 1)},
				},
				Verdict: policy.Verdict{Kind: policy.VerdictReturn},
				Comment: "shop/api",
			})
		}
		t.Chains = append(t.Chains, ch)
	}
	peersMap := policy.Set{Name: "egress-peers-v4", Key: [2]policy.Type{policy.TypeAddr}, Verdicts: true}
	for i := range peers {
		v := policy.Verdict{Kind: policy.VerdictReturn}
		if i%2 == 1 && len(t.Chains) > 0 {
			v = policy.Verdict{Kind: policy.VerdictGoto, Chain: t.Chains[i%len(t.Chains)].Name}
		}
		peersMap.Elements = append(peersMap.Elements, policy.Element{Key: peerKey(i), Verdict: v})
	}
	slices.SortFunc(peersMap.Elements, func(a, b policy.Element) int { return strings.Compare(a.Key, b.Key) })
	t.Sets = []policy.Set{peersMap}
	forward.Rules = []policy.Rule{{Match: []policy.Match{{Field: policy.FieldCtReplySaddr, Op: policy.OpVerdict, Name: "egress-peers-v4"}}}}
	t.Chains = append(t.Chains, forward)
	return r
}

func peerKey(i int) string { return string([]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
