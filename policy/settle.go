package policy

import (
	"net/netip"
	"slices"
)

// settle brings the tables up to date with all that Update has marked.
func (c *Compiler) settle() {
	resolved := c.resolvePools()
	c.relabel(resolved)
	for p := range c.dirtyPods {
		c.sign(p)
	}
	reset(&c.dirtyPods)
	for s := range c.dirtySignatures {
		if len(s.pods) > 0 {
			c.evaluate(s)
		}
	}
	if len(c.newSelectors) > 0 {
		c.populate()
	}
	c.drawLines()
	c.renderBase()
	if resolved {
		c.renderMasquerade()
	}
	for s := range c.dirtySignatures {
		c.renderSignature(s)
	}
	c.refreshElements()

	if c.tightened() {
		c.nextGeneration()
	}
	c.forgetUnused()
	for _, t := range c.tables {
		t.endStep()
	}
}

// drawLines decides which selectors get a set of their own. One that matches
// many pods would cost an element in the map of every signature that uses it;
// one that matches few would cost every new connection a rule.
func (c *Compiler) drawLines() {
	for s := range c.newSelectors {
		c.drawLine(s)
	}
	for s := range c.dirtySelectors {
		c.drawLine(s)
	}
}

func (c *Compiler) drawLine(s *selector) {
	if shared := len(s.members) > c.cfg.SharedAbove; shared != s.shared {
		s.shared = shared
		for user := range s.users {
			c.dirtySignatures[user] = struct{}{}
		}
	}
}

// renderSignature brings the signature's chains up to date in the families
// that have them.
func (c *Compiler) renderSignature(s *signature) {
	if len(s.pods) == 0 {
		return
	}
	for _, t := range c.tables {
		if t.chains[s.chain] != nil {
			c.render(s, t)
		}
	}
}

// refreshElements brings the elements of touched addresses up to date.
func (c *Compiler) refreshElements() {
	for a := range c.touched {
		c.refreshDispatch(a)
	}
	for a := range c.dispatch {
		c.refreshDispatch(a)
	}
	for a, selectors := range c.touched {
		t := c.tables[FamilyOf(a)]
		for _, s := range selectors {
			if set := t.sets[s.setName(t.family)]; set != nil && !set.isNew {
				c.refreshShared(t, set, s, a)
			}
			for user := range s.users {
				c.refreshPeer(t, user, a)
			}
		}
	}
	for a, ports := range c.touchedPorts {
		t := c.tables[FamilyOf(a)]
		for _, p := range ports {
			if set := t.sets[namedSetName(namedPort{p.Name, p.Protocol}, t.family)]; set != nil && !set.isNew {
				c.refreshNamed(t, set, p, a)
			}
		}
	}
	if now := c.isolates(); now != c.isolating {
		c.isolating = now
		c.renderDispatch(c.tables[IPv6])
	}
	reset(&c.dispatch)
	reset(&c.touched)
	reset(&c.touchedPorts)
}

// refreshDispatch decides where the packets of a local pod's address go.
func (c *Compiler) refreshDispatch(a netip.Addr) {
	t := c.tables[FamilyOf(a)]
	owner := c.owners[a]
	here := owner != nil && c.local(owner.Pod)
	if !here && !t.dispatch[ingress].at(AddrKey(a)).there {
		return
	}
	isolated := false
	for _, dir := range directions {
		v := Verdict{Kind: VerdictReturn}
		if here {
			if s := owner.signatures[dir]; s != nil {
				if t.chains[s.chain] == nil {
					c.render(s, t)
				}
				v = Verdict{Kind: VerdictGoto, Chain: s.chain}
				isolated = isolated || !s.allow.all()
			}
		}
		t.setElem(t.dispatch[dir], AddrKey(a), here, verdictIf(here, v))
	}
	if self := t.sets[selfName(t.family)]; self != nil {
		t.setElem(self, AddrPairKey(a, a), isolated, Verdict{})
	}
	if c.noteOutside(a, here) {
		c.renderDispatch(t)
	}
}

func verdictIf(there bool, v Verdict) Verdict {
	if there {
		return v
	}
	return Verdict{}
}

func (c *Compiler) refreshShared(t *liveTable, set *liveSet, s *selector, a netip.Addr) {
	owner := c.owners[a]
	member := false
	if owner != nil {
		_, member = s.members[owner]
	}
	t.setElem(set, AddrKey(a), member, Verdict{})
}

func (c *Compiler) refreshNamed(t *liveTable, set *liveSet, p NamedPort, a netip.Addr) {
	owner := c.owners[a]
	t.setElem(set, AddrServiceKey(a, p.Port), owner != nil && slices.Contains(owner.Ports, p), Verdict{})
}

// forgetUnused drops what the last changes left without a purpose.
func (c *Compiler) forgetUnused() {
	for s := range c.dirtySignatures {
		s.settled = s.allow
	}
	reset(&c.dirtySignatures)
	for s := range c.emptied {
		if len(s.pods) > 0 {
			continue // a pod came back, with a label more or less
		}
		for sel := range s.allow.pods {
			delete(sel.users, s)
			c.dirtySelectors[sel] = struct{}{}
		}
		for _, k := range s.policies {
			if np := c.policies[k]; np != nil {
				delete(np.signatures, s)
			}
		}
		delete(c.signatures, s.chain)
	}
	reset(&c.emptied)
	for _, selectors := range []*map[*selector]struct{}{&c.dirtySelectors, &c.newSelectors} {
		for s := range *selectors {
			if len(s.users) == 0 && c.selectors[s.key] == s {
				c.dropSelector(s)
			}
		}
		reset(selectors)
	}
	for _, t := range c.tables {
		t.collect()
	}
}

// reset empties a map. One that was large once, at the start, would take as
// long to range over or to clear for ever after.
func reset[M ~map[K]V, K comparable, V any](m *M) {
	if len(*m) > 0 {
		*m = make(M)
	}
}

// nextGeneration makes every flow on the node be judged once more.
func (c *Compiler) nextGeneration() {
	c.generation = c.cfg.MarkMask.Next(c.generation)
	c.tightens = true
	c.adopted = false
	reset(&c.vacated)
	for _, t := range c.tables {
		c.renderDispatch(t)
		t.endStep()
	}
}
