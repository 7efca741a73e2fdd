package policy

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// BlockUse is how many addresses of a block pods have.
type BlockUse struct {
	CIDR      netip.Prefix
	Allocated int
}

// PoolUse is how many addresses of a pool pods have.
type PoolUse struct {
	Pool   *Pool
	Blocks []BlockUse
}

// Allocated returns how many addresses of a family pods have.
func (u *PoolUse) Allocated(f Family) int {
	n := 0
	for _, b := range u.Blocks {
		if FamilyOf(b.CIDR.Addr()) == f {
			n += b.Allocated
		}
	}
	return n
}

// Use is how much of all pools is in use.
type Use struct {
	// Pools are in the order of Pools.All, their blocks in that of Pool.CIDRs.
	Pools []PoolUse
	// Outside are the pods that have an address in no pool, sorted by namespace and name.
	Outside []*Pod
}

// Use counts the addresses that pods own; see Owners.
func (p *Pools) Use(owned iter.Seq2[netip.Addr, *Pod]) Use {
	counts := make(map[netip.Prefix]int)
	outside := make(map[*Pod]bool)
	for a, pod := range owned {
		if b := p.block(a); b != nil {
			counts[b.Prefix]++
		} else {
			outside[pod] = true
		}
	}
	u := Use{Outside: slices.SortedFunc(maps.Keys(outside), comparePods)}
	for _, pool := range p.All {
		of := PoolUse{Pool: pool}
		for _, c := range pool.CIDRs {
			of.Blocks = append(of.Blocks, BlockUse{CIDR: c, Allocated: counts[c]})
		}
		u.Pools = append(u.Pools, of)
	}
	return u
}

func comparePods(a, b *Pod) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
}

// Owners returns who owns which address: pods that share the network of their node
// have none, those that have finished none any more, and of several that claim one the
// newest has it.
func Owners(pods []*Pod) map[netip.Addr]*Pod {
	owners := make(map[netip.Addr]*Pod)
	for _, p := range pods {
		if !p.peer() {
			continue
		}
		for _, a := range p.Addrs {
			if before := owners[a]; before == nil || compareClaims(before, p) < 0 {
				owners[a] = p
			}
		}
	}
	return owners
}
