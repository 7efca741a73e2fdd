package oracle

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/selvage-net/selvage/policy"
)

// selects tells whether a policy applies to a pod.
//
// types.go: "podSelector selects the pods to which this NetworkPolicy object
// applies. ... An empty selector matches all pods in the policy's namespace."
//
// design: a selector that cannot be read (validation refuses it) selects every
// pod of the namespace, so that none stays open that was meant to be isolated.
func selects(s policy.Snapshot, np *networkingv1.NetworkPolicy, pod *policy.Pod) bool {
	if pod.Namespace != np.Namespace || pod.HostNetwork || pod.Finished {
		return false
	}
	selector, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector)
	return err != nil || selector.Matches(podLabels(s, pod))
}

// anyPeer tells whether one of the peers of a rule is at addr.
//
// types.go: "Items in this list are combined using a logical OR operation. If
// this field is empty or missing, this rule matches all sources (traffic not
// restricted by source)."
func anyPeer(s policy.Snapshot, namespace string, peers []networkingv1.NetworkPolicyPeer, addr netip.Addr) bool {
	if len(peers) == 0 {
		return true
	}
	return slices.ContainsFunc(peers, func(peer networkingv1.NetworkPolicyPeer) bool {
		return peerMatches(s, namespace, peer, addr)
	})
}

// peerMatches tells whether one peer of a policy in namespace is at addr.
//
// validation: a peer says something, and ipBlock stands alone. design: a peer
// that does not obey matches nothing.
func peerMatches(s policy.Snapshot, namespace string, peer networkingv1.NetworkPolicyPeer, addr netip.Addr) bool {
	bySelector := peer.PodSelector != nil || peer.NamespaceSelector != nil
	switch {
	case bySelector && peer.IPBlock != nil:
		return false
	case peer.IPBlock != nil:
		return blockContains(peer.IPBlock, addr)
	case bySelector:
		pod := Owner(s, addr)
		return pod != nil && podMatches(s, namespace, peer, pod)
	}
	return false
}

// podMatches.
//
// types.go: "If namespaceSelector is also set, then the NetworkPolicyPeer as a
// whole selects the pods matching podSelector in the Namespaces selected by
// NamespaceSelector. Otherwise it selects the pods matching podSelector in the
// policy's own namespace."
func podMatches(s policy.Snapshot, namespace string, peer networkingv1.NetworkPolicyPeer, pod *policy.Pod) bool {
	if peer.NamespaceSelector == nil {
		if pod.Namespace != namespace {
			return false
		}
	} else if !selectorMatches(peer.NamespaceSelector, namespaceLabels(s, pod.Namespace)) {
		return false
	}
	// types.go: "Otherwise it selects all pods in the namespaces selected by
	// namespaceSelector."
	return peer.PodSelector == nil || selectorMatches(peer.PodSelector, podLabels(s, pod))
}

// selectorMatches. types.go: "This field follows standard label selector
// semantics; if present but empty, it selects all". design: one that cannot be
// read matches nothing.
func selectorMatches(selector *metav1.LabelSelector, l labels.Labels) bool {
	sel, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && sel.Matches(l)
}

// namespaceLabels are the labels of a namespace.
//
// concept: "The Kubernetes control plane sets an immutable label
// kubernetes.io/metadata.name on all namespaces". design: that is all that is
// known of a namespace whose object is not there (yet).
func namespaceLabels(s policy.Snapshot, name string) labels.Labels {
	for _, ns := range s.Namespaces {
		if ns.Name == name {
			return ns.Labels
		}
	}
	return labels.Set{corev1.LabelMetadataName: name}
}

// blockContains.
//
// types.go: "IPBlock describes a particular CIDR ... The except entry describes
// CIDRs that should not be included within this rule." It is about addresses,
// whoever has them: pods, nodes or others.
//
// types.go: "Except values will be rejected if they are outside the cidr range".
// design: if one is, the peer matches nothing. The excepts may overlap.
func blockContains(block *networkingv1.IPBlock, addr netip.Addr) bool {
	cidr, err := netip.ParsePrefix(block.CIDR)
	if err != nil {
		return false
	}
	excepted := false
	for _, text := range block.Except {
		except, err := netip.ParsePrefix(text)
		if err != nil || !cidr.Contains(except.Addr()) || except.Bits() < cidr.Bits() {
			return false
		}
		excepted = excepted || except.Contains(addr)
	}
	return cidr.Contains(addr) && !excepted
}

// anyPort tells whether one of the ports of a rule is the packet's.
//
// types.go: "Each item in this list is combined using a logical OR. If this
// field is empty or missing, this rule matches all ports (traffic not restricted
// by port)." Then protocols without ports match as well; else they never do,
// since every item names TCP, UDP or SCTP.
func anyPort(s policy.Snapshot, ports []networkingv1.NetworkPolicyPort, p Packet) bool {
	if len(ports) == 0 {
		return true
	}
	return slices.ContainsFunc(ports, func(port networkingv1.NetworkPolicyPort) bool {
		return portMatches(s, port, p)
	})
}

// portMatches.
//
// types.go: "protocol represents the protocol (TCP, UDP, or SCTP) which traffic
// must match. If not specified, this field defaults to TCP." "If [port] is not
// provided, this matches all port names and numbers. If present, only traffic
// on the specified protocol AND port will be matched."
//
// validation: ports are from 1 to 65535; "endPort ... cannot be defined if the
// port field is not defined or if the port field is defined as a named (string)
// port. The endPort must be equal or greater than port." design: an item that
// does not obey matches nothing.
func portMatches(s policy.Snapshot, port networkingv1.NetworkPolicyPort, p Packet) bool {
	if !protocolMatches(port.Protocol, p.Protocol) {
		return false
	}
	switch {
	case port.Port == nil:
		return port.EndPort == nil
	case port.Port.Type == intstr.String:
		return port.EndPort == nil && namedPortMatches(s, port.Port.StrVal, p)
	case port.EndPort == nil:
		return isPort(port.Port.IntVal) && int32(p.Port) == port.Port.IntVal
	}
	first, last := port.Port.IntVal, *port.EndPort
	return isPort(first) && isPort(last) && first <= last && first <= int32(p.Port) && int32(p.Port) <= last
}

func isPort(n int32) bool { return 1 <= n && n <= 65535 }

func protocolMatches(protocol *corev1.Protocol, actual policy.Protocol) bool {
	if protocol == nil {
		return actual == policy.TCP
	}
	switch *protocol {
	case corev1.ProtocolTCP:
		return actual == policy.TCP
	case corev1.ProtocolUDP:
		return actual == policy.UDP
	case corev1.ProtocolSCTP:
		return actual == policy.SCTP
	}
	return false
}

// namedPortMatches.
//
// types.go: "This can either be a numerical or named port on a pod." The pod is
// the one that is connected to, whichever direction the rule is for and
// whatever kind of peer let the packet in; the same name can be another number
// on each pod. A destination that is no pod has no named ports.
func namedPortMatches(s policy.Snapshot, name string, p Packet) bool {
	// validation: a name has at most 15 letters, digits and hyphens, and at
	// least one letter.
	if len(validation.IsValidPortName(name)) > 0 {
		return false
	}
	pod := Owner(s, p.Dst)
	return pod != nil && slices.Contains(pod.Ports, policy.NamedPort{Name: name, Protocol: p.Protocol, Port: p.Port})
}
