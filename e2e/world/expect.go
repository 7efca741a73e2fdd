package world

import (
	"net/netip"
	"slices"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
)

// place is where an address lives: in a pod of a node or, if pod is nil, on the
// node itself. The zero place is nowhere.
type place struct {
	node *Node
	pod  *Pod
}

func (w *World) locate(a netip.Addr) place {
	for _, n := range w.nodes {
		if slices.Contains(n.Addrs, a) || slices.Contains(n.Gateways(), a) || slices.Contains(n.extra, a) {
			return place{node: n}
		}
		for _, p := range n.Pods() {
			if slices.Contains(p.addrs, a) {
				return place{n, p}
			}
		}
	}
	return place{}
}

// Forwarders are the nodes that forward a packet from one address to another,
// in its order: the pods' nodes, but for one that is itself an end.
func (w *World) Forwarders(src, dst netip.Addr) []*Node {
	from, to := w.locate(src), w.locate(dst)
	var nodes []*Node
	if from.pod != nil && from.pod != to.pod && (to.pod != nil || to.node != from.node) {
		nodes = append(nodes, from.node)
	}
	if to.pod != nil && from.pod != to.pod && from.node != to.node {
		nodes = append(nodes, to.node)
	}
	return nodes
}

// Expect asks the oracle what becomes of a new connection if every node
// enforces the policies of the snapshot: Allowed or Dropped. The packet is as
// it is after the destination was translated.
func (w *World) Expect(s policy.Snapshot, p oracle.Packet) Outcome {
	forwarders := w.Forwarders(p.Src, p.Dst)
	// A pod that reaches itself through a Service leaves and comes back.
	if at := w.locate(p.Src); at.pod != nil && at == w.locate(p.Dst) {
		forwarders = []*Node{at.node}
	}
	for _, n := range forwarders {
		if !oracle.Allowed(s, n.Name, p) {
			return Dropped
		}
	}
	return Allowed
}
