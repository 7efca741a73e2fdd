package nft

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
)

// drawRuleset draws a ruleset that a kernel accepts. What a set is called says
// of what kind it is, as it is with the compiler's sets.
func drawRuleset(t *rapid.T) *policy.Ruleset {
	r := &policy.Ruleset{}
	for _, f := range policy.Families {
		r.Tables[f].Family = f
		if rapid.IntRange(0, 9).Draw(t, "empty") > 0 {
			r.Tables[f] = drawTable(t, f)
		}
	}
	return r
}

// drawTable draws leaf chains, maps that lead there, chains that use all sets
// and jump to leaves, and base chains that jump to those: chains must not loop.
func drawTable(t *rapid.T, f policy.Family) policy.Table {
	d := drawing{T: t, family: f}
	table := policy.Table{Family: f}
	for i := range 3 {
		if rapid.Bool().Draw(t, "leaf") {
			d.targets = append(d.targets, fmt.Sprintf("leaf-%d", i))
		}
	}
	leaves := d.targets
	for _, kind := range setKinds {
		for i := range 2 {
			if rapid.Bool().Draw(t, "set") {
				d.sets = append(d.sets, d.set(fmt.Sprintf("%s-%d%s", kind.name, i, f.Suffix()), kind))
			}
		}
	}
	for i := range 3 {
		if rapid.Bool().Draw(t, "counter") {
			d.counters = append(d.counters, policy.Counter{Name: fmt.Sprintf("counter-%d", i), Comment: d.comment()})
		}
	}
	table.Counters = d.counters
	table.Sets = slices.Clone(d.sets)
	sets := d.sets
	d.sets, d.targets = nil, nil
	for _, name := range leaves {
		table.Chains = append(table.Chains, policy.Chain{Name: name, Rules: d.rules()})
	}
	d.sets, d.targets = sets, leaves
	mids := []string{"mid-0", "mid-1"}[:rapid.IntRange(0, 2).Draw(t, "mids")]
	for _, name := range mids {
		table.Chains = append(table.Chains, policy.Chain{Name: name, Rules: d.rules()})
	}
	d.targets = append(slices.Clone(leaves), mids...)
	for _, hook := range []string{hookForward, hookInput} {
		if rapid.Bool().Draw(t, hook) {
			table.Chains = append(table.Chains, policy.Chain{
				Name: hook, Hook: &policy.Hook{Name: hook, Priority: rapid.SampledFrom([]int32{-5, 0, 10, -300}).Draw(t, "priority")}, Rules: d.rules(),
			})
		}
	}
	if rapid.Bool().Draw(t, hookPostrouting) {
		d.targets, d.verdicts = nil, []policy.VerdictKind{policy.VerdictAccept, policy.VerdictReturn}
		hook := policy.Hook{Name: hookPostrouting, Priority: rapid.SampledFrom([]int32{99, 100, 110, 300}).Draw(t, "priority")}
		if hook.NAT = rapid.Bool().Draw(t, "nat"); hook.NAT {
			d.verdicts = append(d.verdicts, policy.VerdictMasquerade)
		}
		table.Chains = append(table.Chains, policy.Chain{Name: hookPostrouting, Hook: &hook, Rules: d.rules()})
	}
	slices.SortFunc(table.Chains, func(a, b policy.Chain) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(table.Sets, func(a, b policy.Set) int { return strings.Compare(a.Name, b.Name) })
	return table
}

type setKind struct {
	name               string
	key                [2]policy.Type
	interval, verdicts bool
	size               uint32
	timeout            uint32
}

var setKinds = []setKind{
	{name: "sel", key: [2]policy.Type{policy.TypeAddr}},
	{name: "sized", key: [2]policy.Type{policy.TypeAddr}, size: 64},
	{name: "block", key: [2]policy.Type{policy.TypeAddr}, interval: true},
	{name: "pods", key: [2]policy.Type{policy.TypeAddr}, verdicts: true},
	{name: "fast", key: [2]policy.Type{policy.TypeAddr}, verdicts: true, size: 32},
	{name: "ports", key: [2]policy.Type{policy.TypeService}, interval: true},
	{name: "services", key: [2]policy.Type{policy.TypeService}},
	{name: "portmap", key: [2]policy.Type{policy.TypeService}, verdicts: true},
	{name: "named", key: [2]policy.Type{policy.TypeAddr, policy.TypeService}},
	{name: "self", key: [2]policy.Type{policy.TypeAddr, policy.TypeAddr}},
	{name: "sampled", key: [2]policy.Type{policy.TypeAddr}, size: 100, timeout: 60},
}

// drawing draws the parts of a table.
type drawing struct {
	*rapid.T
	family policy.Family
	// counters, sets and targets are what rules may refer to.
	counters []policy.Counter
	sets     []policy.Set
	targets  []string
	// verdicts, if not nil, are those that rules may give: a chain at postrouting
	// may not lead to one that rejects.
	verdicts []policy.VerdictKind
	// proto is the protocol of the rule being drawn.
	proto policy.Protocol
}

func (d *drawing) set(name string, k setKind) policy.Set {
	s := policy.Set{Name: name, Key: k.key, Interval: k.interval, Verdicts: k.verdicts, Size: k.size, Dynamic: k.timeout != 0, Timeout: k.timeout, Comment: d.comment()}
	if s.Dynamic {
		return s
	}
	n := rapid.IntRange(0, 12).Draw(d.T, "elements")
	if k.interval {
		s.Elements = d.intervals(k.key[0], n)
		return s
	}
	seen := map[string]bool{}
	for range n {
		e := policy.Element{Key: d.key(k.key)}
		if k.verdicts {
			e.Verdict = d.verdict(false)
		}
		if !seen[e.Key] {
			seen[e.Key] = true
			s.Elements = append(s.Elements, e)
		}
	}
	slices.SortFunc(s.Elements, func(a, b policy.Element) int { return strings.Compare(a.Key, b.Key) })
	return s
}

func (d *drawing) key(types [2]policy.Type) string {
	switch types {
	case [2]policy.Type{policy.TypeAddr}:
		return policy.AddrKey(d.addr())
	case [2]policy.Type{policy.TypeService}:
		return policy.ServiceKey(d.port())
	case [2]policy.Type{policy.TypeAddr, policy.TypeService}:
		return policy.AddrServiceKey(d.addr(), d.port())
	}
	return policy.AddrPairKey(d.addr(), d.addr())
}

// addr draws from few addresses, so that rulesets have some in common, and
// from the edges.
func (d *drawing) addr() netip.Addr {
	b := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 10, 127, 128, 254, 255}), d.family.Bits()/8, d.family.Bits()/8).Draw(d.T, "address")
	if rapid.Bool().Draw(d.T, "edge") {
		fill := rapid.SampledFrom([]byte{0, 255}).Draw(d.T, "fill")
		for i := 1; i < len(b)-1; i++ {
			b[i] = fill
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (d *drawing) port() uint16 {
	return rapid.OneOf(rapid.SampledFrom([]uint16{0, 1, 80, 443, 65534, 65535}), rapid.Uint16()).Draw(d.T, "port")
}

// intervals draws ranges that do not overlap, some of which touch.
func (d *drawing) intervals(typ policy.Type, n int) []policy.Element {
	var out []policy.Element
	for _, e := range d.ranges(typ, n) {
		if e.Key != e.To && rapid.Bool().Draw(d.T, "cut") {
			out = append(out, policy.Element{Key: e.Key, To: decrement(e.To)})
			e.Key = e.To
		}
		out = append(out, e)
	}
	return out
}

// ranges draws ranges and joins those that overlap or touch.
func (d *drawing) ranges(typ policy.Type, n int) []policy.Element {
	if typ == policy.TypeAddr {
		var b netipx.IPSetBuilder
		for range n {
			x, y := d.addr(), d.addr()
			if rapid.Bool().Draw(d.T, "prefix") {
				b.AddPrefix(netip.PrefixFrom(x, rapid.IntRange(0, d.family.Bits()).Draw(d.T, "bits")))
			} else if y.Less(x) {
				b.AddRange(netipx.IPRangeFrom(y, x))
			} else {
				b.AddRange(netipx.IPRangeFrom(x, y))
			}
		}
		set, err := b.IPSet()
		if err != nil {
			d.Fatal(err)
		}
		var out []policy.Element
		for _, r := range set.Ranges() {
			out = append(out, policy.Element{Key: policy.AddrKey(r.From()), To: policy.AddrKey(r.To())})
		}
		return out
	}
	type ports struct{ from, to uint16 }
	var list []ports
	for range n {
		a, b := d.port(), d.port()
		list = append(list, ports{min(a, b), max(a, b)})
	}
	slices.SortFunc(list, func(a, b ports) int { return cmp.Compare(a.from, b.from) })
	var joined []ports
	for _, p := range list {
		if last := len(joined) - 1; last >= 0 && uint32(p.from) <= uint32(joined[last].to)+1 {
			joined[last].to = max(joined[last].to, p.to)
			continue
		}
		joined = append(joined, p)
	}
	var out []policy.Element
	for _, p := range joined {
		out = append(out, policy.Element{Key: policy.ServiceKey(p.from), To: policy.ServiceKey(p.to)})
	}
	return out
}

func (d *drawing) comment() string {
	if rapid.Bool().Draw(d.T, "commented") {
		return rapid.StringMatching(`[a-zA-Z0-9/,.: -]{1,127}[a-z]`).Draw(d.T, "comment")
	}
	return ""
}

func (d *drawing) verdict(rule bool) policy.Verdict {
	kinds := []policy.VerdictKind{policy.VerdictAccept, policy.VerdictDrop, policy.VerdictReturn}
	if rule {
		kinds = append(kinds, policy.VerdictReset, policy.VerdictProhibit)
	}
	if d.verdicts != nil {
		kinds = d.verdicts
	}
	if len(d.targets) > 0 {
		kinds = append(kinds, policy.VerdictJump, policy.VerdictGoto)
	}
	v := policy.Verdict{Kind: rapid.SampledFrom(kinds).Draw(d.T, "verdict")}
	if v.Kind == policy.VerdictJump || v.Kind == policy.VerdictGoto {
		v.Chain = rapid.SampledFrom(d.targets).Draw(d.T, "target")
	}
	return v
}

func (d *drawing) rules() []policy.Rule {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) policy.Rule {
		inner := *d
		inner.T = t
		return inner.rule()
	}), 0, 5).Draw(d.T, "rules")
}

func (d *drawing) rule() policy.Rule {
	r := policy.Rule{Counter: rapid.Bool().Draw(d.T, "counter"), Comment: d.comment()}
	// nft(8) wants the matches of a rule to agree on the protocol, and to know
	// it before it is told of a port.
	d.proto = rapid.SampledFrom([]policy.Protocol{policy.TCP, policy.UDP, policy.SCTP, ipProtoICMPv6}).Draw(d.T, "protocol")
	for range rapid.IntRange(0, 3).Draw(d.T, "matches") {
		m := d.match()
		if m.Field == policy.FieldCtReplyProtoSrc || m.And == policy.FieldCtReplyProtoSrc {
			if d.proto == ipProtoICMPv6 {
				continue
			}
			r.Match = append(r.Match, policy.Match{Field: policy.FieldCtProtocol, Op: policy.OpEqual, Value: uint32(d.proto)})
		}
		r.Match = append(r.Match, m)
	}
	d.statements(&r)
	if rapid.Bool().Draw(d.T, "stamp") {
		mask := rapid.Uint32Range(1, 1<<32-1).Draw(d.T, "mask")
		r.Stamp = policy.Mark{Mask: mask, Value: rapid.Uint32().Draw(d.T, "value") & mask}
	}
	last := len(r.Match) - 1
	if last >= 0 && rapid.Bool().Draw(d.T, "vmap") && !acts(&r) && d.verdicts == nil {
		if m, ok := d.lookup(policy.OpVerdict); ok && (m.Field != policy.FieldCtReplyProtoSrc || d.proto != ipProtoICMPv6) {
			if m.Field == policy.FieldCtReplyProtoSrc {
				r.Match = append(r.Match, policy.Match{Field: policy.FieldCtProtocol, Op: policy.OpEqual, Value: uint32(d.proto)})
			}
			r.Match = append(r.Match, m)
			return r
		}
	}
	if rapid.Bool().Draw(d.T, "verdict") || len(r.Match) == 0 && !acts(&r) {
		r.Verdict = d.verdict(true)
	}
	if r.Verdict.Kind == policy.VerdictReset && d.proto != policy.TCP {
		r.Verdict.Kind = policy.VerdictDrop
	}
	if r.Verdict.Kind == policy.VerdictReset {
		r.Match = append(r.Match, policy.Match{Field: policy.FieldL4Proto, Op: policy.OpEqual, Value: uint32(policy.TCP)})
	}
	return r
}

// acts tells whether a rule does anything but match and give a verdict.
func acts(r *policy.Rule) bool {
	return r.Counter || r.Count != "" || r.Sample.Set != "" || r.Log.Group != 0 || r.Stamp.Mask != 0
}

// statements draws what a rule does before it stamps.
func (d *drawing) statements(r *policy.Rule) {
	if len(d.counters) > 0 && rapid.Bool().Draw(d.T, "count") {
		r.Count = rapid.SampledFrom(d.counters).Draw(d.T, "in counter").Name
	}
	if rapid.IntRange(0, 3).Draw(d.T, "log") == 0 {
		r.Log = policy.Log{
			Group:   rapid.Uint16Range(1, 65535).Draw(d.T, "group"),
			Prefix:  rapid.StringMatching(`[a-z][a-z0-9-]{0,126}`).Draw(d.T, "prefix"),
			Snaplen: rapid.Uint32Range(1, 65535).Draw(d.T, "snaplen"),
		}
	}
	sampled := slices.DeleteFunc(slices.Clone(d.sets), func(s policy.Set) bool { return !s.Dynamic })
	if len(sampled) > 0 && rapid.Bool().Draw(d.T, "sample") {
		r.Sample = policy.Sample{
			Set:  rapid.SampledFrom(sampled).Draw(d.T, "sampled in").Name,
			Key:  rapid.SampledFrom([]policy.Field{policy.FieldSaddr, policy.FieldDaddr}).Draw(d.T, "sampled by"),
			Rate: rapid.Uint32Range(1, 1000).Draw(d.T, "rate"), Burst: rapid.Uint32Range(1, 1000).Draw(d.T, "burst"),
		}
	}
}

func (d *drawing) match() policy.Match {
	number := rapid.Uint32()
	octet := func(name string) uint32 { return uint32(rapid.Byte().Draw(d.T, name)) }
	address := rapid.SampledFrom([]policy.Field{policy.FieldCtOriginalSaddr, policy.FieldCtReplySaddr, policy.FieldSaddr, policy.FieldDaddr})
	switch rapid.IntRange(0, 11).Draw(d.T, "match") {
	case 0:
		return policy.Match{Field: policy.FieldCtState, Op: policy.OpBits, Value: rapid.Uint32Range(1, 15).Draw(d.T, "state")}
	case 1:
		return policy.Match{Field: policy.FieldCtMark, Op: policy.OpMasked, Arg: number.Draw(d.T, "mask"), Value: number.Draw(d.T, "mark")}
	case 2:
		return policy.Match{Field: policy.FieldCtMark, Op: policy.OpEqual, Value: number.Draw(d.T, "mark")}
	case 3:
		return policy.Match{Field: policy.FieldCtDirection, Op: policy.OpEqual, Value: rapid.Uint32Range(0, 1).Draw(d.T, "direction")}
	case 4:
		if d.proto != ipProtoICMPv6 {
			field := rapid.SampledFrom([]policy.Field{policy.FieldCtProtocol, policy.FieldL4Proto}).Draw(d.T, "protocol of")
			return policy.Match{Field: field, Op: policy.OpEqual, Value: uint32(d.proto)}
		}
	case 5:
		return policy.Match{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpEqual, Value: uint32(d.port())}
	case 6:
		a, b := uint32(d.port()), uint32(d.port())
		return policy.Match{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpRange, Value: min(a, b), Arg: max(a, b)}
	case 7:
		p := netip.PrefixFrom(d.addr(), rapid.IntRange(0, d.family.Bits()).Draw(d.T, "bits")).Masked()
		return policy.Match{Field: address.Draw(d.T, "address of"), Op: policy.OpPrefix, Prefix: p}
	case 8:
		return policy.Match{Field: policy.FieldIifname, Op: policy.OpEqual, Name: rapid.StringMatching(`[a-z][a-z0-9.-]{0,14}`).Draw(d.T, "iifname")}
	case 9:
		if d.family == policy.IPv6 {
			field := policy.FieldHopLimit
			if d.proto == ipProtoICMPv6 {
				field = policy.FieldICMPv6Type
			}
			a, b := octet("from"), octet("to")
			if a < b {
				return policy.Match{Field: field, Op: policy.OpRange, Value: a, Arg: b}
			}
			return policy.Match{Field: field, Op: policy.OpEqual, Value: a}
		}
	}
	if m, ok := d.lookup(policy.OpIn); ok {
		if m.And == policy.FieldNone && rapid.Bool().Draw(d.T, "negated") {
			m.Op = policy.OpNotIn
		}
		return m
	}
	return policy.Match{Field: policy.FieldCtDirection, Op: policy.OpEqual}
}

// lookup draws a match in one of the sets, or, for OpVerdict, the maps.
func (d *drawing) lookup(op policy.Op) (policy.Match, bool) {
	fit := slices.DeleteFunc(slices.Clone(d.sets), func(s policy.Set) bool { return s.Dynamic || s.Verdicts != (op == policy.OpVerdict) })
	if len(fit) == 0 {
		return policy.Match{}, false
	}
	s := rapid.SampledFrom(fit).Draw(d.T, "in")
	m := policy.Match{Op: op, Name: s.Name, Field: d.fieldOf(s.Key[0])}
	if s.Key[1] != 0 {
		m.And = d.fieldOf(s.Key[1])
	}
	return m, true
}

func (d *drawing) fieldOf(typ policy.Type) policy.Field {
	if typ == policy.TypeService {
		return policy.FieldCtReplyProtoSrc
	}
	return rapid.SampledFrom([]policy.Field{policy.FieldCtOriginalSaddr, policy.FieldCtReplySaddr, policy.FieldSaddr, policy.FieldDaddr}).Draw(d.T, "address of")
}
