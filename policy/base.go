package policy

import (
	"maps"
	"net/netip"
	"slices"
)

// hookPriority is where our base chains stand. DNAT has its place in
// prerouting, long before; kube-proxy's and flannel's filter chains are at 0,
// so that what policy denies never gets there.
const hookPriority = -5

// The chains and sets that are always there.
const (
	chainForward = "forward"
	chainInput   = "input"
	chainUnknown = "deny-unknown"
)

func (d direction) stateless() string { return "stateless-" + d.String() }

func dispatchName(d direction, f Family) string { return d.String() + "-pods" + f.Suffix() }

func selfName(f Family) string { return "self" + f.Suffix() }

// podField is where a local pod is found in the flow, and in the packet itself
// if there is no flow.
func (d direction) podField() (flow, packet Field) {
	if d == ingress {
		return FieldCtReplySaddr, FieldDaddr
	}
	return FieldCtOriginalSaddr, FieldSaddr
}

// maxLocalPods is the size of the maps of the node's own pods. With a size
// declared the kernel takes a hash table that never grows, which is faster
// (nft_hash_fast in net/netfilter/nft_set_hash.c) and costs 64 KiB. No kubelet
// runs half as many pods.
const maxLocalPods = 4096

// renderBase writes the parts that depend on the node alone.
func (c *Compiler) renderBase() {
	if !c.dirtyBase {
		return
	}
	c.dirtyBase = false
	c.prefixes = [2][]netip.Prefix{}
	for _, p := range c.Prefixes() {
		f := FamilyOf(p.Addr())
		c.prefixes[f] = append(c.prefixes[f], p)
	}
	for _, t := range c.tables {
		f := t.family
		for _, dir := range directions {
			t.dispatch[dir] = t.addSet(Set{
				Name: dispatchName(dir, f), Key: [2]Type{TypeAddr}, Verdicts: true, Size: maxLocalPods,
				Comment: "pods of this node, " + dir.String(),
			}, roleDispatch)
		}
		c.keepChain(t, chainUnknown, nil, c.denyUnknown(t))
		for _, dir := range directions {
			_, packet := dir.podField()
			c.keepChain(t, dir.stateless(), nil, lookupRules(packet, dispatchName(dir, f), c.prefixes[f]))
		}
		clear(c.outside[f])
		for k := range t.sets[dispatchName(egress, f)].elem {
			a, _ := netip.AddrFromSlice([]byte(k))
			c.noteOutside(a, true)
		}
		c.renderDispatch(t)
	}
}

// noteOutside keeps account of local pods whose addresses are in none of the
// node's blocks. It tells whether there are such pods only now, or no longer.
func (c *Compiler) noteOutside(a netip.Addr, here bool) bool {
	f := FamilyOf(a)
	had := len(c.outside[f]) > 0
	if here && !containsAddr(c.prefixes[f], a) {
		c.outside[f][a] = struct{}{}
	} else {
		delete(c.outside[f], a)
	}
	return had != (len(c.outside[f]) > 0)
}

// guarded tells whether a look at the node's blocks suffices to know that an
// address is no local pod's. That spares every new connection the look-up on
// the side where its other end is.
func (c *Compiler) guarded(f Family) bool { return len(c.prefixes[f]) > 0 && len(c.outside[f]) == 0 }

// isolates tells whether there is an isolated pod on the node.
func (c *Compiler) isolates() bool {
	for _, t := range c.tables {
		if self := t.sets[selfName(t.family)]; self != nil && len(self.elem) > 0 {
			return true
		}
	}
	return false
}

// renderDispatch writes the base chains and those that they jump to.
func (c *Compiler) renderDispatch(t *liveTable) {
	for _, dir := range directions {
		flow, _ := dir.podField()
		name := dispatchName(dir, t.family)
		if c.guarded(t.family) {
			c.keepChain(t, dir.String(), nil, []Rule{lookup(flow, name), unknown()})
		} else {
			c.keepChain(t, dir.String(), nil, lookupRules(flow, name, c.prefixes[t.family]))
		}
	}
	c.keepChain(t, chainForward, &Hook{Name: chainForward, Priority: hookPriority}, c.forwardRules(t.family))
	if c.cfg.PodToNode == PodToNodePolicy {
		c.keepChain(t, chainInput, &Hook{Name: chainInput, Priority: hookPriority}, c.inputRules(t.family))
	}
}

// keepChain writes a chain that stays even if no element leads to it.
func (c *Compiler) keepChain(t *liveTable, name string, hook *Hook, rules []Rule) {
	isNew := t.chains[name] == nil
	t.setChain(name, hook, rules)
	if isNew {
		t.chains[name].refs++
	}
}

// lookup leads a local pod to its signature.
func lookup(by Field, pods string) Rule {
	return Rule{Match: []Match{{Field: by, Op: OpVerdict, Name: pods}}}
}

// unknown closes an address of the node's own blocks that no pod is known to
// have: the pod may be about to start. The blocks are constants of the rules
// and not a set, because a set can be seen empty while it is exchanged.
func unknown(match ...Match) Rule {
	return Rule{Match: match, Verdict: Verdict{Kind: VerdictGoto, Chain: chainUnknown}, Comment: "no such pod is known"}
}

// lookupRules look up whatever comes, and close what is left of the blocks.
func lookupRules(by Field, pods string, prefixes []netip.Prefix) []Rule {
	out := []Rule{lookup(by, pods)}
	for _, p := range prefixes {
		out = append(out, unknown(Match{Field: by, Op: OpPrefix, Prefix: p}))
	}
	return out
}

// jumps leads to the chain of a direction what may concern a local pod.
func (c *Compiler) jumps(f Family, dir direction, match ...Match) []Rule {
	to := Verdict{Kind: VerdictJump, Chain: dir.String()}
	if !c.guarded(f) {
		return []Rule{{Match: match, Verdict: to}}
	}
	var out []Rule
	flow, _ := dir.podField()
	for _, p := range c.prefixes[f] {
		out = append(out, Rule{Match: slices.Concat(match, []Match{{Field: flow, Op: OpPrefix, Prefix: p}}), Verdict: to})
	}
	return out
}

// judged accepts packets of flows that were judged under the rules in force.
func (c *Compiler) judged() Rule {
	mark := c.cfg.MarkMask.Mark(c.generation)
	return Rule{
		Match: []Match{
			{Field: FieldCtState, Op: OpBits, Value: StateEstablished | StateRelated},
			{Field: FieldCtMark, Op: OpMasked, Value: mark.Value, Arg: mark.Mask},
		},
		Verdict: Verdict{Kind: VerdictAccept}, Comment: "judged under these rules",
	}
}

// stamp ends the judgement of a packet that has a flow. Without one, reading
// the mark fails and the rule does not match: what follows sees just those
// packets, at no cost to the others.
func (c *Compiler) stamp() Rule {
	return Rule{Stamp: c.cfg.MarkMask.Mark(c.generation), Verdict: Verdict{Kind: VerdictAccept}}
}

// neighbours lets neighbour discovery and multicast listener discovery pass,
// which conntrack does not track. Their hop limits prove that no router
// forwarded them (RFC 4861, section 7.1; RFC 3810, section 5).
func neighbours(f Family) []Rule {
	if f != IPv6 {
		return nil
	}
	return []Rule{
		linkMessage(133, 137, 255, "neighbour discovery"),
		linkMessage(130, 132, 1, "multicast listener discovery"),
		linkMessage(143, 143, 1, "multicast listener discovery"),
	}
}

func linkMessage(from, to, hops uint32, comment string) Rule {
	return Rule{
		Match: []Match{
			{Field: FieldICMPv6Type, Op: OpRange, Value: from, Arg: to},
			{Field: FieldHopLimit, Op: OpEqual, Value: hops},
		},
		Verdict: Verdict{Kind: VerdictAccept}, Comment: comment,
	}
}

// closeLinkLocal denies traffic between pods by the link-local addresses that
// the kernel gives every interface, even in a cluster without IPv6. The API
// knows nothing of them, so that no policy could ever match: on a bridge they
// would lead around every policy. As long as nothing is isolated there is
// nothing to lead around.
func (c *Compiler) closeLinkLocal(f Family, by ...Field) []Rule {
	if f != IPv6 || !c.isolating {
		return nil
	}
	var out []Rule
	for _, bridge := range slices.Sorted(maps.Keys(c.bridges)) {
		for _, field := range by {
			out = append(out, Rule{
				Match: []Match{
					{Field: field, Op: OpPrefix, Prefix: netip.MustParsePrefix("fe80::/10")},
					{Field: FieldIifname, Op: OpEqual, Name: bridge},
				},
				Verdict: Verdict{Kind: VerdictGoto, Chain: chainUnknown}, Comment: "link-local addresses are no pod's",
			})
		}
	}
	return out
}

func jump(chain string) Rule { return Rule{Verdict: Verdict{Kind: VerdictJump, Chain: chain}} }

func (c *Compiler) forwardRules(f Family) []Rule {
	return slices.Concat(
		[]Rule{c.judged()},
		c.jumps(f, egress),
		c.jumps(f, ingress),
		c.closeLinkLocal(f, FieldCtOriginalSaddr, FieldCtReplySaddr),
		[]Rule{c.stamp()},
		neighbours(f),
		c.closeLinkLocal(f, FieldSaddr),
		[]Rule{jump(egress.stateless()), jump(ingress.stateless())},
	)
}

// inputRules subject what pods send to their node to egress policy. Only
// packets in the direction of the opener are judged: what answers a flow that
// the node opened has the node as its opener, which may have an address out of
// the node's pod blocks (the gateway on the bridge).
func (c *Compiler) inputRules(f Family) []Rule {
	return slices.Concat(
		[]Rule{{Match: []Match{{Field: FieldIifname, Op: OpEqual, Name: "lo"}}, Verdict: Verdict{Kind: VerdictAccept}}, c.judged()},
		c.jumps(f, egress, Match{Field: FieldCtDirection, Op: OpEqual}),
		[]Rule{c.stamp()},
		neighbours(f),
		[]Rule{jump(egress.stateless())},
	)
}
