package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// The pods that a signature allows, unless their selector has a set of its
// own, are in sets of the signature's, by the ports that they are allowed.
//
// It would be shorter to have one verdict map from a peer's address to a chain
// with its ports. But for each element with a goto that enters a map in use,
// the kernel walks through all elements of all maps again to look for loops
// (nft_chain_validate in net/netfilter/nf_tables_api.c): some 10 ms at 100,000
// peers, against some 50 us for an element of a set. So it is the ports, which
// change with policies only, that a verdict map leads on from.

// fewGroups is up to how many different lists of ports a signature has a rule
// for each. With more it looks up the port first, so that a new connection
// costs the same however many lists there are.
const fewGroups = 3

// peerGroup are the selectors that a signature allows the same ports.
type peerGroup struct {
	ports portSet
	by    []key
}

// peerSet is a set of those peers of a signature that are in one of some groups.
type peerSet struct {
	name   string // without the family's suffix
	groups []string
	about  string
}

// holds tells whether a peer of these groups is in the set.
func (ps *peerSet) holds(groups []string) bool {
	return slices.ContainsFunc(groups, func(g string) bool { return slices.Contains(ps.groups, g) })
}

// groups sorts the selectors without a set of their own by what they are allowed.
func (s *signature) groups() map[string]*peerGroup {
	out := map[string]*peerGroup{}
	for _, sel := range slices.SortedFunc(maps.Keys(s.allow.pods), compareSelectors) {
		if sel.shared {
			continue
		}
		a := s.allow.pods[sel]
		id := a.group
		g := out[id]
		if g == nil {
			g = &peerGroup{ports: a.ports}
			out[id] = g
		}
		for _, k := range a.by {
			if !slices.Contains(g.by, k) {
				g.by = append(g.by, k)
			}
		}
	}
	for _, g := range out {
		slices.SortFunc(g.by, compareNames)
	}
	return out
}

// compareNames orders policies of one namespace.
func compareNames(a, b key) int { return strings.Compare(a.name, b.name) }

func compareSelectors(a, b *selector) int { return strings.Compare(a.key, b.key) }

// peerWriter writes the rules about a signature's own peers.
type peerWriter struct {
	ruleWriter
	groups map[string]*peerGroup
	sets   map[string]*peerSet
}

// renderPeers writes the rules about the peers that are in sets of the
// signature's own, and makes these sets what they should be.
func (c *Compiler) renderPeers(r *ruleWriter, s *signature) {
	w := peerWriter{ruleWriter: *r, groups: s.groups(), sets: map[string]*peerSet{}}
	ids := slices.Sorted(maps.Keys(w.groups))
	if len(ids) <= fewGroups {
		for _, id := range ids {
			w.group(id, w.groups[id].ports)
		}
	} else {
		w.byPort(ids)
	}
	s.peers = s.peers[:0]
	for _, name := range slices.Sorted(maps.Keys(w.sets)) {
		s.peers = append(s.peers, *w.sets[name])
	}
	r.rules = w.rules
	c.fillPeers(r.t, s)
}

// set returns the match of a peer in one of the groups.
func (w *peerWriter) set(groups ...string) Match {
	slices.Sort(groups)
	name := w.s.dir.String() + "-peers-" + hash(w.s.chain+" "+strings.Join(groups, " "))
	if w.sets[name] == nil {
		w.sets[name] = &peerSet{name: name, groups: groups, about: clip(w.s.chain + ": " + strings.Join(groups, " "))}
	}
	set := w.t.addSet(Set{Name: name + w.t.family.Suffix(), Key: [2]Type{TypeAddr}, Comment: w.sets[name].about}, roleAllow)
	return Match{Field: w.s.dir.peerField(), Op: OpIn, Name: set.Name}
}

// by returns the policies that allow something to one of the groups.
func (w *peerWriter) by(groups []string) []key {
	var by []key
	for _, id := range groups {
		by = append(by, w.groups[id].by...)
	}
	slices.SortFunc(by, compareNames)
	return slices.Compact(by)
}

// group writes rules for one group and some of its ports.
func (w *peerWriter) group(id string, ports portSet) {
	if !ports.empty() {
		w.ports([]Match{w.set(id)}, &ports, w.groups[id].by)
	}
}

// byPort writes rules that look up the port first. What does not go by the
// number of a port has rules of its own before that.
func (w *peerWriter) byPort(ids []string) {
	for _, id := range ids {
		g := w.groups[id]
		w.group(id, portSet{all: g.ports.all, named: g.ports.named})
	}
	var whole, some [len(protocols)][]string
	for _, id := range ids {
		for i, ranges := range w.groups[id].ports.ranges {
			switch {
			case len(ranges) == 0:
			case ranges[0] == everyPort:
				whole[i] = append(whole[i], id)
			default:
				some[i] = append(some[i], id)
			}
		}
	}
	for i, ids := range whole {
		if len(ids) > 0 {
			var ports portSet
			ports.ranges[i] = []portRange{everyPort}
			w.ports([]Match{w.set(ids...)}, &ports, w.by(ids))
		}
	}
	for i, ids := range some {
		if len(ids) > 0 {
			w.rules = append(w.rules, Rule{Match: []Match{
				{Field: FieldCtProtocol, Op: OpEqual, Value: uint32(protocols[i])},
				{Field: FieldCtReplyProtoSrc, Op: OpVerdict, Name: w.portMap(i, ids).Name},
			}})
		}
	}
}

// portMap returns the map from the ports of a protocol to the chains of those
// who may use them.
func (w *peerWriter) portMap(protocol int, ids []string) *liveSet {
	spec := Set{Key: [2]Type{TypeService}, Verdicts: true, Comment: clip(w.s.chain + ": " + protocols[protocol].String())}
	var content strings.Builder
	for _, r := range splitRanges(ids, func(id string) []portRange { return w.groups[id].ports.ranges[protocol] }) {
		chain := w.portChain(r.groups)
		e := Element{Key: ServiceKey(r.from), To: ServiceKey(r.to), Verdict: Verdict{Kind: VerdictGoto, Chain: chain}}
		spec.Elements = append(spec.Elements, e)
		spec.Interval = spec.Interval || r.from != r.to
		content.WriteString(" " + rangesKey([]portRange{r.portRange}) + "=" + chain)
	}
	if !spec.Interval {
		for i := range spec.Elements {
			spec.Elements[i].To = ""
		}
	}
	spec.Name = w.s.dir.String() + "-ports-" + hash(w.s.chain+" "+protocols[protocol].String()+content.String())
	return w.t.addSet(spec, roleFixed)
}

// portChain returns the chain for a port that peers of these groups may use.
func (w *peerWriter) portChain(groups []string) string {
	match := w.set(groups...)
	name := w.s.dir.String() + "-port-" + hash(match.Name)
	w.t.setChain(name, nil, []Rule{
		w.pass(w.by(groups), match),
		{Verdict: Verdict{Kind: VerdictGoto, Chain: w.c.denyChain(w.t, w.s)}, Comment: comment("isolated by ", w.s.policies)},
	})
	return name
}

// groupedRange is a range of ports that the same groups may use.
type groupedRange struct {
	portRange
	groups []string
}

// splitRanges divides the ranges of all groups where the ranges of one begin
// or end.
func splitRanges(ids []string, of func(string) []portRange) []groupedRange {
	var starts []int
	for _, id := range ids {
		for _, r := range of(id) {
			starts = append(starts, int(r.from), int(r.to)+1)
		}
	}
	slices.Sort(starts)
	starts = slices.Compact(starts)
	var out []groupedRange
	for i := 0; i+1 < len(starts); i++ {
		part := groupedRange{portRange: portRange{uint16(starts[i]), uint16(starts[i+1] - 1)}}
		for _, id := range ids {
			if slices.ContainsFunc(of(id), func(r portRange) bool { return r.from <= part.from && part.to <= r.to }) {
				part.groups = append(part.groups, id)
			}
		}
		if last := len(out) - 1; last >= 0 && int(out[last].to)+1 == int(part.from) && slices.Equal(out[last].groups, part.groups) {
			out[last].to = part.to
		} else if len(part.groups) > 0 {
			out = append(out, part)
		}
	}
	return out
}

// fillPeers makes all elements of a signature's sets of peers what they should be.
func (c *Compiler) fillPeers(t *liveTable, s *signature) {
	for i := range s.peers {
		set := t.sets[s.peers[i].name+t.family.Suffix()]
		for key := range set.elem {
			a, _ := netip.AddrFromSlice([]byte(key))
			t.setElem(set, key, s.peers[i].holds(c.groupsOf(s, a)), Verdict{})
		}
	}
	for sel, allowed := range s.allow.pods {
		if sel.shared {
			continue
		}
		group := []string{allowed.group}
		for i := range s.peers {
			if s.peers[i].holds(group) {
				set := t.sets[s.peers[i].name+t.family.Suffix()]
				c.owned(sel, t.family, func(a netip.Addr) { t.setElem(set, AddrKey(a), true, Verdict{}) })
			}
		}
	}
}

// groupsOf returns the groups of a signature that the owner of an address is in.
func (c *Compiler) groupsOf(s *signature, a netip.Addr) []string {
	owner := c.owners[a]
	if owner == nil {
		return nil
	}
	var groups []string
	for _, sel := range owner.selectors {
		if allowed, ok := s.allow.pods[sel]; ok && !sel.shared {
			groups = append(groups, allowed.group)
		}
	}
	return groups
}

// refreshPeer brings a signature's sets of peers up to date for one address.
func (c *Compiler) refreshPeer(t *liveTable, s *signature, a netip.Addr) {
	groups := c.groupsOf(s, a)
	for i := range s.peers {
		set := t.sets[s.peers[i].name+t.family.Suffix()]
		if set != nil && !set.isNew {
			t.setElem(set, AddrKey(a), s.peers[i].holds(groups), Verdict{})
		}
	}
}
