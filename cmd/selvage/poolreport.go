package main

import (
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/shaping"
)

// poolReport is what `selvage pools` shows. Its JSON is for programs: what is there
// keeps its name and meaning.
type poolReport struct {
	// Implicit says that there are no pools but the nodes' podCIDRs.
	Implicit bool `json:"implicit"`
	// Pools are by precedence: where they overlap, the first one has the addresses.
	Pools []reportedPool `json:"pools"`
	// NodeBlocks are the podCIDRs of the nodes.
	NodeBlocks []nodeBlock `json:"nodeBlocks"`
	// PodsOutside have an address in no pool.
	PodsOutside []outsidePod  `json:"podsOutside"`
	Problems    []poolProblem `json:"problems"`
}

// reportedPool is a pool.
type reportedPool struct {
	Name string `json:"name"`
	// Origin is selvage or calico, by the API group of the IPPool, or node.
	Origin string `json:"origin"`
	// State is InForce, PartlyInForce or NotInForce.
	State    poolState `json:"state"`
	Disabled bool      `json:"disabled"`
	// Blocks are all of the pool, in its own order.
	Blocks      []poolBlock `json:"blocks"`
	NATOutgoing bool        `json:"natOutgoing"`
	// NodeSelector selects the nodes where the settings apply, as kubectl's -l takes
	// it; it is empty for all, and "<none>" if it could not be understood.
	NodeSelector string `json:"nodeSelector"`
	// Ingress and Egress are as in the IPPool, as 10M; empty if there is no default.
	Ingress string `json:"ingress,omitempty"`
	Egress  string `json:"egress,omitempty"`
	// Addresses are those of the blocks in force, IPv4 first, for each family that the
	// pool has.
	Addresses []familyAddresses `json:"addresses"`
}

// poolState is how much of a pool is in force.
type poolState string

const (
	stateInForce       poolState = "InForce"
	statePartlyInForce poolState = "PartlyInForce"
	stateNotInForce    poolState = "NotInForce"
)

// poolBlock is a block of a pool.
type poolBlock struct {
	CIDR      netip.Prefix `json:"cidr"`
	InForce   bool         `json:"inForce"`
	Allocated int          `json:"allocated"`
}

// familyAddresses are addresses of a family.
type familyAddresses struct {
	// Family is IPv4 or IPv6.
	Family string `json:"family"`
	addresses
}

// addresses are how many there are. JSON has all digits of the numbers, however large
// they are; in YAML those of more than 64 bits are rounded.
type addresses struct {
	// Capacity is all addresses of the blocks, also those that the base CNI gives to
	// no pod.
	Capacity *big.Int `json:"capacity"`
	// Allocated is how many of them pods have, of all nodes.
	Allocated int      `json:"allocated"`
	Free      *big.Int `json:"free"`
	// UsedPercent is from 0 to 100.
	UsedPercent float64 `json:"usedPercent"`
}

// nodeBlock is one of the podCIDRs of a node.
type nodeBlock struct {
	Node string       `json:"node"`
	CIDR netip.Prefix `json:"cidr"`
	// Pools have some of its addresses: one, as it should be, or none, or several.
	Pools []string `json:"pools"`
	addresses
}

// outsidePod is a pod that has an address in no pool.
type outsidePod struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Node      string       `json:"node"`
	Addresses []netip.Addr `json:"addresses"`
}

// poolProblem is something that is wrong with a pool.
type poolProblem struct {
	Pool   string `json:"pool"`
	Origin string `json:"origin"`
	// Reason is that of the Event on the pool.
	Reason  reason `json:"reason"`
	Message string `json:"message"`
}

// newPoolReport finds out how the pools of a cluster are; see resolve for services.
func newPoolReport(s policy.Snapshot, services []netip.Prefix) poolReport {
	owners := policy.Owners(s.Pods)
	pools := resolve(s, services)
	use := pools.Use(maps.All(owners))
	r := poolReport{
		Implicit: pools.Implicit, Pools: []reportedPool{}, NodeBlocks: nodeBlocks(s.Nodes, pools, owners),
		PodsOutside: []outsidePod{}, Problems: []poolProblem{},
	}
	for i := range use.Pools {
		r.Pools = append(r.Pools, reportPool(&use.Pools[i], s.Pools))
	}
	for _, p := range use.Outside {
		r.PodsOutside = append(r.PodsOutside, outsidePod{p.Namespace, p.Name, p.Node, p.Addrs})
	}
	for _, f := range findPoolProblems(pools, use, level.crowded) {
		r.Problems = append(r.Problems, poolProblem{f.pool.Name, f.pool.Origin.String(), poolReason(f.reason), f.text})
	}
	return r
}

// resolve decides which pools are in force. services are blocks of addresses of
// Services that no object tells of.
func resolve(s policy.Snapshot, services []netip.Prefix) *policy.Pools {
	objects := slices.Clone(s.Services)
	if len(services) > 0 {
		objects = append(objects, &policy.ServiceCIDR{Meta: policy.Meta{Name: "--service-cidrs"}, CIDRs: services})
	}
	return policy.Resolve(s.Pools, s.Nodes, objects)
}

// reportPool reports on a pool. Its object, with all of its blocks, is among objects,
// if it has one.
func reportPool(u *policy.PoolUse, objects []*policy.Pool) reportedPool {
	p, blocks := u.Pool, u.Pool.CIDRs
	if i := slices.IndexFunc(objects, func(o *policy.Pool) bool { return o.Origin == p.Origin && o.Name == p.Name }); i >= 0 {
		blocks = objects[i].CIDRs
	}
	out := reportedPool{
		Name: p.Name, Origin: p.Origin.String(), State: stateInForce, Disabled: p.Disabled, NATOutgoing: p.NATOutgoing, NodeSelector: selected(p),
		Ingress: rateText(p.Ingress), Egress: rateText(p.Egress),
		Blocks: []poolBlock{}, Addresses: []familyAddresses{},
	}
	switch {
	case len(u.Blocks) == 0:
		out.State = stateNotInForce
	case len(u.Blocks) < len(blocks):
		out.State = statePartlyInForce
	}
	for _, c := range blocks {
		b := poolBlock{CIDR: c}
		if i := slices.IndexFunc(u.Blocks, func(b policy.BlockUse) bool { return b.CIDR == c }); i >= 0 {
			b.InForce, b.Allocated = true, u.Blocks[i].Allocated
		}
		out.Blocks = append(out.Blocks, b)
	}
	for _, f := range policy.Families {
		of := func(c netip.Prefix) bool { return policy.FamilyOf(c.Addr()) == f }
		if !slices.ContainsFunc(blocks, of) {
			continue
		}
		capacity := new(big.Int)
		for _, c := range p.CIDRs {
			if of(c) {
				capacity.Add(capacity, bigSize(c))
			}
		}
		out.Addresses = append(out.Addresses, familyAddresses{ipFamily(f), countAddresses(capacity, u.Allocated(f))})
	}
	return out
}

// selected tells which nodes a pool selects.
func selected(p *policy.Pool) string {
	if p.Nodes == nil {
		return ""
	}
	if _, selectable := p.Nodes.Requirements(); !selectable {
		return none
	}
	return p.Nodes.String()
}

func rateText(bits uint64) string {
	if bits == 0 {
		return ""
	}
	return shaping.Rate(bits).String()
}

// nodeBlocks reports on the podCIDRs of nodes, sorted by the nodes' names.
func nodeBlocks(nodes []*policy.Node, pools *policy.Pools, owners map[netip.Addr]*policy.Pod) []nodeBlock {
	allocated := make(map[netip.Prefix]int)
	for _, u := range policy.Resolve(nil, nodes, nil).Use(maps.All(owners)).Pools { // without other pools these are the podCIDRs
		for _, b := range u.Blocks {
			allocated[b.CIDR] = b.Allocated
		}
	}
	all := []nodeBlock{}
	for _, n := range nodes {
		for _, c := range n.PodCIDRs {
			b := nodeBlock{Node: n.Name, CIDR: c, Pools: []string{}, addresses: countAddresses(bigSize(c), allocated[c])}
			for _, p := range pools.All {
				if slices.ContainsFunc(p.CIDRs, c.Overlaps) {
					b.Pools = append(b.Pools, p.Name)
				}
			}
			all = append(all, b)
		}
	}
	slices.SortStableFunc(all, func(a, b nodeBlock) int { return strings.Compare(a.Node, b.Node) })
	return all
}

// bigSize returns how many addresses a block has.
func bigSize(c netip.Prefix) *big.Int {
	return new(big.Int).Lsh(big.NewInt(1), uint(c.Addr().BitLen()-c.Bits()))
}

func countAddresses(capacity *big.Int, allocated int) addresses {
	a := addresses{Capacity: capacity, Allocated: allocated, Free: new(big.Int).Sub(capacity, big.NewInt(int64(allocated)))}
	if capacity.Sign() > 0 {
		total, _ := new(big.Float).SetInt(capacity).Float64()
		a.UsedPercent = 100 * float64(allocated) / total
	}
	return a
}
