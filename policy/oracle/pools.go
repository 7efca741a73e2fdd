package oracle

import (
	"cmp"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/selvage-net/selvage/policy"
)

// Masqueraded tells whether the named node gives the connection that the packet
// opens its own address as its source, if nobody else has given it another one.
//
// keep are the blocks that the configuration leaves alone. The ranges of Services
// that only the configuration tells of stand in s.Services, as the oldest.
//
// pools: "masquerade what goes from the pool to a place outside"; "nodeSelector: the
// nodes (by their labels) on which natOutgoing ... [applies]; all if left out"; and
// disabled pools keep what they say.
func Masqueraded(s policy.Snapshot, node string, keep []netip.Prefix, p Packet) bool {
	from := poolOf(s, p.Src)
	if from == nil || !from.NATOutgoing || from.Nodes != nil && !from.Nodes.Matches(nodeLabels(s, node)) {
		return false
	}
	return poolOf(s, p.Dst) == nil && !keepsSource(s, keep, p.Dst)
}

// keepsSource tells whether what goes to an address keeps its source.
//
// pools: "the podCIDRs and addresses of all nodes, the ranges of Services,
// --no-masquerade-cidrs, multicast". design: none of that is asked about the source.
func keepsSource(s policy.Snapshot, keep []netip.Prefix, to netip.Addr) bool {
	blocks := slices.Clone(keep)
	for _, n := range s.Nodes {
		if slices.Contains(n.Addrs, to) {
			return true
		}
		blocks = append(blocks, n.PodCIDRs...)
	}
	for _, v := range s.Services {
		blocks = append(blocks, v.CIDRs...)
	}
	return to.IsMulticast() || slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return b.Contains(to) })
}

// nodeLabels are those of a node, and none if its object is not there.
func nodeLabels(s policy.Snapshot, name string) labels.Labels {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n.Labels
		}
	}
	return labels.Set{}
}

// podLabels are what selectors see of a pod.
//
// pools: "the key selvage.dev/pool is understood as if each pod had a label with the
// name of its pool"; "pods outside of every pool do not have it, and neither have any
// if there are only the nodes' podCIDRs. What a pod really has under that key does
// not count". "The pool is that of the first of the pod's addresses, IPv4 before
// IPv6, that is in one." design: a pod without addresses of its own is in none.
func podLabels(s policy.Snapshot, pod *policy.Pod) labels.Labels {
	set := labels.Set{}
	for _, l := range pod.Labels {
		set[l.Key] = l.Value
	}
	delete(set, policy.PoolLabel)
	if pod.HostNetwork || pod.Finished {
		return set
	}
	addrs := slices.SortedFunc(slices.Values(pod.Addrs), netip.Addr.Compare) // sorts IPv4 before IPv6
	for _, a := range addrs {
		if pool := poolOf(s, a); pool != nil {
			set[policy.PoolLabel] = pool.Name
			break
		}
	}
	return set
}

// claim is a block that a pool claims.
type claim struct {
	block netip.Prefix
	pool  *policy.Pool
}

// poolOf returns the pool that an address is in, or nil. The nodes' podCIDRs, which
// are pools if there are no others, are not meant: they say nothing.
//
// pools: "what is older stays". "Two pools overlap: the block of the one that is
// older; one of selvage.dev goes before one of Calico's." "The other blocks of such a
// pool are in force." design: of two of the same second the first by name goes first,
// and of blocks of one pool the larger.
func poolOf(s policy.Snapshot, a netip.Addr) *policy.Pool {
	var claims []claim
	for _, p := range s.Pools {
		for _, b := range p.CIDRs {
			claims = append(claims, claim{b, p})
		}
	}
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.pool.Origin, b.pool.Origin), cmp.Compare(a.pool.Created, b.pool.Created),
			cmp.Compare(a.pool.Name, b.pool.Name), cmp.Compare(a.block.Bits(), b.block.Bits()))
	})
	var inForce []claim
	for _, c := range claims {
		if taken := slices.ContainsFunc(inForce, func(o claim) bool { return o.block.Overlaps(c.block) }); !taken && tenable(s, c) {
			inForce = append(inForce, c)
		}
	}
	for _, c := range inForce {
		if c.block.Contains(a) {
			return c.pool
		}
	}
	return nil
}

// tenable tells whether neither nodes nor Services speak against a block.
//
// pools: "A block holds a node's address, or overlaps a range of Services: not that
// block, unless the pool is older than the node or the range". design: one of the same
// second is not older.
func tenable(s policy.Snapshot, c claim) bool {
	for _, n := range s.Nodes {
		if slices.ContainsFunc(n.Addrs, c.block.Contains) && n.Created <= c.pool.Created {
			return false
		}
	}
	for _, v := range s.Services {
		if slices.ContainsFunc(v.CIDRs, c.block.Overlaps) && v.Created <= c.pool.Created {
			return false
		}
	}
	return true
}
