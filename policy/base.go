package policy

import "net/netip"

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

// renderBase writes the parts that depend on the node alone.
func (c *Compiler) renderBase() {
	if !c.dirtyBase {
		return
	}
	c.dirtyBase = false
	var prefixes [2][]netip.Prefix
	for _, p := range c.Prefixes() {
		f := FamilyOf(p.Addr())
		prefixes[f] = append(prefixes[f], p)
	}
	for _, t := range c.tables {
		f := t.family
		self := t.addSet(Set{Name: selfName(f), Key: [2]Type{TypeAddr, TypeAddr}, Comment: "isolated pods, to reach themselves"}, roleSelf, 0)
		for _, dir := range directions {
			t.addSet(Set{Name: dispatchName(dir, f), Key: [2]Type{TypeAddr}, Verdicts: true, Comment: "pods of this node, " + dir.String()}, roleDispatch, dir)
		}
		c.keepChain(t, chainUnknown, c.denyRules())
		for _, dir := range directions {
			toSelf := Rule{
				Match:   []Match{{Field: FieldCtOriginalSaddr, And: FieldCtReplySaddr, Op: OpIn, Name: self.Name}},
				Verdict: Verdict{Kind: VerdictReturn}, Comment: "a pod reaches itself",
			}
			c.keepChain(t, dir.deny(), append([]Rule{toSelf}, c.denyRules()...))
			flow, packet := dir.podField()
			c.keepChain(t, dir.String(), dispatchRules(flow, dispatchName(dir, f), prefixes[f]))
			c.keepChain(t, dir.stateless(), dispatchRules(packet, dispatchName(dir, f), prefixes[f]))
		}
	}
	c.prefixes = prefixes
	c.renderStamps()
}

// keepChain writes a chain that stays even if no element leads to it.
func (c *Compiler) keepChain(t *liveTable, name string, rules []Rule) {
	isNew := t.chains[name] == nil
	t.setChain(name, nil, rules)
	if isNew {
		t.chains[name].refs++
	}
}

// dispatchRules leads a pod to its signature. An address of the node's own
// blocks that no pod is known to have is closed: the pod may be about to start.
// The blocks are constants and not a set because a set can be seen empty while
// it is exchanged.
func dispatchRules(by Field, pods string, prefixes []netip.Prefix) []Rule {
	out := []Rule{{Match: []Match{{Field: by, Op: OpVerdict, Name: pods}}}}
	for _, p := range prefixes {
		out = append(out, Rule{
			Match:   []Match{{Field: by, Op: OpPrefix, Prefix: p}},
			Verdict: Verdict{Kind: VerdictGoto, Chain: chainUnknown}, Comment: "no such pod is known",
		})
	}
	return out
}

// denyRules end a packet.
func (c *Compiler) denyRules() []Rule {
	if c.cfg.DenyAction == DenyReject {
		return []Rule{
			{Match: []Match{{Field: FieldL4Proto, Op: OpEqual, Value: uint32(TCP)}}, Counter: true, Verdict: Verdict{Kind: VerdictReset}},
			{Counter: true, Verdict: Verdict{Kind: VerdictProhibit}},
		}
	}
	return []Rule{{Counter: true, Verdict: Verdict{Kind: VerdictDrop}}}
}

// renderStamps writes the base chains, which hold the generation.
func (c *Compiler) renderStamps() {
	for _, t := range c.tables {
		c.keepBase(t, chainForward, c.forwardRules(t.family))
		if c.cfg.PodToNode == PodToNodePolicy {
			c.keepBase(t, chainInput, c.inputRules(t.family))
		}
	}
}

func (c *Compiler) keepBase(t *liveTable, name string, rules []Rule) {
	isNew := t.chains[name] == nil
	t.setChain(name, &Hook{Name: name, Priority: hookPriority}, rules)
	if isNew {
		t.chains[name].refs++
	}
}

func jump(chain string) Rule { return Rule{Verdict: Verdict{Kind: VerdictJump, Chain: chain}} }

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

// neighbours lets neighbour discovery pass, which conntrack does not track. A
// hop limit of 255 proves that the packet was not forwarded by a router
// (RFC 4861, section 7.1).
func neighbours(f Family) []Rule {
	if f != IPv6 {
		return nil
	}
	return []Rule{{
		Match: []Match{
			{Field: FieldICMPv6Type, Op: OpRange, Value: 133, Arg: 137},
			{Field: FieldHopLimit, Op: OpEqual, Value: 255},
		},
		Verdict: Verdict{Kind: VerdictAccept}, Comment: "neighbour discovery",
	}}
}

func (c *Compiler) forwardRules(f Family) []Rule {
	rules := []Rule{c.judged(), jump(egress.String()), jump(ingress.String()), c.stamp()}
	rules = append(rules, neighbours(f)...)
	return append(rules, jump(egress.stateless()), jump(ingress.stateless()))
}

// inputRules subject what pods send to their node to egress policy. Only
// packets in the direction of the opener are judged: what answers a flow that
// the node opened has the node as its opener, which may have an address out of
// the node's pod blocks (the gateway on the bridge).
func (c *Compiler) inputRules(f Family) []Rule {
	rules := []Rule{
		{Match: []Match{{Field: FieldIifname, Op: OpEqual, Name: "lo"}}, Verdict: Verdict{Kind: VerdictAccept}},
		c.judged(),
		{Match: []Match{{Field: FieldCtDirection, Op: OpEqual}}, Verdict: Verdict{Kind: VerdictJump, Chain: egress.String()}},
		c.stamp(),
	}
	rules = append(rules, neighbours(f)...)
	return append(rules, jump(egress.stateless()))
}
