package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
)

// peerField is where the other end of a connection is found.
func (d direction) peerField() Field {
	if d == ingress {
		return FieldCtOriginalSaddr
	}
	return FieldCtReplySaddr
}

// render gives the signature's chain its rules, and its sets their elements,
// in one family. The order of rules does not matter for the verdict: all of
// them allow. What is cheap and likely comes first.
func (c *Compiler) render(s *signature, t *liveTable) {
	r := ruleWriter{c: c, t: t, s: s}
	r.ports(nil, &s.allow.anyone, s.allow.anyoneBy)
	if s.allow.all() {
		s.peers = nil
		t.setChain(s.chain, nil, r.rules)
		return
	}
	for i := range s.allow.blocks {
		b := &s.allow.blocks[i]
		if elements := blockElements(b.set, t.family); len(elements) > 0 {
			set := t.addSet(blockSet(elements, t.family), roleFixed)
			r.ports([]Match{{Field: s.dir.peerField(), Op: OpIn, Name: set.Name}}, &b.ports, b.by)
		}
	}
	for _, sel := range slices.SortedFunc(maps.Keys(s.allow.pods), compareSelectors) {
		if sel.shared {
			a := s.allow.pods[sel]
			r.ports([]Match{{Field: s.dir.peerField(), Op: OpIn, Name: c.sharedSet(sel, t).Name}}, &a.ports, a.by)
		}
	}
	c.renderPeers(&r, s)
	r.rules = append(r.rules, Rule{Verdict: Verdict{Kind: VerdictGoto, Chain: c.denyChain(t, s)}, Comment: comment("isolated by ", s.policies)})
	t.setChain(s.chain, nil, r.rules)
}

// sharedSet returns the set of a selector's pods.
func (c *Compiler) sharedSet(s *selector, t *liveTable) *liveSet {
	name := s.setName(t.family)
	if set := t.sets[name]; set != nil {
		return set
	}
	set := t.addSet(Set{Name: name, Key: [2]Type{TypeAddr}, Comment: clip(s.key)}, roleAllow)
	c.owned(s, t.family, func(a netip.Addr) { t.setElem(set, AddrKey(a), true, Verdict{}) })
	return set
}

func namedSetName(n namedPort, f Family) string {
	return "named-" + hash(n.protocol.String()+"/"+n.name) + f.Suffix()
}

// namedSet returns the set of all pods that have a port of that name, with its
// number. It serves egress rules whose peers are not listed one by one.
func (c *Compiler) namedSet(n namedPort, t *liveTable) *liveSet {
	name := namedSetName(n, t.family)
	if set := t.sets[name]; set != nil {
		return set
	}
	set := t.addSet(Set{Name: name, Key: [2]Type{TypeAddr, TypeService}, Comment: clip("port " + n.name + "/" + n.protocol.String())}, roleNamed)
	for a, p := range c.owners {
		if FamilyOf(a) != t.family {
			continue
		}
		for _, port := range p.Ports {
			if port.Name == n.name && port.Protocol == n.protocol {
				t.setElem(set, AddrServiceKey(a, port.Port), true, Verdict{})
			}
		}
	}
	return set
}

// ruleWriter gathers the rules of a signature's chain.
type ruleWriter struct {
	c     *Compiler
	t     *liveTable
	s     *signature
	rules []Rule
}

// pass returns the rule that lets through what matches, because of these policies.
func (w *ruleWriter) pass(by []key, match ...Match) Rule {
	return Rule{Match: match, Count: w.t.allowCounter(w.s.dir, by), Verdict: Verdict{Kind: VerdictReturn}, Comment: comment("", by)}
}

// ports writes the rules that let through what matches and has one of the
// ports: one for each protocol, and one for each named port.
func (w *ruleWriter) ports(match []Match, ports *portSet, by []key) {
	pass := func(extra ...Match) { w.rules = append(w.rules, w.pass(by, slices.Concat(extra, match)...)) }
	if ports.all {
		pass()
		return
	}
	for i, ranges := range ports.ranges {
		if len(ranges) == 0 {
			continue
		}
		protocol := Match{Field: FieldCtProtocol, Op: OpEqual, Value: uint32(protocols[i])}
		port := Match{Field: FieldCtReplyProtoSrc, Value: uint32(ranges[0].from), Arg: uint32(ranges[0].to)}
		switch {
		case ranges[0] == everyPort:
			pass(protocol)
			continue
		case len(ranges) > 1:
			port = Match{Field: FieldCtReplyProtoSrc, Op: OpIn, Name: w.t.addSet(portsSet(ranges), roleFixed).Name}
		case ranges[0].from == ranges[0].to:
			port.Op, port.Arg = OpEqual, 0
		default:
			port.Op = OpRange
		}
		pass(protocol, port)
	}
	for _, n := range ports.named {
		pass(Match{Field: FieldCtProtocol, Op: OpEqual, Value: uint32(n.protocol)},
			Match{Field: FieldCtReplySaddr, And: FieldCtReplyProtoSrc, Op: OpIn, Name: w.c.namedSet(n, w.t).Name})
	}
}

// portsSet is the set of several ports or ranges. It serves both families'
// tables, and TCP as well as UDP.
func portsSet(ranges []portRange) Set {
	s := Set{Name: "ports-" + hash(rangesKey(ranges)), Key: [2]Type{TypeService}, Interval: true}
	for _, r := range ranges {
		s.Elements = append(s.Elements, Element{Key: ServiceKey(r.from), To: ServiceKey(r.to)})
	}
	return s
}

// blockSet is the set of the addresses of ipBlocks. Its name is made from its
// contents, so that equal blocks share it and it never changes.
func blockSet(elements []Element, f Family) Set {
	var b strings.Builder
	for _, e := range elements {
		b.WriteString(e.Key)
		b.WriteString(e.To)
	}
	return Set{Name: "block-" + hash(b.String()) + f.Suffix(), Key: [2]Type{TypeAddr}, Interval: true, Elements: elements}
}

// blockElements returns the set's ranges in one family.
func blockElements(set *netipx.IPSet, f Family) []Element {
	var out []Element
	for _, r := range set.Ranges() {
		if FamilyOf(r.From()) == f {
			out = append(out, Element{Key: AddrKey(r.From()), To: AddrKey(r.To())})
		}
	}
	return out
}

// maxComment is how long nft lets a comment be.
const maxComment = 128

// comment names policies in the comment of a rule.
func comment(prefix string, by []key) string {
	var b strings.Builder
	b.WriteString(prefix)
	for i, k := range by {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(k.namespace + "/" + k.name)
	}
	return clip(b.String())
}

// clip makes a text fit for a comment: nft has no escape for a quote, and
// names in manifests may hold anything.
func clip(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '?'
		}
		return r
	}, text)
	if len(text) > maxComment-1 {
		return text[:maxComment-4] + "..."
	}
	return text
}
