package policytest

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-net/selvage/policy"
)

func (d drawer) policy(s policy.Snapshot, i int) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{
		Namespace: d.ns(), Name: fmt.Sprintf("policy-%d", i), UID: types.UID(fmt.Sprintf("policy-%d", i)),
	}}
	np.Spec = d.spec(s)
	return np
}

func (d drawer) spec(s policy.Snapshot) networkingv1.NetworkPolicySpec {
	spec := networkingv1.NetworkPolicySpec{PodSelector: *d.selector(d.podKeys()), PolicyTypes: d.policyTypes()}
	if d.likely() {
		spec.Ingress = []networkingv1.NetworkPolicyIngressRule{}
		for range d.upTo(2) {
			spec.Ingress = append(spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: d.peers(s), Ports: d.ports()})
		}
		for range d.many() {
			spec.Ingress = append(spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: d.pods(), Ports: []networkingv1.NetworkPolicyPort{d.port(), d.port()}})
		}
	}
	if d.maybe() {
		spec.Egress = []networkingv1.NetworkPolicyEgressRule{}
		for range d.upTo(2) {
			spec.Egress = append(spec.Egress, networkingv1.NetworkPolicyEgressRule{To: d.peers(s), Ports: d.ports()})
		}
		for range d.many() {
			spec.Egress = append(spec.Egress, networkingv1.NetworkPolicyEgressRule{To: d.pods(), Ports: []networkingv1.NetworkPolicyPort{d.port(), d.port()}})
		}
	}
	return spec
}

// many is most often 0, and else the number of rules that let several pods use
// as many different lists of ports.
func (d drawer) many() int {
	if d.upTo(7) != 7 {
		return 0
	}
	return 2 + d.upTo(4)
}

// pods draws a peer by its labels, such that several of a rule's peers exist.
func (d drawer) pods() []networkingv1.NetworkPolicyPeer {
	return []networkingv1.NetworkPolicyPeer{{PodSelector: d.selector(d.podKeys()), NamespaceSelector: pick(d, nil, nil, &metav1.LabelSelector{})}}
}

func (d drawer) policyTypes() []networkingv1.PolicyType {
	const in, out = networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress
	if d.invalid() {
		return pick(d, []networkingv1.PolicyType{"Sideways"}, []networkingv1.PolicyType{in, "egress"}, []networkingv1.PolicyType{in, in, in})
	}
	return pick(d, nil, []networkingv1.PolicyType{}, []networkingv1.PolicyType{in}, []networkingv1.PolicyType{out},
		[]networkingv1.PolicyType{in, out}, []networkingv1.PolicyType{in, out}, []networkingv1.PolicyType{out, out})
}

// selector draws a label selector over keys.
func (d drawer) selector(keys []string) *metav1.LabelSelector {
	if d.invalid() {
		return pick(d,
			&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: keys[0], Operator: "Near", Values: labelVals}}},
			&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: keys[0], Operator: metav1.LabelSelectorOpIn}}},
			&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: keys[0], Operator: metav1.LabelSelectorOpExists, Values: labelVals}}},
			&metav1.LabelSelector{MatchLabels: map[string]string{"not a key!": "x"}},
			&metav1.LabelSelector{MatchLabels: map[string]string{keys[0]: "not a value!"}},
		)
	}
	sel := &metav1.LabelSelector{}
	if d.maybe() {
		return sel
	}
	if d.maybe() {
		sel.MatchLabels = map[string]string{pick(d, keys...): pick(d, labelVals...)}
	}
	for range d.upTo(2) {
		r := metav1.LabelSelectorRequirement{Key: pick(d, keys...), Operator: pick(d, metav1.LabelSelectorOpIn,
			metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
		if r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn {
			r.Values = pick(d, labelVals[:1], labelVals[1:], labelVals, []string{"y", "x"}, []string{"x", "x"})
		}
		sel.MatchExpressions = append(sel.MatchExpressions, r)
	}
	return sel
}

func (d drawer) namespaceSelector() *metav1.LabelSelector {
	switch d.upTo(4) {
	case 4:
		return &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: pick(d, namespaces...)}}
	case 3:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
			Key:      corev1.LabelMetadataName,
			Operator: pick(d, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn),
			Values:   []string{pick(d, namespaces...), pick(d, namespaces...)},
		}}}
	}
	return d.selector(d.namespaceKeys())
}

func (d drawer) peers(s policy.Snapshot) []networkingv1.NetworkPolicyPeer {
	switch d.upTo(5) {
	case 0:
		return nil
	case 1:
		return []networkingv1.NetworkPolicyPeer{}
	}
	var peers []networkingv1.NetworkPolicyPeer
	for range 1 + d.upTo(1) {
		peers = append(peers, d.peer(s))
	}
	return peers
}

func (d drawer) peer(s policy.Snapshot) networkingv1.NetworkPolicyPeer {
	if d.invalid() {
		return pick(d,
			networkingv1.NetworkPolicyPeer{},
			networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{}, IPBlock: &networkingv1.IPBlock{CIDR: "0.0.0.0/0"}},
			networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{}, IPBlock: &networkingv1.IPBlock{CIDR: "::/0"}},
		)
	}
	switch d.upTo(5) {
	case 0:
		return networkingv1.NetworkPolicyPeer{NamespaceSelector: d.namespaceSelector()}
	case 1:
		return networkingv1.NetworkPolicyPeer{NamespaceSelector: d.namespaceSelector(), PodSelector: d.selector(d.podKeys())}
	case 2, 3:
		return networkingv1.NetworkPolicyPeer{IPBlock: d.block(s)}
	}
	return networkingv1.NetworkPolicyPeer{PodSelector: d.selector(d.podKeys())}
}

// block draws a block that is likely to hold or to touch a pod.
func (d drawer) block(s policy.Snapshot) *networkingv1.IPBlock {
	if d.invalid() {
		return pick(d,
			&networkingv1.IPBlock{}, &networkingv1.IPBlock{CIDR: "10.1.0.2"}, &networkingv1.IPBlock{CIDR: "10.0.0.0/33"},
			&networkingv1.IPBlock{CIDR: "10.1.0.0/24", Except: []string{"10.2.0.0/24"}},
			&networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"::/0"}},
			&networkingv1.IPBlock{CIDR: "10.1.0.0/30", Except: []string{"10.1.0.0/24"}},
			&networkingv1.IPBlock{CIDR: "::/0", Except: []string{"fd00::/8", "nonsense"}},
		)
	}
	cidr := d.prefix(s, netip.Prefix{})
	block := &networkingv1.IPBlock{CIDR: cidr.String()}
	if cidr.IsSingleIP() && d.o.Valid {
		return block
	}
	for range d.upTo(3) {
		block.Except = append(block.Except, d.prefix(s, cidr.Masked()).String())
	}
	return block
}

// prefix draws a prefix within another one, or anywhere if that is not valid.
// It may have bits beyond its length: the API server lets them pass.
func (d drawer) prefix(s policy.Snapshot, within netip.Prefix) netip.Prefix {
	var candidates []netip.Addr
	for _, a := range placesOf(s) {
		if !within.IsValid() || within.Contains(a) {
			candidates = append(candidates, a)
		}
	}
	if len(candidates) == 0 {
		candidates = []netip.Addr{within.Addr()}
	}
	a := pick(d, candidates...)
	whole := a.BitLen()
	bits := pick(d, whole, whole, whole-1, whole-2, whole-3, whole-8, whole/2, 8, 1, 0)
	if within.IsValid() {
		// Strictly inside where that is possible: the API server insists.
		bits = min(whole, within.Bits()+1+pick(d, 0, 0, 1, 2, whole))
	}
	p := netip.PrefixFrom(a, bits)
	if d.maybe() {
		return p.Masked()
	}
	return p
}

// placesOf are addresses around which blocks are made.
func placesOf(s policy.Snapshot) []netip.Addr {
	places := []netip.Addr{
		netip.MustParseAddr("10.1.0.3"), netip.MustParseAddr("fd00:1::3"),
		netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9"),
		netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("fd00:ff::1"),
		netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255"),
		netip.MustParseAddr("::"), netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
	}
	for _, p := range s.Pods {
		places = append(places, p.Addrs...)
	}
	return places
}

func (d drawer) ports() []networkingv1.NetworkPolicyPort {
	switch d.upTo(4) {
	case 0, 1:
		return nil
	case 2:
		return []networkingv1.NetworkPolicyPort{d.port()}
	}
	var ports []networkingv1.NetworkPolicyPort
	for range d.upTo(4) {
		ports = append(ports, d.port())
	}
	return ports
}

func ref[T any](v T) *T { return &v }

func (d drawer) port() networkingv1.NetworkPolicyPort {
	p := networkingv1.NetworkPolicyPort{
		Protocol: pick(d, nil, ref(corev1.ProtocolTCP), ref(corev1.ProtocolTCP), ref(corev1.ProtocolUDP), ref(corev1.ProtocolSCTP)),
	}
	if d.invalid() {
		d.spoil(&p)
		return p
	}
	switch d.upTo(6) {
	case 0:
	case 1, 2:
		p.Port = ref(intstr.FromString(pick(d, "http", "dns", "http", "none")))
	case 3:
		first := pick(d, 1, 53, 79, 80, 81, 65535)
		last := min(65535, first+pick(d, 0, 1, 2, 400, 65535))
		p.Port, p.EndPort = ref(intstr.FromInt(first)), ref(int32(last))
	default:
		p.Port = ref(intstr.FromInt(pick(d, append(portNums, 1, 65535)...)))
	}
	return p
}

// spoil makes a port one that the API server would refuse.
func (d drawer) spoil(p *networkingv1.NetworkPolicyPort) {
	switch d.upTo(8) {
	case 0:
		p.Protocol = pick(d, ref(corev1.Protocol("ICMP")), ref(corev1.Protocol("tcp")), ref(corev1.Protocol("")))
	case 1:
		p.EndPort = ref(int32(8080))
	case 2:
		p.Port, p.EndPort = ref(intstr.FromString("http")), ref(int32(8080))
	case 3:
		p.Port, p.EndPort = ref(intstr.FromInt(81)), ref(int32(80))
	case 4:
		p.Port, p.EndPort = ref(intstr.FromInt(80)), ref(int32(65536+80))
	case 5:
		p.Port, p.EndPort = ref(intstr.FromInt(0)), ref(int32(80))
	case 6:
		p.Port = ref(intstr.FromInt(pick(d, 0, -1, 65536, 65536+80)))
	case 7:
		p.Port = ref(intstr.FromString(pick(d, "", "80", "-")))
	case 8:
		p.Port, p.EndPort = ref(intstr.FromInt(80)), ref(int32(-1))
	}
}
