package policy

import (
	"crypto/sha256"
	"encoding/base32"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go4.org/netipx"
)

// signature is a set of policies that isolate pods in one direction, with the
// numbers that named ports have on those pods. Pods with the same signature
// share a chain.
type signature struct {
	dir      direction
	chain    string
	policies []key
	// ports are the named ports that matter, as the pods have them (ingress).
	ports []NamedPort
	pods  map[*pod]struct{}
	allow allowance
	// peers are the sets of its own that it has in each family; see renderPeers.
	peers []peerSet
	// settled is allow as it was when the tables were last brought up to date.
	settled allowance
}

// allowance is what the policies of a signature allow together.
type allowance struct {
	// anyone may use these ports.
	anyone   portSet
	anyoneBy []key
	blocks   []blockAllowance
	pods     map[*selector]podAllowance
}

// blockAllowance allows a set of addresses some ports.
type blockAllowance struct {
	set   *netipx.IPSet
	ports portSet
	by    []key
}

// podAllowance allows the pods of a selector some ports.
type podAllowance struct {
	ports portSet
	group string // the key of ports; see peerGroup
	by    []key
}

// all tells whether everything is allowed, so that nothing is left to deny: all that a
// chain can do is count.
func (a *allowance) all() bool { return a.anyone.all }

// hash shortens a text to what can be part of a name: 80 bits in base 32. It
// must withstand more than chance: whoever may write policies for a namespace
// of his own chooses what is hashed, and a name that is another one's, found by
// trying, would give him the other one's chain or set.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

// leave takes a pod out of a signature.
func (c *Compiler) leave(s *signature, p *pod) {
	delete(s.pods, p)
	if len(s.pods) == 0 {
		c.emptied[s] = struct{}{}
	}
}

// sign finds the signatures of a local pod.
func (c *Compiler) sign(p *pod) {
	var selecting []*policy
	c.namespace(p.Namespace).policies.candidates(p, func(np *policy) {
		if np.rules.pods.Matches(p) {
			selecting = append(selecting, np)
		}
	})
	slices.SortFunc(selecting, func(a, b *policy) int { return strings.Compare(a.name, b.name) })
	for _, dir := range directions {
		var isolating []*policy
		for _, np := range selecting {
			if np.rules.isolates[dir] {
				isolating = append(isolating, np)
			}
		}
		now, old := c.signature(dir, isolating, p.Pod), p.signatures[dir]
		if now == old {
			continue
		}
		if old != nil {
			c.leave(old, p)
		}
		if now != nil {
			now.pods[p] = struct{}{}
		}
		p.signatures[dir] = now
	}
	for _, a := range p.Addrs {
		c.dispatch[a] = struct{}{}
	}
}

// signature returns the signature of the policies on a pod, or nil if there
// are none.
func (c *Compiler) signature(dir direction, isolating []*policy, on *Pod) *signature {
	if len(isolating) == 0 {
		return nil
	}
	keys := make([]key, len(isolating))
	for i, np := range isolating {
		keys[i] = np.key
	}
	ports := namedPorts(dir, isolating, on)
	text := signatureText(dir, keys, ports)
	chain := dir.String() + "-" + hash(text)
	s := c.signatures[chain]
	if s == nil {
		s = &signature{dir: dir, chain: chain, policies: keys, ports: ports, pods: map[*pod]struct{}{}}
		for _, np := range isolating {
			np.signatures[s] = struct{}{}
		}
		c.signatures[chain] = s
		c.dirtySignatures[s] = struct{}{}
	}
	return s
}

func signatureText(dir direction, keys []key, ports []NamedPort) string {
	var b strings.Builder
	b.WriteString(dir.String())
	for _, k := range keys {
		// Quoted, because a name in a manifest can hold anything.
		b.WriteString(" " + strconv.Quote(k.namespace+"/"+k.name))
	}
	for _, p := range ports {
		b.WriteString(" " + p.Name + "=" + p.Protocol.String() + ":" + itoa(uint32(p.Port)))
	}
	return b.String()
}

// namedPorts returns the ports of the pod that ingress rules refer to by name.
// Egress rules mean the ports of the peer.
func namedPorts(dir direction, isolating []*policy, on *Pod) []NamedPort {
	if dir == egress || len(on.Ports) == 0 {
		return nil
	}
	var out []NamedPort
	for _, np := range isolating {
		for _, r := range np.rules.rules[ingress] {
			for _, n := range r.ports.named {
				for _, p := range on.Ports {
					if p.Name == n.name && p.Protocol == n.protocol {
						out = append(out, p)
					}
				}
			}
		}
	}
	slices.SortFunc(out, compareNamedPort)
	return slices.Compact(out)
}

func compareNamedPort(a, b NamedPort) int {
	if c := strings.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	if a.Protocol != b.Protocol {
		return int(a.Protocol) - int(b.Protocol)
	}
	return int(a.Port) - int(b.Port)
}

// evaluate works out what the signature's policies allow now.
func (c *Compiler) evaluate(s *signature) {
	old := s.allow
	now := allowance{pods: map[*selector]podAllowance{}}
	blocks := map[string]*blockBuilder{}
	on := &Pod{Ports: s.ports}
	for _, k := range s.policies {
		np := c.policies[k]
		if np == nil || !np.rules.isolates[s.dir] {
			continue
		}
		np.signatures[s] = struct{}{}
		for _, r := range np.rules.rules[s.dir] {
			ports := r.ports
			if s.dir == ingress {
				ports = ports.resolve(on)
			}
			if !ports.empty() {
				c.allow(&now, blocks, &r, ports, k)
			}
		}
	}
	if now.all() {
		// Nothing else can matter, and nothing else should be kept up.
		now.pods, blocks = map[*selector]podAllowance{}, nil
	}
	for _, key := range slices.Sorted(maps.Keys(blocks)) {
		now.blocks = append(now.blocks, blocks[key].build())
	}
	for sel, a := range now.pods {
		a.group = a.ports.key()
		now.pods[sel] = a
		sel.users[s] = struct{}{}
	}
	for sel := range old.pods {
		if _, ok := now.pods[sel]; !ok {
			delete(sel.users, s)
			c.dirtySelectors[sel] = struct{}{}
		}
	}
	s.allow = now
	if old.all() != now.all() {
		for p := range s.pods {
			for _, a := range p.Addrs {
				c.dispatch[a] = struct{}{}
			}
		}
	}
}

// blockBuilder unites the blocks that are allowed the same ports, so that they
// cost one look-up.
type blockBuilder struct {
	set   netipx.IPSetBuilder
	ports portSet
	by    []key
}

func (b *blockBuilder) build() blockAllowance {
	set, _ := b.set.IPSet() // only sets were added, nothing invalid
	return blockAllowance{set: set, ports: b.ports, by: b.by}
}

// allow adds a rule of policy k to what is allowed.
func (c *Compiler) allow(now *allowance, blocks map[string]*blockBuilder, r *rule, ports portSet, k key) {
	if r.anyone {
		now.anyone = now.anyone.union(ports)
		now.anyoneBy = appendNew(now.anyoneBy, k)
		return
	}
	if len(r.blocks.Ranges()) > 0 {
		b := blocks[ports.key()]
		if b == nil {
			b = &blockBuilder{ports: ports}
			blocks[ports.key()] = b
		}
		b.set.AddSet(r.blocks)
		b.by = appendNew(b.by, k)
	}
	for _, peer := range r.pods {
		sel := c.selector(peer)
		a := now.pods[sel]
		a.ports = a.ports.union(ports)
		a.by = appendNew(a.by, k)
		now.pods[sel] = a
	}
}

// appendNew appends k unless it is the last already; keys come in order.
func appendNew(list []key, k key) []key {
	if len(list) > 0 && list[len(list)-1] == k {
		return list
	}
	return append(list, k)
}

// selector returns the selector of a peer, creating and filing it if need be.
func (c *Compiler) selector(p peer) *selector {
	k := p.key()
	if s := c.selectors[k]; s != nil {
		return s
	}
	s := &selector{peer: p, key: k, anchors: anchorsOf(p.pods), members: map[*pod]struct{}{}, users: map[*signature]struct{}{}}
	for _, f := range Families {
		s.sets[f] = "sel-" + hash(k) + f.Suffix()
	}
	c.selectors[k] = s
	c.newSelectors[s] = struct{}{}
	switch {
	case p.namespaces == nil:
		ns := c.namespace(p.namespace)
		ns.selectors.add(s.anchors, s)
		ns.named++
	case s.wide():
		for _, ns := range c.namespaces {
			if p.namespaces.Matches(ns.labels) {
				ns.selectors.add(s.anchors, s)
			}
		}
	default:
		c.everywhere.add(s.anchors, s)
	}
	return s
}

// dropSelector forgets a selector that no signature uses.
func (c *Compiler) dropSelector(s *selector) {
	delete(c.selectors, s.key)
	switch {
	case s.peer.namespaces == nil:
		ns := c.namespace(s.namespace)
		ns.selectors.remove(s.anchors, s)
		ns.named--
		c.forget(s.namespace)
	case s.wide():
		for _, ns := range c.namespaces {
			ns.selectors.remove(s.anchors, s)
		}
	default:
		c.everywhere.remove(s.anchors, s)
	}
	for p := range s.members {
		i := slices.Index(p.selectors, s)
		p.selectors = slices.Delete(p.selectors, i, i+1)
	}
}

// populate finds the pods of new selectors, looking at each pod once.
func (c *Compiler) populate() {
	named := map[string][]*selector{}
	everywhere := index[*selector]{}
	var wide []*selector
	for s := range c.newSelectors {
		switch {
		case s.namespaces == nil:
			named[s.namespace] = append(named[s.namespace], s)
		case s.wide():
			wide = append(wide, s)
		default:
			everywhere.add(s.anchors, s)
		}
	}
	for name, ns := range c.namespaces {
		here := index[*selector]{}
		for _, s := range named[name] {
			here.add(s.anchors, s)
		}
		for _, s := range wide {
			if s.namespaces.Matches(ns.labels) {
				here.add(s.anchors, s)
			}
		}
		if len(here)+len(everywhere) == 0 {
			continue
		}
		for p := range ns.pods {
			if p.peer() {
				c.join(ns, p, here, everywhere)
			}
		}
	}
}

// join makes the pod a member of the selectors that match it, of those filed
// for its namespace and of those filed whatever the namespace.
func (c *Compiler) join(ns *namespace, p *pod, here, everywhere index[*selector]) {
	try := func(s *selector) {
		if s.pods.Matches(p) {
			p.selectors = append(p.selectors, s)
			s.members[p] = struct{}{}
		}
	}
	here.candidates(p, try)
	everywhere.candidates(p, func(s *selector) {
		if s.namespaces.Matches(ns.labels) {
			try(s)
		}
	})
}

// owned calls do for every address of the family that a member of s owns. An
// address that is not contested belongs to the only pod that claims it.
func (c *Compiler) owned(s *selector, f Family, do func(netip.Addr)) {
	for p := range s.members {
		for _, a := range p.Addrs {
			if FamilyOf(a) == f && (len(c.contested) == 0 || c.owners[a] == p) {
				do(a)
			}
		}
	}
}
