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
	// pools and services are those that there are, resolved what follows from them
	// and the nodes; see Pools.
	pools    map[poolKey]*Pool
	services map[string]*ServiceCIDR
	resolved *Pools
	// poolPolicies is how many policies select pods by their pools.
	poolPolicies int
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
	dirtyPools      bool
	// dirtyLabels says that the first policy came that selects pods by their pools.
	dirtyLabels bool

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
		pools:           map[poolKey]*Pool{},
		services:        map[string]*ServiceCIDR{},
		resolved:        &Pools{},
		dirtyBase:       true,
		dirtyPools:      true,
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
		case *Pool:
			c.updatePool(o, d.Deleted)
		case *ServiceCIDR:
			c.updateServices(o, d.Deleted)
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
	before := c.nodes[o.Name]
	if deleted {
		delete(c.nodes, o.Name)
	} else {
		c.nodes[o.Name] = o
	}
	c.dirtyPools = c.dirtyPools || deleted || before == nil || !before.unchanged(o)
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
	c.countPoolPolicies(old, now)
	for p := range ns.local {
		if old != nil && old.rules.pods.Matches(p) || now != nil && now.rules.pods.Matches(p) {
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
	Pods, LocalPods, Namespaces, Nodes, Policies, Selectors, Signatures int
	// Chains, Rules, Sets, Elements and Counters are those of both tables.
	Chains, Rules, Sets, Elements, Counters int
}

// Counts returns how much there is of everything.
func (c *Compiler) Counts() Counts {
	out := Counts{Pods: len(c.pods), Nodes: len(c.nodes), Policies: len(c.policies), Selectors: len(c.selectors), Signatures: len(c.signatures)}
	for _, ns := range c.namespaces {
		if ns.known {
			out.Namespaces++
		}
		out.LocalPods += len(ns.local)
	}
	for _, t := range c.tables {
		out.Chains += len(t.chains)
		out.Rules += t.rules
		out.Sets += len(t.sets)
		out.Elements += t.elements
		out.Counters += len(t.counters)
	}
	return out
}
