package policy

import (
	"fmt"
	"slices"
	"strings"

	"go4.org/netipx"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// writtenRule is a rule as it stands in a policy, of either direction.
type writtenRule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

func writtenRules(np *networkingv1.NetworkPolicy, dir direction) []writtenRule {
	var out []writtenRule
	if dir == ingress {
		for _, r := range np.Spec.Ingress {
			out = append(out, writtenRule{r.From, r.Ports})
		}
		return out
	}
	for _, r := range np.Spec.Egress {
		out = append(out, writtenRule{r.To, r.Ports})
	}
	return out
}

// toward is the word before a peer.
func (d direction) toward() string {
	if d == ingress {
		return "from"
	}
	return "to"
}

// policy compares all rules of a policy with the connection.
func (q *inquiry) policy(np *understood, dir direction, other *end) PolicyExplanation {
	out := PolicyExplanation{Namespace: np.Namespace, Name: np.Name, Rules: []RuleExplanation{}}
	for _, err := range np.errs {
		out.Problems = append(out.Problems, printable(err.Error()))
	}
	for i, r := range writtenRules(np.NetworkPolicy, dir) {
		tried := q.rule(np.Namespace, r, field.NewPath("spec", dir.String()).Index(i), dir, other)
		tried.Index = i
		out.Rules = append(out.Rules, tried)
		out.Allows = out.Allows || tried.Allows
	}
	return out
}

func (q *inquiry) rule(namespace string, r writtenRule, path *field.Path, dir direction, other *end) RuleExplanation {
	out := RuleExplanation{PeerMatches: len(r.peers) == 0, PortMatches: len(r.ports) == 0}
	var peers, ports []string
	for i := range r.peers {
		t := q.tryPeer(namespace, &r.peers[i], path.Child(dir.toward()).Index(i), other)
		out.Peers, peers = append(out.Peers, t), append(peers, t.Text)
		out.PeerMatches = out.PeerMatches || t.Matches
	}
	for i := range r.ports {
		t := q.tryPort(&r.ports[i], path.Child("ports").Index(i))
		out.Ports, ports = append(out.Ports, t), append(ports, t.Text)
		out.PortMatches = out.PortMatches || t.Matches
	}
	out.Allows = out.PeerMatches && out.PortMatches
	out.Text = dir.toward() + " anyone, "
	if len(peers) > 0 {
		out.Text = dir.toward() + " " + orText(peers) + ", "
	}
	if len(ports) > 0 {
		out.Text += "ports " + listText(ports)
	} else {
		out.Text += "all ports"
	}
	return out
}

// tryPeer compares a peer of a policy in a namespace with the other end.
func (q *inquiry) tryPeer(namespace string, in *networkingv1.NetworkPolicyPeer, path *field.Path, other *end) Tried {
	p := parser{namespace: namespace}
	var r rule
	var blocks netipx.IPSetBuilder
	p.peer(in, path, &r, &blocks)
	out := Tried{Text: printable(peerText(in))}
	switch {
	case len(p.errs) > 0:
		out.Why = notUnderstood(p.errs)
	case in.IPBlock != nil:
		// IPSet fails only on what was invalid when it was added.
		set, _ := blocks.IPSet()
		if out.Matches = set.Contains(other.Address); !out.Matches {
			out.Why = outsideBlock(in.IPBlock, other)
		}
	default:
		differs := q.differences(&r.pods[0], other)
		out.Matches, out.Why = len(differs) == 0, strings.Join(differs, "; ")
	}
	out.Why = printable(out.Why)
	return out
}

func notUnderstood(errs field.ErrorList) string {
	return "cannot be understood: " + errs.ToAggregate().Error()
}

// outsideBlock says why an ipBlock does not hold the address of an end.
func outsideBlock(b *networkingv1.IPBlock, e *end) string {
	for _, text := range b.Except {
		if except, err := parsePrefix(text); err == nil && except.Contains(e.Address) {
			return fmt.Sprintf("%s is in except %s", e.Address, text)
		}
	}
	return fmt.Sprintf("%s is not in it", e.Address)
}

// differences says in what an end differs from what a peer selects; nothing, if it is
// selected.
func (q *inquiry) differences(p *peer, e *end) []string {
	switch {
	case e.owner != nil:
	case e.Kind == EndHostNetwork:
		return []string{fmt.Sprintf("%s/%s is on the network of its node, where selectors match no pod", e.Namespace, e.Name)}
	case e.Kind == EndNode:
		return []string{fmt.Sprintf("%s is the node %s, and selectors match pods only", e.Address, e.Node)}
	default:
		return []string{fmt.Sprintf("%s is no pod's address", e.Address)}
	}
	var out []string
	if p.namespaces == nil && e.owner.Namespace != p.namespace {
		out = append(out, fmt.Sprintf("without namespaceSelector it selects pods of %s, the pod is in %s", p.namespace, e.owner.Namespace))
	}
	if p.namespaces != nil {
		out = append(out, unmet(p.namespaces, q.labelsOf(e.owner.Namespace), "the namespace "+e.owner.Namespace)...)
	}
	return append(out, unmet(p.pods, q.view(e.owner), "the pod")...)
}

// unmet says of each label that a selector does not accept what it is instead.
func unmet(sel labels.Selector, l labels.Labels, who string) []string {
	var out []string
	reqs, _ := sel.Requirements()
	for _, r := range reqs {
		if r.Matches(l) {
			continue
		}
		text := who + " has no label " + r.Key()
		if v, there := l.Lookup(r.Key()); there {
			text = who + " has " + r.Key() + "=" + v
		} else if _, ok := l.(*pod); ok && r.Key() == PoolLabel {
			text = who + " is in no pool"
		}
		out = appendMissing(out, []string{text})
	}
	return out
}

// tryPort compares a port of a rule with the connection's.
func (q *inquiry) tryPort(in *networkingv1.NetworkPolicyPort, path *field.Path) Tried {
	p := parser{}
	var ranges [len(protocols)][]portRange
	var named []namedPort
	p.port(in, path, &ranges, &named)
	out := Tried{Text: printable(portText(in))}
	i := protocolIndex(q.protocol)
	switch {
	case len(p.errs) > 0:
		out.Why = notUnderstood(p.errs)
	case i < 0:
		out.Why = protocolText(q.protocol) + " has no ports: only rules without ports allow it"
	case len(named) > 0:
		out.Why = q.otherName(named[0])
	case len(ranges[i]) == 0:
		out.Why = "the protocol is " + protocolText(q.protocol)
	case !within(ranges[i], q.port):
		out.Why = fmt.Sprintf("the port is %d", q.port)
	}
	out.Matches = out.Why == ""
	out.Why = printable(out.Why)
	return out
}

func within(ranges []portRange, port uint16) bool {
	return slices.ContainsFunc(ranges, func(r portRange) bool { return r.from <= port && port <= r.to })
}

// otherName says why a named port is not that of the connection; nothing, if it is.
func (q *inquiry) otherName(n namedPort) string {
	on := q.to.owner
	switch {
	case n.protocol != q.protocol:
		return "the protocol is " + protocolText(q.protocol)
	case on == nil:
		return fmt.Sprintf("%s is no pod's address, so that ports have no names there", q.to.Address)
	}
	var numbers []string
	for _, p := range on.Ports {
		if p.Name != n.name || p.Protocol != n.protocol {
			continue
		}
		if p.Port == q.port {
			return ""
		}
		numbers = append(numbers, itoa(uint32(p.Port)))
	}
	if len(numbers) == 0 {
		return fmt.Sprintf("%s/%s has no %s port named %s", on.Namespace, on.Name, protocolText(n.protocol), n.name)
	}
	return fmt.Sprintf("%s is %s on %s/%s, the port is %d", n.name, strings.Join(numbers, " and "), on.Namespace, on.Name, q.port)
}

// peerText renders a peer as it stands in a policy.
func peerText(p *networkingv1.NetworkPolicyPeer) string {
	var parts []string
	if p.NamespaceSelector != nil {
		parts = append(parts, "namespaceSelector "+selectorText(p.NamespaceSelector))
	}
	if p.PodSelector != nil {
		parts = append(parts, "podSelector "+selectorText(p.PodSelector))
	}
	if b := p.IPBlock; b != nil {
		text := "ipBlock " + b.CIDR
		if len(b.Except) > 0 {
			text += " except " + listText(b.Except)
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return "an empty peer"
	}
	return strings.Join(parts, " ")
}

func selectorText(s *metav1.LabelSelector) string {
	sel, err := metav1.LabelSelectorAsSelector(s)
	switch {
	case err != nil:
		return "(invalid)"
	case sel.Empty():
		return "{}"
	}
	return sel.String()
}

// portText renders a port as it stands in a policy.
func portText(p *networkingv1.NetworkPolicyPort) string {
	protocol := string(corev1.ProtocolTCP)
	if p.Protocol != nil {
		protocol = string(*p.Protocol)
	}
	port := "*"
	if p.Port != nil {
		port = p.Port.String()
	}
	if p.EndPort != nil {
		port += fmt.Sprintf("-%d", *p.EndPort)
	}
	return port + "/" + protocol
}

// protocolText names a protocol as the API does.
func protocolText(p Protocol) string {
	switch p {
	case TCP, UDP, SCTP:
		return strings.ToUpper(p.String())
	case protocolICMP:
		return "ICMP"
	case protocolICMPv6:
		return "ICMPv6"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// The protocols of the messages of IPv4 and IPv6. No policy can name them.
const (
	protocolICMP   Protocol = 1
	protocolICMPv6 Protocol = 58
)
