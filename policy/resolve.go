package policy

import (
	"fmt"
	"net/netip"
	"slices"
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
	for _, a := range pod.Addrs {
		if pool := p.Of(a); pool != nil {
			return pool
		}
	}
	return nil
}

// Resolve decides which pools are in force. Of two that overlap, a block of the one
// that goes first (see Pool.Compare) is; a block that a node's address or a range of
// Services is in is not, unless it was there before them. That depends on nothing but
// the objects, so that all nodes decide alike, and again after a restart.
func Resolve(pools []*Pool, nodes []*Node, services []*ServiceCIDR) *Pools {
	r := resolver{out: &Pools{}}
	sorted := slices.SortedFunc(slices.Values(pools), (*Pool).Compare)
	if len(sorted) == 0 {
		r.implicit(nodes)
		return r.out
	}
	for _, n := range nodes {
		for _, a := range n.Addrs {
			r.addrs = append(r.addrs, nodeAddr{a, n})
		}
	}
	slices.SortFunc(r.addrs, func(a, b nodeAddr) int { return a.Compare(b.Addr) })
	r.services = services
	for _, p := range sorted {
		r.pool(p)
	}
	return r.out
}

// resolver gathers the pools in force.
type resolver struct {
	out      *Pools
	addrs    []nodeAddr
	services []*ServiceCIDR
}

// nodeAddr is an address of a node.
type nodeAddr struct {
	netip.Addr
	node *Node
}

// implicit makes a pool of each node's podCIDRs.
func (r *resolver) implicit(nodes []*Node) {
	r.out.Implicit = true
	for _, n := range nodes {
		if len(n.PodCIDRs) > 0 {
			r.out.All = append(r.out.All, &Pool{Meta: n.Meta, Origin: OriginNode, Created: n.Created, CIDRs: n.PodCIDRs})
		}
	}
	slices.SortFunc(r.out.All, (*Pool).Compare)
	for _, p := range r.out.All {
		for _, c := range p.CIDRs {
			if r.overlapping(c) == nil {
				r.insert(c, p)
			}
		}
	}
}

// pool takes in one pool: those of its blocks that nothing speaks against.
func (r *resolver) pool(p *Pool) {
	if p.Err != nil {
		r.problem(PoolProblem{Pool: p, Reason: PoolInvalid, Err: p.Err})
	}
	inForce := *p
	inForce.CIDRs = nil
	for _, c := range p.CIDRs {
		if r.fits(p, c) {
			inForce.CIDRs = append(inForce.CIDRs, c)
			r.insert(c, &inForce)
		}
	}
	r.out.All = append(r.out.All, &inForce)
}

func (r *resolver) problem(p PoolProblem) { r.out.Problems = append(r.out.Problems, p) }

// fits tells whether a block can be in force, and notes what speaks against it.
func (r *resolver) fits(p *Pool, c netip.Prefix) bool {
	fits := true
	if other := r.overlapping(c); other != nil {
		if other.pool.Name == p.Name && other.pool.Origin == p.Origin {
			r.problem(PoolProblem{
				Pool: p, Reason: PoolOverlap, CIDR: c, With: p.Name,
				Err: fmt.Errorf("%s overlaps %s of the same pool: remove one of them", c, other.Prefix),
			})
		} else {
			r.problem(PoolProblem{
				Pool: p, Reason: PoolOverlap, CIDR: c, With: other.pool.Name,
				Err: fmt.Errorf("%s overlaps %s of the pool %s (%s), which was there first and stays: give each pool addresses of its own",
					c, other.Prefix, other.pool.Name, other.pool.Origin),
			})
		}
		fits = false
	}
	if a, n := r.nodeIn(c); n != nil {
		inForce := fits && n.Created > p.Created
		r.problem(PoolProblem{
			Pool: p, Reason: PoolHoldsNode, CIDR: c, With: n.Name, InForce: inForce,
			Err: fmt.Errorf("%s holds the address %s of the node %s: leave the nodes' addresses out of the pools%s", c, a, n.Name, stays(inForce)),
		})
		fits = inForce
	}
	if s, block := r.servicesIn(c); s != nil {
		inForce := fits && s.Created > p.Created
		r.problem(PoolProblem{
			Pool: p, Reason: PoolHoldsServices, CIDR: c, With: s.Name, InForce: inForce,
			Err: fmt.Errorf("%s overlaps %s, where Services have their addresses: leave those out of the pools%s", c, block, stays(inForce)),
		})
		fits = inForce
	}
	return fits
}

func (r *resolver) insert(c netip.Prefix, p *Pool) {
	r.out.blocks = slices.Insert(r.out.blocks, r.find(c), poolBlock{c, p})
}

func stays(inForce bool) string {
	if inForce {
		return "; the block was there first and stays in force"
	}
	return ""
}

// find returns where a block is among those in force, or would be.
func (r *resolver) find(c netip.Prefix) int {
	i, _ := slices.BinarySearchFunc(r.out.blocks, c, func(b poolBlock, c netip.Prefix) int { return comparePrefix(b.Prefix, c) })
	return i
}

// overlapping returns a block in force that has some of the addresses of c, or nil.
// Those in force do not overlap, so that it is a neighbour of where c would be.
func (r *resolver) overlapping(c netip.Prefix) *poolBlock {
	i := r.find(c)
	for _, j := range []int{i - 1, i} {
		if j >= 0 && j < len(r.out.blocks) && r.out.blocks[j].Overlaps(c) {
			return &r.out.blocks[j]
		}
	}
	return nil
}

// nodeIn returns a node that has an address in c, the oldest, or nil.
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

// servicesIn returns a range of Services that overlaps c, the oldest, or nil.
func (r *resolver) servicesIn(c netip.Prefix) (*ServiceCIDR, netip.Prefix) {
	var found *ServiceCIDR
	var block netip.Prefix
	for _, s := range r.services {
		for _, b := range s.CIDRs {
			if b.Overlaps(c) && (found == nil || s.Created < found.Created) {
				found, block = s, b
			}
		}
	}
	return found, block
}
