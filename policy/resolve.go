package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// PoolReason sorts what may be wrong with a pool. It is fit for the label of a metric.
type PoolReason string

// The reasons.
const (
	// PoolInvalid: something of the object cannot be understood.
	PoolInvalid PoolReason = "invalid"
	// PoolOverlap: another pool has some of the addresses.
	PoolOverlap PoolReason = "overlap"
	// PoolHoldsNode: a node has one of the addresses.
	PoolHoldsNode PoolReason = "node-address"
	// PoolHoldsServices: Services have some of the addresses.
	PoolHoldsServices PoolReason = "service-addresses"
)

// PoolReasons are all reasons.
func PoolReasons() []PoolReason {
	return []PoolReason{PoolInvalid, PoolOverlap, PoolHoldsNode, PoolHoldsServices}
}

// PoolProblem is something wrong with a pool.
type PoolProblem struct {
	Pool   *Pool
	Reason PoolReason
	// CIDR is the block that it is about; invalid if it is about the whole pool.
	CIDR netip.Prefix
	// InForce says that the block is in force all the same: it was there first.
	InForce bool
	// With is the other one: the name of a pool, node or ServiceCIDR.
	With string
	// Err says what is wrong, in a line, and what to do.
	Err error
}

// Pools are the pools in force. A value is immutable, and may be used by several
// goroutines.
type Pools struct {
	// All are the pools that there are, by precedence, with those of their blocks that
	// are in force: no two of them overlap.
	All []*Pool
	// Implicit says that there are none but the nodes' podCIDRs.
	Implicit bool
	Problems []PoolProblem

	// blocks are all blocks in force, sorted.
	blocks []poolBlock
}

// poolBlock is a block in force.
type poolBlock struct {
	netip.Prefix
	pool *Pool
}

// Of returns the pool that an address is in, or nil.
func (p *Pools) Of(a netip.Addr) *Pool {
	if b := p.block(a); b != nil {
		return b.pool
	}
	return nil
}

// block returns the block in force that an address is in, or nil.
func (p *Pools) block(a netip.Addr) *poolBlock {
	i, _ := slices.BinarySearchFunc(p.blocks, a, func(b poolBlock, a netip.Addr) int {
		if b.Addr().Compare(a) <= 0 {
			return -1
		}
		return 1
	})
	if i == 0 || !p.blocks[i-1].Contains(a) {
		return nil
	}
	return &p.blocks[i-1]
}

// OfPod returns the pool of the first of a pod's addresses, IPv4 before IPv6, that is
// in one, or nil.
func (p *Pools) OfPod(pod *Pod) *Pool {
	if !pod.peer() {
		return nil
	}
	for _, f := range Families {
		for _, a := range pod.Addrs {
			if FamilyOf(a) != f {
				continue
			}
			if pool := p.Of(a); pool != nil {
				return pool
			}
		}
	}
	return nil
}

// Resolve decides which pools are in force. Of two that overlap, a block of the one
// that goes first (see Pool.Compare) is; a block that a node's address or a range of
// Services is in is not, unless it was there before them. Of blocks of one pool that
// overlap, the largest is. That depends on nothing but the objects, so that all nodes
// decide alike, and again after a restart.
func Resolve(pools []*Pool, nodes []*Node, services []*ServiceCIDR) *Pools {
	r := resolver{out: &Pools{Implicit: len(pools) == 0}}
	if r.out.Implicit {
		pools = implicit(nodes)
	} else {
		r.against(nodes, services)
	}
	r.candidates(slices.SortedFunc(slices.Values(pools), (*Pool).Compare))
	for _, cs := range r.byPool {
		r.pool(cs)
	}
	for _, c := range r.sorted {
		if c.inForce {
			r.out.blocks = append(r.out.blocks, c.poolBlock)
		}
	}
	return r.out
}

// implicit makes a pool of each node's podCIDRs.
func implicit(nodes []*Node) []*Pool {
	var pools []*Pool
	for _, n := range nodes {
		if len(n.PodCIDRs) > 0 {
			pools = append(pools, &Pool{Meta: n.Meta, Origin: OriginNode, Created: n.Created, CIDRs: n.PodCIDRs})
		}
	}
	return pools
}

// resolver gathers the pools in force.
type resolver struct {
	out *Pools
	// addrs are the nodes' addresses, sorted; services the ranges of Services, the
	// oldest first.
	addrs    []nodeAddr
	services []*ServiceCIDR
	// byPool are the candidates of each pool, by precedence.
	byPool []poolCandidates
	// sorted are all candidates by their blocks: what holds another one goes before it.
	sorted []*candidate
}

// nodeAddr is an address of a node.
type nodeAddr struct {
	netip.Addr
	node *Node
}

// poolCandidates are the blocks of a pool, in its own order.
type poolCandidates struct {
	pool   *Pool
	blocks []candidate
}

// candidate is a block that may come into force. Blocks are nested or have nothing in
// common, so that only those that hold it and those that it holds can overlap it.
type candidate struct {
	poolBlock
	inForce bool
	// within is the smallest of the other blocks that hold this one, or nil.
	within *candidate
	// holds is the first block in force that this one holds, or nil.
	holds *candidate
}

// against takes in what pools must not hold.
func (r *resolver) against(nodes []*Node, services []*ServiceCIDR) {
	for _, n := range nodes {
		for _, a := range n.Addrs {
			r.addrs = append(r.addrs, nodeAddr{a, n})
		}
	}
	slices.SortFunc(r.addrs, func(a, b nodeAddr) int {
		return cmp.Or(a.Compare(b.Addr), cmp.Compare(a.node.Created, b.node.Created), strings.Compare(a.node.Name, b.node.Name))
	})
	r.services = slices.SortedFunc(slices.Values(services), func(a, b *ServiceCIDR) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), strings.Compare(a.Name, b.Name))
	})
}

// candidates lists the blocks of all pools and finds out which of them are nested.
func (r *resolver) candidates(pools []*Pool) {
	for _, p := range pools {
		inForce := *p
		inForce.CIDRs = nil
		r.out.All = append(r.out.All, &inForce)
		cs := poolCandidates{p, make([]candidate, len(p.CIDRs))}
		for i, c := range p.CIDRs {
			cs.blocks[i].poolBlock = poolBlock{c, &inForce}
			r.sorted = append(r.sorted, &cs.blocks[i])
		}
		r.byPool = append(r.byPool, cs)
	}
	slices.SortStableFunc(r.sorted, compareCandidates)
	var around []*candidate
	for _, c := range r.sorted {
		for len(around) > 0 && !around[len(around)-1].Overlaps(c.Prefix) {
			around = around[:len(around)-1]
		}
		if len(around) > 0 {
			c.within = around[len(around)-1]
		}
		around = append(around, c)
	}
}

func compareCandidates(a, b *candidate) int { return comparePrefix(a.Prefix, b.Prefix) }

// pool decides about the blocks of one pool, the larger ones first.
func (r *resolver) pool(p poolCandidates) {
	if p.pool.Err != nil {
		r.problem(PoolProblem{Pool: p.pool, Reason: PoolInvalid, Err: p.pool.Err})
	}
	order := make([]*candidate, len(p.blocks))
	for i := range p.blocks {
		order[i] = &p.blocks[i]
	}
	slices.SortStableFunc(order, compareCandidates)
	for _, c := range order {
		r.block(p.pool, c)
	}
	for i := range p.blocks {
		if c := &p.blocks[i]; c.inForce {
			c.pool.CIDRs = append(c.pool.CIDRs, c.Prefix)
		}
	}
}

// block decides about one block, and notes what speaks against it.
func (r *resolver) block(p *Pool, c *candidate) {
	other := c.overlapping()
	addr, node := r.nodeIn(c.Prefix)
	services, block := r.servicesIn(c.Prefix)
	c.inForce = other == nil && (node == nil || p.Created < node.Created) && (services == nil || p.Created < services.Created)
	if c.inForce {
		for around := c.within; around != nil && around.holds == nil; around = around.within {
			around.holds = c
		}
	}
	stays := ""
	if c.inForce {
		stays = "; the block was there first and stays in force"
	}
	if other != nil && !r.out.Implicit {
		r.problem(overlap(p, c, other))
	}
	if node != nil {
		r.problem(PoolProblem{
			Pool: p, Reason: PoolHoldsNode, CIDR: c.Prefix, With: node.Name, InForce: c.inForce,
			Err: fmt.Errorf("%s holds the address %s of the node %s: leave the nodes' addresses out of the pools%s", c.Prefix, addr, node.Name, stays),
		})
	}
	if services != nil {
		r.problem(PoolProblem{
			Pool: p, Reason: PoolHoldsServices, CIDR: c.Prefix, With: services.Name, InForce: c.inForce,
			Err: fmt.Errorf("%s overlaps %s, where Services have their addresses: leave those out of the pools%s", c.Prefix, block, stays),
		})
	}
}

func (r *resolver) problem(p PoolProblem) { r.out.Problems = append(r.out.Problems, p) }

// overlapping returns a block in force that has some of the addresses of c, or nil.
func (c *candidate) overlapping() *candidate {
	for around := c.within; around != nil; around = around.within {
		if around.inForce {
			return around
		}
	}
	return c.holds
}

// overlap is the problem of a block that is not in force because another one is.
func overlap(p *Pool, c, other *candidate) PoolProblem {
	out := PoolProblem{Pool: p, Reason: PoolOverlap, CIDR: c.Prefix, With: other.pool.Name}
	if other.pool == c.pool {
		out.Err = fmt.Errorf("%s overlaps %s of the same pool: remove one of them", c.Prefix, other.Prefix)
	} else {
		out.Err = fmt.Errorf("%s overlaps %s of the pool %s (%s), which goes first and stays: give each pool addresses of its own",
			c.Prefix, other.Prefix, other.pool.Name, other.pool.Origin)
	}
	return out
}

// nodeIn returns the oldest node that has an address in c and that address, or nil.
func (r *resolver) nodeIn(c netip.Prefix) (netip.Addr, *Node) {
	i, _ := slices.BinarySearchFunc(r.addrs, c.Addr(), func(a nodeAddr, first netip.Addr) int { return a.Compare(first) })
	var found nodeAddr
	for ; i < len(r.addrs) && c.Contains(r.addrs[i].Addr); i++ {
		if n := r.addrs[i].node; found.node == nil || n.Created < found.node.Created {
			found = r.addrs[i]
		}
	}
	return found.Addr, found.node
}

// servicesIn returns the oldest range of Services that overlaps c, or nil.
func (r *resolver) servicesIn(c netip.Prefix) (*ServiceCIDR, netip.Prefix) {
	for _, s := range r.services {
		if i := slices.IndexFunc(s.CIDRs, c.Overlaps); i >= 0 {
			return s, s.CIDRs[i]
		}
	}
	return nil, netip.Prefix{}
}
