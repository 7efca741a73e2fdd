package policy

import (
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Compiler holds the desired state of the node and keeps it up with deltas.
// It must not be used by two goroutines at once.
//
// Update only files what it is told and marks what that may concern; settle
// then brings the tables up to date. What an event costs depends on the
// selectors that could match its object and on the signatures that use them,
// not on how many pods or policies there are.
type Compiler struct {
	cfg        Config
	generation uint32

	pods       map[key]*pod
	namespaces map[string]*namespace
	nodes      map[string]*Node
	bridges    map[string]struct{}
	policies   map[key]*policy
	owners     map[netip.Addr]*pod
	// contested holds all who claim an address that more than one pod claims.
	contested map[netip.Addr][]*pod

	// selectors are the peers of the signatures in use. Those that name their
	// namespace are filed there, by what a pod must have. Those that select
	// namespaces by label are filed under everywhere, unless they say nothing
	// of the pod: those are filed at each namespace that they match.
	selectors  map[string]*selector
	everywhere index[*selector]
	// signatures are filed by the names of their chains.
	signatures map[string]*signature

	tables   [2]*liveTable
	prefixes [2][]netip.Prefix // the node's podCIDRs
	// outside are addresses of local pods that are in none of them.
	outside [2]map[netip.Addr]struct{}
	// isolating is what the base chains were last told; see isolates.
	isolating bool

	// Marks left by Update for settle.
	dirtyPods       map[*pod]struct{}
	dirtySignatures map[*signature]struct{}
	emptied         map[*signature]struct{} // lost their last pod; may have got another
	dirtySelectors  map[*selector]struct{}
	newSelectors    map[*selector]struct{}
	touched         map[netip.Addr][]*selector
	touchedPorts    map[netip.Addr][]NamedPort
	dispatch        map[netip.Addr]struct{}
	ownersBefore    map[netip.Addr]*Pod
	selectorsBefore map[netip.Addr][]*selector
	dirtyBase       bool

	// vacated are addresses that were given up since the generation last
	// changed: flows of theirs may still carry it.
	vacated map[netip.Addr]struct{}
	// adopted says that flows may carry the generation from before this
	// Compiler knew anything; known, that it has seen what was there then.
	adopted, known bool
	// tightens is what Changes will say.
	tightens bool
}

// key names an object within its kind.
type key struct{ namespace, name string }

// pod is a pod and what it takes part in.
type pod struct {
	*Pod
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

// namespace is a namespace, known or only mentioned.
type namespace struct {
	labels Labels
	known  bool
	pods   map[*pod]struct{}
	// local are those of the pods that this node's rules may isolate.
	local map[*pod]struct{}
	// policies are filed by what a pod must have to be selected.
	policies index[*policy]
	// selectors are the peers filed here; see Compiler.everywhere.
	selectors index[*selector]
	// named counts those of them that are filed here by the namespace's name.
	named int
}

// policy is a NetworkPolicy, understood.
type policy struct {
	key
	uid     types.UID
	rules   *rules
	anchors []anchor
	errs    field.ErrorList
	// signatures are those that it is part of.
	signatures map[*signature]struct{}
}

// selector is a peer in use.
type selector struct {
	peer
	key     string
	sets    [2]string // the names of its sets, should it get them
	anchors []anchor
	members map[*pod]struct{}
	users   map[*signature]struct{}
	// shared selectors have a set of their own.
	shared bool
}

func (s *selector) setName(f Family) string { return s.sets[f] }

// NewCompiler returns a Compiler that knows no objects yet. The configuration
// must be valid.
func NewCompiler(cfg Config) *Compiler {
	c := &Compiler{
		cfg:             cfg,
		generation:      max(cfg.Generation, 1),
		adopted:         cfg.Generation != 0,
		pods:            map[key]*pod{},
		namespaces:      map[string]*namespace{},
		nodes:           map[string]*Node{},
		bridges:         map[string]struct{}{},
		policies:        map[key]*policy{},
		owners:          map[netip.Addr]*pod{},
		contested:       map[netip.Addr][]*pod{},
		selectors:       map[string]*selector{},
		everywhere:      index[*selector]{},
		signatures:      map[string]*signature{},
		dirtyPods:       map[*pod]struct{}{},
		dirtySignatures: map[*signature]struct{}{},
		emptied:         map[*signature]struct{}{},
		dirtySelectors:  map[*selector]struct{}{},
		newSelectors:    map[*selector]struct{}{},
		touched:         map[netip.Addr][]*selector{},
		touchedPorts:    map[netip.Addr][]NamedPort{},
		dispatch:        map[netip.Addr]struct{}{},
		ownersBefore:    map[netip.Addr]*Pod{},
		selectorsBefore: map[netip.Addr][]*selector{},
		vacated:         map[netip.Addr]struct{}{},
		dirtyBase:       true,
	}
	for _, f := range Families {
		c.tables[f] = newLiveTable(f)
		c.outside[f] = map[netip.Addr]struct{}{}
	}
	return c
}

// Update takes in changes. What follows from them is seen in Changes and Ruleset.
func (c *Compiler) Update(deltas ...Delta) {
	for _, d := range deltas {
		switch o := d.Object.(type) {
		case *Pod:
			c.updatePod(o, d.Deleted)
		case *networkingv1.NetworkPolicy:
			c.updatePolicy(o, d.Deleted)
		case *Namespace:
			c.updateNamespace(o, d.Deleted)
		case *Node:
			c.updateNode(o, d.Deleted)
		case *Bridge:
			c.updateBridge(o, d.Deleted)
		}
	}
}

// namespace returns the namespace, which may be known only by its name.
func (c *Compiler) namespace(name string) *namespace {
	ns := c.namespaces[name]
	if ns == nil {
		ns = &namespace{
			labels:    bareLabels(name),
			pods:      map[*pod]struct{}{},
			local:     map[*pod]struct{}{},
			policies:  index[*policy]{},
			selectors: index[*selector]{},
		}
		c.namespaces[name] = ns
		for _, s := range c.selectors {
			if s.wide() && s.namespaces.Matches(ns.labels) {
				ns.selectors.add(s.anchors, s)
			}
		}
	}
	return ns
}

// bareLabels are what the API server gives every namespace.
func bareLabels(name string) Labels { return Labels{{"kubernetes.io/metadata.name", name}} }

// forget drops a namespace of which nothing is left.
func (c *Compiler) forget(name string) {
	ns := c.namespaces[name]
	if ns != nil && !ns.known && len(ns.pods)+len(ns.policies)+ns.named == 0 {
		delete(c.namespaces, name)
	}
}

func (c *Compiler) updateNamespace(o *Namespace, deleted bool) {
	ns := c.namespace(o.Name)
	now := o.Labels
	if deleted {
		now = bareLabels(o.Name)
	}
	ns.known = !deleted
	if !slices.Equal(ns.labels, now) {
		for _, s := range c.selectors {
			if s.wide() && s.namespaces.Matches(ns.labels) != s.namespaces.Matches(now) {
				if s.namespaces.Matches(now) {
					ns.selectors.add(s.anchors, s)
				} else {
					ns.selectors.remove(s.anchors, s)
				}
			}
		}
		ns.labels = now
		for p := range ns.pods {
			c.rematch(p)
		}
	}
	c.forget(o.Name)
}

// wide tells whether the selector is filed at the namespaces that it matches.
func (s *selector) wide() bool {
	return s.namespaces != nil && !s.namespaces.Empty() && len(s.anchors) == 1 && s.anchors[0] == anchor{}
}

func (c *Compiler) updateNode(o *Node, deleted bool) {
	if deleted {
		delete(c.nodes, o.Name)
	} else {
		c.nodes[o.Name] = o
	}
	c.dirtyBase = c.dirtyBase || o.Name == c.cfg.NodeName
}

func (c *Compiler) updateBridge(o *Bridge, deleted bool) {
	if deleted {
		delete(c.bridges, o.Name)
	} else {
		c.bridges[o.Name] = struct{}{}
	}
	c.dirtyBase = true
}

func (c *Compiler) updatePolicy(np *networkingv1.NetworkPolicy, deleted bool) {
	k := key{np.Namespace, np.Name}
	ns := c.namespace(np.Namespace)
	old := c.policies[k]
	if old != nil {
		ns.policies.remove(old.anchors, old)
		delete(c.policies, k)
	}
	var now *policy
	if !deleted {
		r, errs := parse(np)
		now = &policy{key: k, uid: np.UID, rules: r, anchors: anchorsOf(r.pods), errs: errs, signatures: map[*signature]struct{}{}}
		ns.policies.add(now.anchors, now)
		c.policies[k] = now
	}
	for p := range ns.local {
		if old != nil && old.rules.pods.Matches(p.Labels) || now != nil && now.rules.pods.Matches(p.Labels) {
			c.dirtyPods[p] = struct{}{}
		}
	}
	if old != nil {
		// A signature goes by the names of its policies, so it may well be
		// the same after the change; it then takes in the policy as it is now.
		for s := range old.signatures {
			c.dirtySignatures[s] = struct{}{}
		}
	}
	c.forget(np.Namespace)
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
		p := &pod{Pod: o}
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
		if s.namespaces != nil && !s.namespaces.Matches(ns.labels) || !s.pods.Matches(p.Labels) {
			return
		}
		p.selectors = append(p.selectors, s)
		s.members[p] = struct{}{}
		c.dirtySelectors[s] = struct{}{}
	}
	c.everywhere.candidates(p.Labels, try)
	ns.selectors.candidates(p.Labels, try)
}

// rematch finds the selectors of a pod anew, after its namespace changed.
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
	return slices.MaxFunc(claims, func(a, b *pod) int {
		switch {
		case a.Created != b.Created:
			return int(max(min(a.Created-b.Created, 1), -1))
		case a.UID != b.UID:
			return strings.Compare(string(a.UID), string(b.UID))
		}
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
}

func (c *Compiler) setOwner(a netip.Addr, p *pod) {
	old := c.owners[a]
	if old == p {
		return
	}
	if _, ok := c.ownersBefore[a]; !ok {
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

// Changes returns what changed since it was last called (or since NewCompiler),
// and moves on to the next generation if that tightens. It never returns nil.
func (c *Compiler) Changes() *Change {
	c.settle()
	out := &Change{Tightens: c.tightens, Mark: c.cfg.MarkMask.Mark(c.generation)}
	c.tightens = false
	for _, f := range Families {
		out.Tables[f] = c.tables[f].changes()
	}
	return out
}

// Ruleset returns all that is desired now.
func (c *Compiler) Ruleset() *Ruleset {
	c.settle()
	var out Ruleset
	for _, f := range Families {
		out.Tables[f] = c.tables[f].table()
	}
	return &out
}

// Tighten moves on to the next generation, so that every flow on the node is
// judged once more. It is for changes that the Compiler did not see happen,
// for example those that the kernel lacked when an agent came back.
func (c *Compiler) Tighten() {
	c.settle()
	c.nextGeneration()
}

// Generation returns the generation in force, from 1 to MarkMask.Max().
func (c *Compiler) Generation() uint32 { return c.generation }

// Problems returns what could not be compiled as it was written, sorted.
func (c *Compiler) Problems() []Problem {
	var out []Problem
	for _, p := range c.policies {
		if len(p.errs) > 0 {
			out = append(out, Problem{Namespace: p.namespace, Name: p.name, UID: p.uid, Err: p.errs.ToAggregate()})
		}
	}
	slices.SortFunc(out, func(a, b Problem) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	return out
}

// Addrs returns the addresses of the node's own pods, sorted.
func (c *Compiler) Addrs() []netip.Addr {
	var out []netip.Addr
	for _, ns := range c.namespaces {
		for p := range ns.local {
			for _, a := range p.Addrs {
				if c.owners[a] == p {
					out = append(out, a)
				}
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Prefixes returns the node's podCIDRs, sorted.
func (c *Compiler) Prefixes() []netip.Prefix {
	n := c.nodes[c.cfg.NodeName]
	if n == nil {
		return nil
	}
	return slices.SortedFunc(slices.Values(n.PodCIDRs), comparePrefix)
}

func comparePrefix(a, b netip.Prefix) int {
	if d := a.Addr().Compare(b.Addr()); d != 0 {
		return d
	}
	return a.Bits() - b.Bits()
}

// Counts are sizes, for metrics.
type Counts struct {
	Pods, LocalPods, Namespaces, Policies, Selectors, Signatures int
}

// Counts returns how much there is of everything.
func (c *Compiler) Counts() Counts {
	out := Counts{Pods: len(c.pods), Policies: len(c.policies), Selectors: len(c.selectors), Signatures: len(c.signatures)}
	for _, ns := range c.namespaces {
		if ns.known {
			out.Namespaces++
		}
		out.LocalPods += len(ns.local)
	}
	return out
}
