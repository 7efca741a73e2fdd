package policy

import (
	"net/netip"
	"slices"

	"go4.org/netipx"
)

// tightened tells whether what changed since the last settle could deny a flow
// that was allowed. It may say yes too often, which costs every flow on the
// node one walk through the rules; it must never say no wrongly.
func (c *Compiler) tightened() bool {
	out := c.baseTightened()
	// All are always evaluated, because each also keeps books.
	if c.ownersTightened() {
		out = true
	}
	if c.peersTightened() {
		out = true
	}
	for s := range c.dirtySignatures {
		if len(s.pods) > 0 && !s.allow.covers(&s.settled) {
			out = true
		}
	}
	for _, t := range c.tables {
		if c.elementsTightened(t) {
			out = true
		}
	}
	return out
}

// baseTightened tells whether the chains that depend on the node alone changed:
// blocks of addresses are closed that were not, or a bridge's link-local ones.
func (c *Compiler) baseTightened() bool {
	for _, t := range c.tables {
		for _, name := range []string{chainForward, chainInput, ingress.String(), egress.String()} {
			was, touched := t.step.chains[name]
			if touched && was != nil && !equalRules(was.rules, t.chains[name].rules) {
				return true
			}
		}
	}
	return false
}

// ownersTightened tells whether an address changed hands while flows of its
// former owner may still carry the generation. That an address is given up
// does not tighten by itself: nobody is left to send, and the churn of pods
// would wear out the generations.
func (c *Compiler) ownersTightened() bool {
	out := false
	for a, was := range c.ownersBefore {
		now := c.owners[a]
		switch {
		case now == nil:
			if was != nil && c.mattered(a, was) {
				c.vacated[a] = struct{}{}
			}
		case was == nil:
			_, used := c.vacated[a]
			out = out || used || c.adopted && c.known
		case !was.same(now.Pod):
			out = out || c.mattered(a, was)
		}
	}
	reset(&c.ownersBefore)
	c.known = true
	return out
}

// mattered tells whether an address could be an element of any set while it
// was that pod's. If not, nothing was allowed because of who had it, and so
// whoever has it next is allowed the same: the many pods of a large cluster
// that no policy here is about come and go without wearing out the generations.
func (c *Compiler) mattered(a netip.Addr, was *Pod) bool {
	return c.local(was) || len(c.selectorsBefore[a]) > 0 || len(was.Ports) > 0 && c.tables[FamilyOf(a)].named > 0
}

func (c *Compiler) elementsTightened(t *liveTable) bool {
	for name, elems := range t.step.elems {
		set := t.sets[name]
		if existed, touched := t.step.sets[name]; touched && !existed {
			continue // it is new: what it allows was not allowed before, or is still
		}
		for key, was := range elems {
			now := set.at(key)
			if was == now {
				continue
			}
			addr, _ := netip.AddrFromSlice([]byte(key[:t.family.Bits()/8]))
			if c.elementTightened(t, set, addr, was, now) {
				return true
			}
		}
	}
	return false
}

func (c *Compiler) elementTightened(t *liveTable, set *liveSet, a netip.Addr, was, now before) bool {
	switch set.role {
	case roleNamed:
		// See ownersTightened for addresses that nobody has any more.
		return !now.there && c.owners[a] != nil
	case roleDispatch:
		if !now.there {
			return c.owners[a] != nil
		}
		to := c.signatures[now.verdict.Chain]
		if now.verdict.Kind == VerdictReturn || to.allow.all() {
			return false
		}
		if !was.there {
			// Unknown until now, and closed for that if it is in a block of
			// the node's; any other address was free to talk.
			return !containsAddr(c.prefixes[t.family], a)
		}
		if was.verdict.Kind == VerdictReturn {
			return true
		}
		return !to.allow.covers(&c.signatures[was.verdict.Chain].settled)
	}
	// What leaves a set of peers is seen by peersTightened, and what leaves
	// that of isolated pods is no longer isolated, or no longer there.
	return false
}

// peersTightened tells whether an address is no longer matched by a selector
// that it was matched by, and that is in use.
func (c *Compiler) peersTightened() bool {
	out := false
	for a, was := range c.selectorsBefore {
		now := c.owners[a]
		if now == nil {
			continue // see ownersTightened
		}
		for _, s := range was {
			if len(s.users) > 0 && !slices.Contains(now.selectors, s) {
				out = true
			}
		}
	}
	reset(&c.selectorsBefore)
	return out
}

func containsAddr(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// covers tells whether a allows all that b does. It compares selectors, not
// their pods: for those see peersTightened.
func (a *allowance) covers(b *allowance) bool {
	if a.all() {
		return true
	}
	if !a.anyone.contains(&b.anyone) {
		return false
	}
	for sel, allowed := range b.pods {
		have := a.pods[sel].ports.union(a.anyone)
		if !have.contains(&allowed.ports) {
			return false
		}
	}
	for i := range b.blocks {
		if !a.coversBlock(&b.blocks[i]) {
			return false
		}
	}
	return true
}

func (a *allowance) coversBlock(b *blockAllowance) bool {
	if a.anyone.contains(&b.ports) {
		return true
	}
	for i := range a.blocks {
		have := &a.blocks[i]
		if have.ports.contains(&b.ports) && containsSet(have.set, b.set) {
			return true
		}
	}
	return false
}

func containsSet(s, o *netipx.IPSet) bool {
	for _, r := range o.Ranges() {
		if !s.ContainsRange(r) {
			return false
		}
	}
	return true
}
