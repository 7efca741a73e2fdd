package policytest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
)

// Next makes a snapshot that could follow s: one to three objects of it changed,
// came or went.
func Next(o Options, s policy.Snapshot) *rapid.Generator[policy.Snapshot] {
	return rapid.Custom(func(t *rapid.T) policy.Snapshot {
		d, next := drawer{t, o}, s
		for range 1 + d.upTo(2) {
			next = d.change(next)
		}
		return next
	})
}

// Step makes a snapshot that differs from s in one object.
func Step(o Options, s policy.Snapshot) *rapid.Generator[policy.Snapshot] {
	return rapid.Custom(func(t *rapid.T) policy.Snapshot { return drawer{t, o}.change(s) })
}

// change changes one object. The objects of s stay as they are.
func (d drawer) change(s policy.Snapshot) policy.Snapshot {
	s.Pods, s.Namespaces = slices.Clone(s.Pods), slices.Clone(s.Namespaces)
	s.Nodes, s.Bridges, s.Policies = slices.Clone(s.Nodes), slices.Clone(s.Bridges), slices.Clone(s.Policies)
	s.Pools, s.Services = slices.Clone(s.Pools), slices.Clone(s.Services)
	if d.o.Pools && d.upTo(3) == 3 {
		d.changePools(&s)
		return s
	}
	switch d.upTo(16) {
	case 0, 1:
		d.changeNamespace(&s)
	case 2:
		d.changeNode(&s)
	case 16:
		d.changeBridge(&s)
	case 3, 4, 5, 6, 7:
		d.changePolicy(&s)
	default:
		d.changePod(&s)
	}
	return s
}

func (d drawer) changeNamespace(s *policy.Snapshot) {
	name := pick(d, namespaces...)
	i := slices.IndexFunc(s.Namespaces, func(n *policy.Namespace) bool { return n.Name == name })
	switch {
	case i < 0:
		s.Namespaces = append(s.Namespaces, d.namespace(name))
	case d.maybe():
		s.Namespaces = slices.Delete(s.Namespaces, i, i+1)
	default:
		s.Namespaces[i] = d.namespace(name)
	}
}

func (d drawer) changeNode(s *policy.Snapshot) {
	name := pick(d, NodeA, NodeB)
	i := slices.IndexFunc(s.Nodes, func(n *policy.Node) bool { return n.Name == name })
	switch {
	case i < 0:
		s.Nodes = append(s.Nodes, d.node(name))
	case d.o.Physical:
	case d.maybe():
		s.Nodes = slices.Delete(s.Nodes, i, i+1)
	default:
		s.Nodes[i] = d.node(name)
	}
}

func (d drawer) changeBridge(s *policy.Snapshot) {
	if len(s.Bridges) > 0 {
		s.Bridges = nil
		return
	}
	s.Bridges = append(s.Bridges, d.bridge())
}

func (d drawer) changePod(s *policy.Snapshot) {
	if len(s.Pods) == 0 || d.upTo(3) == 3 {
		i := d.free(s)
		p := d.pod(*s, i)
		p.UID, p.Created = uid(i, 1+d.upTo(1000)), int64(1000+d.upTo(6))
		s.Pods = append(s.Pods, p)
		return
	}
	i := d.upTo(len(s.Pods) - 1)
	p := *s.Pods[i]
	switch d.upTo(6) {
	case 0:
		s.Pods = slices.Delete(s.Pods, i, i+1)
		return
	case 1:
		p.Labels = policy.NewLabels(d.podLabels())
	case 2:
		p.Ports = d.namedPorts()
	case 3:
		// Finished pods do not run again; that one seems to is what an informer
		// can make of a deleted pod whose name came back.
		p.Finished = d.o.Physical || !p.Finished
	case 4:
		p.Addrs = d.otherAddr(*s, p)
	case 5:
		if p.Node == "" {
			p.Node = pick(d, NodeA, NodeB)
		}
	case 6:
		// The same name again, without a delete in between.
		fresh := d.pod(*s, 0)
		fresh.Namespace, fresh.Name = p.Namespace, p.Name
		fresh.UID, fresh.Created = types.UID(fmt.Sprintf("%s-again-%d", p.Name, d.upTo(1000))), p.Created+1
		p = *fresh
	}
	s.Pods[i] = &p
}

// free returns a number that no pod is named after.
func (d drawer) free(s *policy.Snapshot) int {
	for i := 0; ; i++ {
		name := fmt.Sprintf("pod-%d", i)
		if !slices.ContainsFunc(s.Pods, func(p *policy.Pod) bool { return p.Name == name }) {
			return i
		}
	}
}

// otherAddr changes the addresses of a pod: it gains its second one, loses one,
// or gets others.
func (d drawer) otherAddr(s policy.Snapshot, p policy.Pod) []netip.Addr {
	switch {
	case p.HostNetwork:
		return p.Addrs
	case len(p.Addrs) == 2 && d.maybe():
		return p.Addrs[d.upTo(1):][:1]
	case len(p.Addrs) == 1 && d.likely():
		v4, v6 := nodeCIDRs(p.Node)
		if p.Addrs[0].Is4() {
			return d.addr(slices.Clone(p.Addrs), s, v6, netip.MustParseAddr("fd00:9::2"))
		}
		return d.addr(slices.Clone(p.Addrs), s, v4, netip.MustParseAddr("10.9.0.2"))
	}
	return d.addrs(s, &p)
}

func (d drawer) changePolicy(s *policy.Snapshot) {
	if len(s.Policies) == 0 || d.upTo(4) == 4 {
		i := 0
		for slices.ContainsFunc(s.Policies, func(np *networkingv1.NetworkPolicy) bool { return np.Name == fmt.Sprintf("policy-%d", i) }) {
			i++
		}
		s.Policies = append(s.Policies, d.policy(*s, i))
		return
	}
	i := d.upTo(len(s.Policies) - 1)
	np := s.Policies[i].DeepCopy()
	switch d.upTo(6) {
	case 0, 1:
		s.Policies = slices.Delete(s.Policies, i, i+1)
		return
	case 2:
		np.Spec = d.spec(*s)
	case 3:
		np.Spec.PolicyTypes = d.policyTypes()
	case 4:
		np.Spec.PodSelector = *d.selector(d.podKeys())
	default:
		d.changeRule(*s, np)
	}
	s.Policies[i] = np
}

// changeRule adds, removes or changes one rule.
func (d drawer) changeRule(s policy.Snapshot, np *networkingv1.NetworkPolicy) {
	if d.maybe() {
		rules := np.Spec.Ingress
		switch n := len(rules); {
		case n == 0 || d.upTo(2) == 0:
			rules = append(rules, networkingv1.NetworkPolicyIngressRule{From: d.peers(s), Ports: d.ports()})
		case d.maybe():
			rules = rules[:n-1]
		case d.maybe():
			rules[n-1].Ports = d.ports()
		default:
			rules[n-1].From = d.peers(s)
		}
		np.Spec.Ingress = rules
		return
	}
	rules := np.Spec.Egress
	switch n := len(rules); {
	case n == 0 || d.upTo(2) == 0:
		rules = append(rules, networkingv1.NetworkPolicyEgressRule{To: d.peers(s), Ports: d.ports()})
	case d.maybe():
		rules = rules[:n-1]
	case d.maybe():
		rules[n-1].Ports = d.ports()
	default:
		rules[n-1].To = d.peers(s)
	}
	np.Spec.Egress = rules
}

// Deltas are a batch of changes.
type Deltas []policy.Delta

// GoString renders the deltas for a failure report.
func (ds Deltas) GoString() string {
	var b strings.Builder
	for _, d := range ds {
		text := strings.TrimSpace(Text(fromKeys(map[string]policy.Object{objectKey(d.Object): d.Object})))
		if d.Deleted {
			text = "deleted: " + text
		}
		b.WriteString("\n" + text)
	}
	return b.String()
}

// Events turns a history into the deltas that an informer could make of it. The
// order of the versions of one object is kept, all else is open: deltas of
// different objects come in any order, versions in between are left out
// (squashed) or come from nowhere (split), and some deltas come more than once.
// A Model that held the first snapshot holds the last one in the end.
func Events(o Options, history ...policy.Snapshot) *rapid.Generator[Deltas] {
	return rapid.Custom(func(t *rapid.T) Deltas {
		d := drawer{t, o}
		d.maybe() // rapid wants every generator to draw something, even if nothing happened
		return d.events(history)
	})
}

func (d drawer) events(history []policy.Snapshot) Deltas {
	versions := map[string]Deltas{}
	var keys []string
	for i := 1; i < len(history); i++ {
		before, after := byKey(history[i-1]), byKey(history[i])
		for _, key := range changed(before, after) {
			if _, ok := versions[key]; !ok {
				keys = append(keys, key)
				versions[key] = nil
			}
			if i < len(history)-1 && d.maybe() && byKey(history[i+1])[key] != after[key] {
				// Squashed: the next step has another version, and history tells
				// what was before that one. A deletion is only left out if the
				// object is back in the next step.
				continue
			}
			versions[key] = append(versions[key], d.deltas(history[i], before[key], after[key])...)
		}
	}
	var out Deltas
	for len(keys) > 0 {
		i := d.upTo(len(keys) - 1)
		queue := versions[keys[i]]
		if len(queue) > 0 {
			out = append(out, queue[0])
			versions[keys[i]] = queue[1:]
		}
		if len(queue) <= 1 {
			keys = slices.Delete(keys, i, i+1)
		} else if d.rarely() {
			out = append(out, duplicate(queue[0]))
		}
	}
	return out
}

// Histories makes the deltas of a cluster's life, from nothing on, in batches.
func Histories(o Options, maxSteps int) *rapid.Generator[[]Deltas] {
	return rapid.Custom(func(t *rapid.T) []Deltas {
		d := drawer{t, o}
		var batches []Deltas
		previous, next := policy.Snapshot{}, Snapshots(o).Draw(t, "start")
		for range 1 + d.upTo(maxSteps-1) {
			history := []policy.Snapshot{previous, next}
			if d.upTo(3) == 3 {
				history = append(history, Next(o, next).Draw(t, "further"))
			}
			deltas := d.events(history)
			for len(deltas) > 0 {
				n := 1 + d.upTo(len(deltas)-1)
				batches, deltas = append(batches, deltas[:n]), deltas[n:]
			}
			previous = history[len(history)-1]
			next = Next(o, previous).Draw(t, "next")
		}
		return batches
	})
}

// changed returns the keys of the objects that two states differ in, sorted.
func changed(before, after map[string]policy.Object) []string {
	var keys []string
	for k, o := range after {
		if before[k] != o {
			keys = append(keys, k)
		}
	}
	for k := range before {
		if after[k] == nil {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// deltas returns how one object gets from one version to the next.
func (d drawer) deltas(s policy.Snapshot, before, after policy.Object) []policy.Delta {
	var out []policy.Delta
	if d.upTo(3) == 3 {
		if v := d.version(s, before, after); v != nil {
			out = append(out, policy.Delta{Object: v})
		}
	}
	if before != nil && after != nil && d.rarely() {
		out = append(out, policy.Delta{Object: before, Deleted: true})
	}
	if after == nil {
		return append(out, policy.Delta{Object: before, Deleted: true})
	}
	out = append(out, policy.Delta{Object: after})
	if d.upTo(3) == 3 {
		out = append(out, duplicate(policy.Delta{Object: after}))
	}
	return out
}

// version draws a version of an object that no snapshot has.
func (d drawer) version(s policy.Snapshot, before, after policy.Object) policy.Object {
	model := after
	if model == nil {
		model = before
	}
	switch o := model.(type) {
	case *policy.Pod:
		p := d.pod(s, 0)
		p.Meta, p.Created, p.HostNetwork, p.Node = o.Meta, o.Created, o.HostNetwork, o.Node
		p.Addrs = d.addrs(s, p)
		return p
	case *networkingv1.NetworkPolicy:
		np := o.DeepCopy()
		np.Spec = d.spec(s)
		return np
	case *policy.Namespace:
		return d.namespace(o.Name)
	case *policy.Pool:
		return d.pool(o.Name, o.Origin)
	case *policy.ServiceCIDR:
		return d.services(o.Name)
	}
	return nil
}

// duplicate returns an equal delta that shares no memory with the first.
func duplicate(delta policy.Delta) policy.Delta {
	switch o := delta.Object.(type) {
	case *policy.Pod:
		p := *o
		p.Labels, p.Addrs, p.Ports = slices.Clone(p.Labels), slices.Clone(p.Addrs), slices.Clone(p.Ports)
		delta.Object = &p
	case *policy.Namespace:
		n := *o
		n.Labels = slices.Clone(n.Labels)
		delta.Object = &n
	case *policy.Node:
		n := *o
		n.PodCIDRs, n.Addrs, n.Labels = slices.Clone(n.PodCIDRs), slices.Clone(n.Addrs), slices.Clone(n.Labels)
		delta.Object = &n
	case *policy.Pool:
		p := *o
		p.CIDRs = slices.Clone(p.CIDRs)
		delta.Object = &p
	case *policy.ServiceCIDR:
		v := *o
		v.CIDRs = slices.Clone(v.CIDRs)
		delta.Object = &v
	case *policy.Bridge:
		b := *o
		delta.Object = &b
	case *networkingv1.NetworkPolicy:
		delta.Object = o.DeepCopy()
	}
	return delta
}
