package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// pod is a pod and what it takes part in.
type pod struct {
	*Pod
	// pool is the name of the pod's pool, as long as a policy asks; see Lookup.
	pool string
	// selectors are those that match it, if it can be a peer at all.
	selectors []*selector
	// signatures are nil where nothing isolates the pod.
	signatures [len(directions)]*signature
}

// peer tells whether the pod has addresses of its own.
func (p *Pod) peer() bool { return !p.HostNetwork && !p.Finished }

func (p *Pod) same(o *Pod) bool {
	return p.Namespace == o.Namespace && p.Name == o.Name && p.UID == o.UID
}

// unchanged tells whether nothing differs that policy looks at.
func (p *Pod) unchanged(o *Pod) bool {
	return p.same(o) && p.Node == o.Node && p.HostNetwork == o.HostNetwork && p.Finished == o.Finished && p.Created == o.Created &&
		slices.Equal(p.Labels, o.Labels) && slices.Equal(p.Addrs, o.Addrs) && slices.Equal(p.Ports, o.Ports)
}

// local tells whether the pod is one that this node's rules may isolate.
func (c *Compiler) local(p *Pod) bool { return p.Node == c.cfg.NodeName && p.peer() }

func (c *Compiler) updatePod(o *Pod, deleted bool) {
	k := key{o.Namespace, o.Name}
	old := c.pods[k]
	if old == nil && deleted {
		return
	}
	if old != nil && !deleted && old.unchanged(o) {
		old.Pod = o // the cache holds this one: do not keep two
		return
	}
	ns := c.namespace(o.Namespace)
	if old != nil {
		c.removePod(ns, old)
		delete(c.pods, k)
	}
	if !deleted {
		p := &pod{Pod: o, pool: c.poolOf(o)}
		c.pods[k] = p
		c.addPod(ns, p)
	}
	c.forget(o.Namespace)
}

func (c *Compiler) removePod(ns *namespace, p *pod) {
	delete(ns.pods, p)
	delete(ns.local, p)
	if !p.peer() {
		return
	}
	c.touchPod(p)
	for _, a := range p.Addrs {
		c.unclaim(a, p)
	}
	for _, s := range p.selectors {
		delete(s.members, p)
		c.dirtySelectors[s] = struct{}{}
	}
	for _, s := range p.signatures {
		if s != nil {
			c.leave(s, p)
		}
	}
	delete(c.dirtyPods, p)
}

func (c *Compiler) addPod(ns *namespace, p *pod) {
	ns.pods[p] = struct{}{}
	if !p.peer() {
		return
	}
	for _, a := range p.Addrs {
		c.claim(a, p)
	}
	c.match(ns, p)
	c.touchPod(p)
	if c.local(p.Pod) {
		ns.local[p] = struct{}{}
		c.dirtyPods[p] = struct{}{}
	}
}

// match finds the selectors of a pod.
func (c *Compiler) match(ns *namespace, p *pod) {
	try := func(s *selector) {
		if s.namespaces != nil && !s.namespaces.Matches(ns.labels) || !s.pods.Matches(p) {
			return
		}
		p.selectors = append(p.selectors, s)
		s.members[p] = struct{}{}
		c.dirtySelectors[s] = struct{}{}
	}
	c.everywhere.candidates(p, try)
	ns.selectors.candidates(p, try)
}

// rematch finds the selectors of a pod anew, after its namespace or its pool changed.
func (c *Compiler) rematch(p *pod) {
	if !p.peer() {
		return
	}
	c.touchPod(p)
	for _, s := range p.selectors {
		delete(s.members, p)
		c.dirtySelectors[s] = struct{}{}
	}
	p.selectors = nil
	c.match(c.namespace(p.Namespace), p)
	c.touchPod(p)
}

// touchPod marks the elements that hold the pod's addresses.
func (c *Compiler) touchPod(p *pod) {
	for _, a := range p.Addrs {
		c.touch(a, p)
	}
}

func (c *Compiler) touch(a netip.Addr, p *pod) {
	if !c.known {
		return // nothing is in force, and what will be is made from all that is there then
	}
	if _, ok := c.selectorsBefore[a]; !ok && c.owners[a] == p {
		c.selectorsBefore[a] = slices.Clone(p.selectors)
	}
	c.touched[a] = appendMissing(c.touched[a], p.selectors)
	// Only sets of named ports that are there need to be told; one that is made
	// later is made from all that is there then.
	if len(p.Ports) > 0 && c.tables[FamilyOf(a)].named > 0 {
		c.touchedPorts[a] = appendMissing(c.touchedPorts[a], p.Ports)
	}
}

// appendMissing appends those of more that are not in list. Both are short.
func appendMissing[T comparable](list, more []T) []T {
	for _, v := range more {
		if !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return list
}

// claim makes p one of those who say that they have address a.
func (c *Compiler) claim(a netip.Addr, p *pod) {
	owner := c.owners[a]
	if owner == nil {
		c.setOwner(a, p)
		return
	}
	if owner == p {
		return
	}
	if c.contested[a] == nil {
		c.contested[a] = []*pod{owner}
	}
	c.contested[a] = append(c.contested[a], p)
	c.setOwner(a, newest(c.contested[a]))
}

func (c *Compiler) unclaim(a netip.Addr, p *pod) {
	claims := c.contested[a]
	if i := slices.Index(claims, p); i >= 0 {
		claims = slices.Delete(claims, i, i+1)
	}
	if len(claims) > 1 {
		c.contested[a] = claims
	} else {
		delete(c.contested, a)
	}
	switch {
	case len(claims) > 0:
		c.setOwner(a, newest(claims))
	case c.owners[a] == p:
		c.setOwner(a, nil)
	}
}

func newest(claims []*pod) *pod {
	return slices.MaxFunc(claims, func(a, b *pod) int { return compareClaims(a.Pod, b.Pod) })
}

// compareClaims orders pods that claim the same address: the greatest has it.
func compareClaims(a, b *Pod) int {
	return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.UID, b.UID),
		strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name))
}

func (c *Compiler) setOwner(a netip.Addr, p *pod) {
	old := c.owners[a]
	if old == p {
		return
	}
	if _, ok := c.ownersBefore[a]; !ok && c.known {
		var was *Pod
		if old != nil {
			was = old.Pod
		}
		c.ownersBefore[a] = was
	}
	if old != nil {
		c.touch(a, old)
	}
	if p == nil {
		delete(c.owners, a)
		return
	}
	c.owners[a] = p
	c.touch(a, p)
}
