package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"go4.org/netipx"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// direction is one of the two directions of a pod's traffic.
type direction uint8

const (
	ingress direction = iota
	egress
)

var directions = [...]direction{ingress, egress}

func (d direction) String() string {
	if d == ingress {
		return "ingress"
	}
	return "egress"
}

// rules is a NetworkPolicy's spec, understood. What could not be understood
// is missing from it, so that it allows nothing.
type rules struct {
	pods labels.Selector
	// byPool says that a selector of pods asks for their pool.
	byPool   bool
	isolates [len(directions)]bool
	rules    [len(directions)][]rule
}

// rule allows traffic with any of its peers, if the port is one of ports.
type rule struct {
	anyone bool
	pods   []peer
	// blocks are what the rule's ipBlocks cover, excepts taken out.
	blocks *netipx.IPSet
	ports  portSet
}

// peer selects pods by their labels and those of their namespace.
type peer struct {
	// namespace is the one that the pods are in, unless namespaces is set.
	namespace  string
	namespaces labels.Selector
	pods       labels.Selector
}

func (p *peer) key() string {
	if p.namespaces != nil {
		return "namespaces(" + p.namespaces.String() + ") pods(" + p.pods.String() + ")"
	}
	return "namespace " + p.namespace + " pods(" + p.pods.String() + ")"
}

// Validate says what of a NetworkPolicy cannot be compiled as it was written.
// An API server refuses such an object; a manifest can hold it.
func Validate(np *networkingv1.NetworkPolicy) field.ErrorList {
	_, errs := parse(np)
	return errs
}

func parse(np *networkingv1.NetworkPolicy) (*rules, field.ErrorList) {
	p := parser{namespace: np.Namespace}
	spec := field.NewPath("spec")
	out := &rules{pods: p.selector(&np.Spec.PodSelector, spec.Child("podSelector"))}
	if out.pods == nil {
		// Whom the policy means cannot be known: all of the namespace.
		out.pods = labels.Everything()
	}
	out.isolates = p.types(&np.Spec, spec.Child("policyTypes"))
	for i, r := range np.Spec.Ingress {
		path := spec.Child("ingress").Index(i)
		out.rules[ingress] = append(out.rules[ingress], p.rule(r.From, path.Child("from"), r.Ports, path.Child("ports")))
	}
	for i, r := range np.Spec.Egress {
		path := spec.Child("egress").Index(i)
		out.rules[egress] = append(out.rules[egress], p.rule(r.To, path.Child("to"), r.Ports, path.Child("ports")))
	}
	out.byPool = out.asksForPool()
	return out, p.errs
}

// asksForPool tells whether one of the selectors of pods mentions PoolLabel.
func (r *rules) asksForPool() bool {
	mentions := func(sel labels.Selector) bool {
		reqs, _ := sel.Requirements()
		return slices.ContainsFunc(reqs, func(r labels.Requirement) bool { return r.Key() == PoolLabel })
	}
	for _, dir := range r.rules {
		for i := range dir {
			if slices.ContainsFunc(dir[i].pods, func(p peer) bool { return mentions(p.pods) }) {
				return true
			}
		}
	}
	return mentions(r.pods)
}

// parser gathers what is wrong with one policy.
type parser struct {
	namespace string
	errs      field.ErrorList
}

func (p *parser) fail(err *field.Error) { p.errs = append(p.errs, err) }

// selector returns nil if the selector is invalid.
func (p *parser) selector(s *metav1.LabelSelector, path *field.Path) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		p.fail(field.Invalid(path, field.OmitValueType{}, err.Error()))
		return nil
	}
	return sel
}

// types says which directions the policy isolates. Without policyTypes that is
// ingress, and egress if there are egress rules. A type that is not known
// could have meant either: both.
func (p *parser) types(spec *networkingv1.NetworkPolicySpec, path *field.Path) (isolates [2]bool) {
	if len(spec.PolicyTypes) == 0 {
		isolates[ingress] = true
		isolates[egress] = len(spec.Egress) > 0
		return isolates
	}
	for i, t := range spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			isolates[ingress] = true
		case networkingv1.PolicyTypeEgress:
			isolates[egress] = true
		default:
			p.fail(field.NotSupported(path.Index(i), t, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}))
			isolates = [2]bool{true, true}
		}
	}
	return isolates
}

func (p *parser) rule(peers []networkingv1.NetworkPolicyPeer, peersPath *field.Path, ports []networkingv1.NetworkPolicyPort, portsPath *field.Path) rule {
	r := rule{anyone: len(peers) == 0, ports: p.ports(ports, portsPath)}
	var blocks netipx.IPSetBuilder
	for i := range peers {
		p.peer(&peers[i], peersPath.Index(i), &r, &blocks)
	}
	// IPSet fails only on what was invalid when it was added.
	r.blocks, _ = blocks.IPSet()
	return r
}

func (p *parser) peer(np *networkingv1.NetworkPolicyPeer, path *field.Path, r *rule, blocks *netipx.IPSetBuilder) {
	if np.IPBlock != nil {
		if np.PodSelector != nil || np.NamespaceSelector != nil {
			p.fail(field.Forbidden(path, "may not specify both ipBlock and another peer"))
			return
		}
		if set := p.block(np.IPBlock, path.Child("ipBlock")); set != nil {
			blocks.AddSet(set)
		}
		return
	}
	if np.PodSelector == nil && np.NamespaceSelector == nil {
		p.fail(field.Required(path, "must specify a peer"))
		return
	}
	out := peer{namespace: p.namespace, pods: labels.Everything()}
	if np.NamespaceSelector != nil {
		if out.namespaces = p.selector(np.NamespaceSelector, path.Child("namespaceSelector")); out.namespaces == nil {
			return
		}
		out.namespace = ""
	}
	if np.PodSelector != nil {
		if out.pods = p.selector(np.PodSelector, path.Child("podSelector")); out.pods == nil {
			return
		}
	}
	r.pods = append(r.pods, out)
}

// block returns the addresses of an ipBlock, or nil if anything about it is
// wrong: a block whose except was lost would allow too much.
func (p *parser) block(b *networkingv1.IPBlock, path *field.Path) *netipx.IPSet {
	cidr, err := parsePrefix(b.CIDR)
	if err != nil {
		p.fail(field.Invalid(path.Child("cidr"), b.CIDR, err.Error()))
		return nil
	}
	var set netipx.IPSetBuilder
	set.AddPrefix(cidr)
	good := true
	for i, text := range b.Except {
		path := path.Child("except").Index(i)
		except, err := parsePrefix(text)
		switch {
		case err != nil:
			p.fail(field.Invalid(path, text, err.Error()))
			good = false
		case except.Addr().Is4() != cidr.Addr().Is4() || except.Bits() <= cidr.Bits() || !cidr.Contains(except.Addr()):
			p.fail(field.Invalid(path, text, "must be a strict subset of `cidr`"))
			good = false
		default:
			set.RemovePrefix(except)
		}
	}
	if !good {
		return nil
	}
	out, _ := set.IPSet()
	return out
}

func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("not a CIDR block such as 10.0.0.0/8 or fd00::/8")
	}
	if a := p.Addr(); a.Is4In6() {
		return p, fmt.Errorf("an IPv4 block must not be written as IPv6")
	}
	return p.Masked(), nil
}

func (p *parser) ports(in []networkingv1.NetworkPolicyPort, path *field.Path) portSet {
	if len(in) == 0 {
		return portSet{all: true}
	}
	var ranges [len(protocols)][]portRange
	var named []namedPort
	for i := range in {
		p.port(&in[i], path.Index(i), &ranges, &named)
	}
	return newPortSet(ranges, named)
}

func (p *parser) port(in *networkingv1.NetworkPolicyPort, path *field.Path, ranges *[len(protocols)][]portRange, named *[]namedPort) {
	protocol, ok := parseProtocol(in.Protocol)
	if !ok {
		p.fail(field.NotSupported(path.Child("protocol"), *in.Protocol, []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}))
		return
	}
	i := slices.Index(protocols[:], protocol)
	if in.Port == nil {
		if in.EndPort != nil {
			p.fail(field.Invalid(path.Child("endPort"), *in.EndPort, "may not be specified when `port` is not specified"))
			return
		}
		ranges[i] = append(ranges[i], everyPort)
		return
	}
	if in.Port.Type == intstr.String {
		if in.EndPort != nil {
			p.fail(field.Invalid(path.Child("endPort"), *in.EndPort, "may not be specified when `port` is non-numeric"))
			return
		}
		if errs := validation.IsValidPortName(in.Port.StrVal); len(errs) > 0 {
			p.fail(field.Invalid(path.Child("port"), in.Port.StrVal, errs[0]))
			return
		}
		*named = append(*named, namedPort{in.Port.StrVal, protocol})
		return
	}
	from, to := in.Port.IntVal, in.Port.IntVal
	if in.EndPort != nil {
		to = *in.EndPort
	}
	switch {
	case len(validation.IsValidPortNum(int(from))) > 0:
		p.fail(field.Invalid(path.Child("port"), from, "must be between 1 and 65535, inclusive"))
	case len(validation.IsValidPortNum(int(to))) > 0:
		p.fail(field.Invalid(path.Child("endPort"), to, "must be between 1 and 65535, inclusive"))
	case to < from:
		p.fail(field.Invalid(path.Child("endPort"), to, "must be greater than or equal to `port`"))
	default:
		ranges[i] = append(ranges[i], portRange{uint16(from), uint16(to)})
	}
}

// parseProtocol knows TCP, UDP and SCTP; none given is TCP.
func parseProtocol(p *corev1.Protocol) (Protocol, bool) {
	if p == nil {
		return TCP, true
	}
	switch *p {
	case corev1.ProtocolTCP:
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	}
	return 0, false
}
