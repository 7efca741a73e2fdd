package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// notJudged stands for a hook where no rule sees a connection: what a node itself
// sends and, unless PodToNodePolicy is set, what it gets.
const notJudged = ""

// maxClaims is how many pods are named that claim another one's address.
const maxClaims = 3

// end is an End, and the pod that its address belongs to, or nil.
type end struct {
	End
	owner *Pod
}

// of tells whether the address is one of a node's own.
func (e *end) of(node string) bool {
	return (e.Kind == EndNode || e.Kind == EndHostNetwork) && e.Node == node
}

// inquiry is a Flow whose ends were found.
type inquiry struct {
	*Explainer
	from, to end
	protocol Protocol
	port     uint16
}

// Explain says what becomes of a connection; see the function of that name.
func (x *Explainer) Explain(f Flow) Explanation {
	if protocolIndex(f.Protocol) < 0 {
		f.Port = 0
	}
	err := x.choose(&f)
	q := inquiry{x, x.end(f.From), x.end(f.To), f.Protocol, f.Port}
	e := Explanation{
		Outcome: OutcomeAllowed, From: q.from.End, To: q.to.End, Flow: f, Protocol: protocolText(f.Protocol), Port: f.Port,
	}
	if err != nil {
		e.Outcome, e.Summary = OutcomeUnclear, printable("cannot tell: "+err.Error())
		return e
	}
	q.judge(&e)
	e.Notes = q.notes()
	e.Summary = e.summary()
	return e
}

// choose decides which addresses of the ends are meant.
func (x *Explainer) choose(f *Flow) error {
	from, errFrom := x.addresses(f.From)
	to, errTo := x.addresses(f.To)
	switch {
	case errFrom != nil && errTo != nil:
		return fmt.Errorf("%w; %w", errFrom, errTo)
	case errFrom != nil || errTo != nil:
		return cmp.Or(errFrom, errTo)
	}
	for _, family := range Families {
		a, b := ofFamily(from, family), ofFamily(to, family)
		if a.IsValid() && b.IsValid() {
			f.From.Addr, f.To.Addr = a, b
			return nil
		}
	}
	return fmt.Errorf("the ends have no address of the same family: %v and %v", from, to)
}

// ofFamily returns the first address of a family, or an invalid one.
func ofFamily(addrs []netip.Addr, f Family) netip.Addr {
	if i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return FamilyOf(a) == f }); i >= 0 {
		return addrs[i]
	}
	return netip.Addr{}
}

// addresses returns those that an endpoint has, or why it has none.
func (x *Explainer) addresses(e Endpoint) ([]netip.Addr, error) {
	if e.Name == "" {
		if !e.Addr.IsValid() {
			return nil, errors.New("an end is neither a pod nor an address")
		}
		return []netip.Addr{e.Addr.Unmap().WithZone("")}, nil
	}
	name := e.Namespace + "/" + e.Name
	p := x.pods[key{e.Namespace, e.Name}]
	switch {
	case p == nil:
		return nil, fmt.Errorf("there is no pod %s", name)
	case p.Finished:
		return nil, fmt.Errorf("%s has finished: it has no address any more", name)
	}
	addrs := slices.Clone(p.Addrs)
	if p.HostNetwork && len(addrs) == 0 {
		for _, n := range x.snapshot.Nodes {
			if n.Name == p.Node {
				addrs = slices.Clone(n.Addrs)
			}
		}
	}
	switch {
	case len(addrs) == 0:
		return nil, fmt.Errorf("%s has no address yet", name)
	case !e.Addr.IsValid():
		return x.owned(p, addrs)
	case !slices.Contains(addrs, e.Addr):
		return nil, fmt.Errorf("%s does not have the address %s", name, e.Addr)
	}
	return x.owned(p, []netip.Addr{e.Addr})
}

// owned returns those of a pod's addresses that no other pod has taken over.
func (x *Explainer) owned(p *Pod, addrs []netip.Addr) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, a := range addrs {
		if owner := x.owners[a]; owner == p || owner == nil {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		owner := x.owners[addrs[0]]
		return nil, fmt.Errorf("%s/%s has no address any more: %s belongs to %s/%s", p.Namespace, p.Name, addrs[0], owner.Namespace, owner.Name)
	}
	return out, nil
}

// end finds out who is at an end. Without an address it is only what it is called.
func (x *Explainer) end(e Endpoint) end {
	out := end{End: End{Kind: EndOutside, Address: e.Addr, Service: e.Service}, owner: x.owners[e.Addr]}
	named := x.pods[key{e.Namespace, e.Name}]
	if e.Name != "" && named != out.owner {
		out.owner = nil // it is on its node's network, or cannot be judged
	}
	switch {
	case out.owner != nil:
		out.Kind, out.Namespace, out.Name, out.Node = EndPod, out.owner.Namespace, out.owner.Name, out.owner.Node
	case e.Name != "":
		out.Kind, out.Namespace, out.Name = EndPod, e.Namespace, e.Name
		if named != nil {
			out.Node = named.Node
		}
		if named != nil && named.HostNetwork {
			out.Kind = EndHostNetwork
		}
	case x.nodeOf[e.Addr] != "":
		out.Kind, out.Node = EndNode, x.nodeOf[e.Addr]
	default:
		if closing := x.closing(e.Addr); len(closing) > 0 {
			out.Kind, out.Node = EndUnknown, closing[0]
		}
	}
	return out
}

// homes returns the nodes that an end is at, as far as that is known.
func (x *Explainer) homes(e *end) []string {
	if e.Node != "" && e.Kind != EndUnknown {
		return []string{e.Node}
	}
	return x.closing(e.Address)
}

// hook says where a node's rules see the connection.
func (q *inquiry) hook(node string) string {
	switch {
	case q.from.of(node):
		return notJudged
	case !q.to.of(node):
		return chainForward
	case q.cfg.PodToNode == PodToNodePolicy:
		return chainInput
	}
	return notJudged
}

// closed tells whether a node closes an address: because none of the node's pods is
// known to have it.
func (q *inquiry) closed(node string, e *end) bool {
	return (e.owner == nil || e.owner.Node != node) && slices.Contains(q.closing(e.Address), node)
}

// judge works out both sides, and what each node makes of them.
func (q *inquiry) judge(e *Explanation) {
	for _, node := range appendMissing(q.homes(&q.from), q.homes(&q.to)) {
		if hook := q.hook(node); hook != notJudged {
			e.Nodes = append(e.Nodes, NodeOutcome{node, hook, OutcomeAllowed})
		}
	}
	e.Egress, e.Ingress = q.side(egress), q.side(ingress)
	for i := range e.Nodes {
		if n := &e.Nodes[i]; e.Egress.denies(n.Node) || e.Ingress.denies(n.Node) {
			n.Outcome = OutcomeDenied
		}
	}
	for i := range e.Nodes {
		n := &e.Nodes[i]
		q.closeAt(n, &e.Egress, &q.from)
		if n.Hook == chainForward {
			q.closeAt(n, &e.Ingress, &q.to)
		}
	}
	if slices.ContainsFunc(e.Nodes, func(n NodeOutcome) bool { return n.Outcome == OutcomeDenied }) {
		e.Outcome = OutcomeDenied
	}
}

// denies tells whether the rules of a node deny that side.
func (s *Side) denies(node string) bool {
	return s != nil && s.Outcome == OutcomeDenied && s.Node == node
}

// closeAt denies what a node closes, whatever policies say.
func (q *inquiry) closeAt(n *NodeOutcome, side **Side, at *end) {
	if !q.closed(n.Node, at) {
		return
	}
	n.Outcome = OutcomeDenied
	if *side == nil {
		*side = &Side{}
	}
	if s := *side; s.Why != WhyUnknownAddress {
		s.Outcome, s.Why, s.Node, s.AllowedBy = OutcomeDenied, WhyUnknownAddress, n.Node, nil
		s.Text = printable(fmt.Sprintf("denied: %s is in the podCIDRs of %s, and no pod of that node is known to have it", at.Address, n.Node))
	}
}

// side works out what policies say at one end, or nil if no pod is there.
func (q *inquiry) side(dir direction) *Side {
	self, other := &q.from, &q.to
	if dir == ingress {
		self, other = other, self
	}
	p := self.owner
	if p == nil {
		return nil
	}
	s := &Side{Outcome: OutcomeAllowed, Node: p.Node}
	for _, np := range q.isolating(p, dir) {
		s.Policies = append(s.Policies, q.policy(np, dir, other))
	}
	s.Isolated = len(s.Policies) > 0
	switch {
	case p == other.owner:
		s.Why, s.Text = WhyItself, "allowed: a pod always reaches itself"
	case p.Node == "":
		s.Why, s.Text = WhyNoNode, "allowed: the pod is on no node that could enforce anything"
	case q.hook(p.Node) == notJudged && dir == ingress:
		s.Why, s.Text = WhyOwnNode, "allowed: a node always reaches its own pods"
	case q.hook(p.Node) == notJudged:
		s.Why, s.Text = WhyOwnNode, "allowed: a pod reaches its own node"
	case !s.Isolated:
		s.Why, s.Text = WhyNotIsolated, "allowed: no policy isolates it"
	default:
		s.decide(dir)
	}
	s.Text = printable(s.Text)
	return s
}

// decide lets policies decide.
func (s *Side) decide(dir direction) {
	s.Why = WhyPolicies
	for _, np := range s.Policies {
		for _, r := range np.Rules {
			if r.Allows {
				s.AllowedBy = append(s.AllowedBy, RuleRef{np.Namespace, np.Name, dir.String(), r.Index, r.Text})
			}
		}
	}
	if len(s.AllowedBy) == 0 {
		s.Outcome = OutcomeDenied
		s.Text = "denied by " + s.names()
		return
	}
	by := s.AllowedBy[0]
	s.Text = fmt.Sprintf("allowed by %s %s[%d]: %s", by.Policy, by.Direction, by.Index, by.Text)
	if more := len(s.AllowedBy) - 1; more > 0 {
		s.Text += fmt.Sprintf("; and by %d more", more)
	}
}

// names names the policies of a side.
func (s *Side) names() string {
	names := make([]string, len(s.Policies))
	for i, np := range s.Policies {
		names[i] = np.Name
	}
	return listText(names)
}

// summary answers in one line.
func (e *Explanation) summary() string {
	if e.Outcome == OutcomeAllowed {
		return "allowed"
	}
	var parts []string
	deny := func(s *Side, dir direction) {
		switch {
		case s == nil || s.Outcome != OutcomeDenied:
		case s.Why == WhyUnknownAddress:
			parts = append(parts, "because "+strings.TrimPrefix(s.Text, "denied: "))
		default:
			parts = append(parts, fmt.Sprintf("by %s policies of %s: %s", dir, s.Policies[0].Namespace, s.names()))
		}
	}
	deny(e.Egress, egress)
	deny(e.Ingress, ingress)
	return printable("denied " + strings.Join(parts, "; and "))
}

// notes tells what else there is to know about the ends.
func (q *inquiry) notes() []string {
	var out []string
	note := func(format string, args ...any) { out = append(out, printable(fmt.Sprintf(format, args...))) }
	for _, e := range []*end{&q.from, &q.to} {
		q.claimed(e, note)
		switch {
		case e.Kind == EndHostNetwork:
			note("%s/%s is on the network of %s: policies do not select it, and see no pod but the node's address", e.Namespace, e.Name, e.Node)
		case e.Kind == EndUnknown:
			note("%s stays closed until its pod is known, unless it is one of %s's own, as a bridge has: then it counts as the node", e.Address, e.Node)
		case e.Address.Is6() && e.Address.IsLinkLocalUnicast():
			note("%s is an address of a link: between pods of a bridge such traffic is closed as soon as anything on the node is isolated", e.Address)
		}
	}
	if (q.from.Kind == EndHostNetwork || q.from.Kind == EndNode) && q.to.owner != nil && q.to.Node != q.from.Node {
		note("what %s sends to pods elsewhere may have the address of a tunnel device as its source; an ipBlock is compared with that one", q.from.Node)
	}
	return out
}

// claimed notes who else says that he has the address of an end.
func (q *inquiry) claimed(e *end, note func(string, ...any)) {
	claims := q.claims[e.Address]
	for _, p := range claims[:min(len(claims), maxClaims)] {
		switch {
		case p.Finished:
			note("%s was also %s/%s's, which has finished", e.Address, p.Namespace, p.Name)
		case e.owner != nil:
			note("%s/%s claims %s as well: %s/%s is newer and has it", p.Namespace, p.Name, e.Address, e.owner.Namespace, e.owner.Name)
		}
	}
}
