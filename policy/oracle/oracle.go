package oracle

import (
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/selvage-net/selvage/policy"
)

// Packet opens a connection, seen where the node forwards it: after the
// destination was translated and before the source is.
type Packet struct {
	Src, Dst netip.Addr
	Protocol policy.Protocol
	// Port is the destination's. Protocols other than TCP, UDP and SCTP have none.
	Port uint16
}

// String renders the packet for people.
func (p Packet) String() string {
	return fmt.Sprintf("%s > %s %s %d", p.Src, p.Dst, p.Protocol, p.Port)
}

// GoString makes failure reports readable.
func (p Packet) GoString() string { return p.String() }

// Allowed tells whether the named node may forward the packet. The node of a
// pod enforces the policies of that pod; packets that it does not forward, but
// sends itself, are not its business here ("design"; and types.go: "Traffic is
// allowed ... if the traffic source is the pod's local node").
func Allowed(s policy.Snapshot, node string, p Packet) bool {
	return EgressAllowed(s, node, p) && IngressAllowed(s, node, p)
}

// EgressAllowed tells whether the source may send the packet. This alone is
// asked where a pod talks to the node that it runs on and such traffic is
// subject to policy: a node has no ingress policy.
func EgressAllowed(s policy.Snapshot, node string, p Packet) bool {
	return !unknown(s, node, p.Src) && (reachesItself(s, p) || egressAllowed(s, node, p))
}

// IngressAllowed tells whether the destination may get the packet.
func IngressAllowed(s policy.Snapshot, node string, p Packet) bool {
	return !unknown(s, node, p.Dst) && (reachesItself(s, p) || ingressAllowed(s, node, p))
}

// Isolated tells in which directions policies of the named node isolate the pod
// that owns the address.
//
// concept: "By default, a pod is non-isolated for egress; all outbound
// connections are allowed. A pod is isolated for egress if there is any
// NetworkPolicy that both selects the pod and has "Egress" in its policyTypes";
// and likewise for ingress.
func Isolated(s policy.Snapshot, node string, addr netip.Addr) (ingress, egress bool) {
	pod := localPod(s, node, addr)
	for _, np := range s.Policies {
		if pod != nil && selects(s, np, pod) {
			ingress = ingress || affects(np, networkingv1.PolicyTypeIngress)
			egress = egress || affects(np, networkingv1.PolicyTypeEgress)
		}
	}
	return ingress, egress
}

// Owner returns the pod that an address belongs to, or nil.
//
// design: pods that share the network of their node do not own its address, and
// finished pods have given up theirs. If several pods still claim one address,
// it was given to the newest of them; of two of the same second the one with
// the greater UID counts, so that there is an answer.
func Owner(s policy.Snapshot, addr netip.Addr) *policy.Pod {
	var owner *policy.Pod
	for _, pod := range s.Pods {
		if pod.HostNetwork || pod.Finished || !slices.Contains(pod.Addrs, addr) {
			continue
		}
		if owner == nil || pod.Created > owner.Created || pod.Created == owner.Created && pod.UID > owner.UID {
			owner = pod
		}
	}
	return owner
}

func localPod(s policy.Snapshot, node string, addr netip.Addr) *policy.Pod {
	if pod := Owner(s, addr); pod != nil && pod.Node == node {
		return pod
	}
	return nil
}

// unknown: an address from the node's own ranges that no pod of this node is
// known to own is a pod that starts, or one that pretends. design: in doubt
// closed.
func unknown(s policy.Snapshot, node string, addr netip.Addr) bool {
	if localPod(s, node, addr) != nil {
		return false
	}
	for _, n := range s.Nodes {
		for _, cidr := range n.PodCIDRs {
			if n.Name == node && cidr.Contains(addr) {
				return true
			}
		}
	}
	return false
}

// reachesItself. concept: "a Pod cannot block access to itself".
func reachesItself(s policy.Snapshot, p Packet) bool {
	src := Owner(s, p.Src)
	return src != nil && src == Owner(s, p.Dst)
}

// egressAllowed. concept: "When a pod is isolated for egress, the only allowed
// connections from the pod are those allowed by the egress list of some
// NetworkPolicy that applies to the pod for egress. ... The effects of those
// egress lists combine additively."
func egressAllowed(s policy.Snapshot, node string, p Packet) bool {
	pod := localPod(s, node, p.Src)
	if pod == nil {
		return true
	}
	isolated := false
	for _, np := range s.Policies {
		if !selects(s, np, pod) || !affects(np, networkingv1.PolicyTypeEgress) {
			continue
		}
		isolated = true
		for _, rule := range np.Spec.Egress {
			// types.go: "The traffic must match both ports and to."
			if anyPeer(s, np.Namespace, rule.To, p.Dst) && anyPort(s, rule.Ports, p) {
				return true
			}
		}
	}
	return !isolated
}

// ingressAllowed: as egressAllowed, seen from the other end.
func ingressAllowed(s policy.Snapshot, node string, p Packet) bool {
	pod := localPod(s, node, p.Dst)
	if pod == nil {
		return true
	}
	isolated := false
	for _, np := range s.Policies {
		if !selects(s, np, pod) || !affects(np, networkingv1.PolicyTypeIngress) {
			continue
		}
		isolated = true
		for _, rule := range np.Spec.Ingress {
			// types.go: "The traffic must match both ports and from."
			if anyPeer(s, np.Namespace, rule.From, p.Src) && anyPort(s, rule.Ports, p) {
				return true
			}
		}
	}
	return !isolated
}

// affects tells whether a policy concerns a direction.
//
// types.go: "If this field is not specified, it will default based on the
// existence of ingress or egress rules; policies that contain an egress section
// are assumed to affect egress, and all policies (whether or not they contain
// an ingress section) are assumed to affect ingress." An egress section that is
// empty counts as none: on the wire the two cannot be told apart.
//
// validation: there are no other types than two. design: a policy that names
// another one could have meant either, and is taken to affect both directions.
func affects(np *networkingv1.NetworkPolicy, direction networkingv1.PolicyType) bool {
	types := np.Spec.PolicyTypes
	if len(types) == 0 {
		return direction == networkingv1.PolicyTypeIngress || len(np.Spec.Egress) > 0
	}
	for _, t := range types {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			return true
		}
	}
	return slices.Contains(types, direction)
}
