package main

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/selvage-net/selvage/policy"
)

// What may be wrong with a pool besides what policy.Resolve finds.
const (
	// disabledInUse is a disabled pool of which pods have addresses.
	disabledInUse policy.PoolReason = "disabled-in-use"
	// nearlyFull is a pool of which pods have almost all addresses.
	nearlyFull policy.PoolReason = "nearly-full"
)

// poolReasons are all reasons of findings.
func poolReasons() []policy.PoolReason {
	return append(policy.PoolReasons(), disabledInUse, nearlyFull)
}

// A pool that is more than nearlyFullAbove full is nearly full, and so it stays as
// long as it is not less full than nearlyFullBelow: it would come and go with each pod
// otherwise.
const (
	nearlyFullAbove = 0.90
	nearlyFullBelow = 0.85
)

// finding is something that is wrong with a pool.
type finding struct {
	pool   *policy.Pool
	reason policy.PoolReason
	// topic tells findings on one pool apart. It stays the same as long as it is about
	// the same, whatever numbers the text has.
	topic string
	text  string
}

// level is how many addresses of a family a pool has, and how many of them pods have.
type level struct {
	pool      *policy.Pool
	family    policy.Family
	addresses float64
	allocated int
}

func (l level) ratio() float64 { return float64(l.allocated) / l.addresses }

// crowded tells whether it is nearly full, if nothing was said of it before.
func (l level) crowded() bool { return l.ratio() > nearlyFullAbove }

// finding is that the pool is nearly full.
func (l level) finding() finding {
	of, remedy := "the pool", "give the base CNI more addresses while there are some left, and make a pool for them"
	if l.pool.Origin == policy.OriginNode {
		of, remedy = "the node's podCIDRs", "have fewer pods there, or nodes with larger podCIDRs (kube-controller-manager's --node-cidr-mask-size)"
	}
	return finding{
		pool: l.pool, reason: nearlyFull, topic: string(nearlyFull) + " " + ipFamily(l.family),
		text: fmt.Sprintf("pods have %d of the %.0f %s addresses of %s: %s", l.allocated, l.addresses, ipFamily(l.family), of, remedy),
	}
}

// levels returns those of all pools, without families that a pool does not have.
func levels(u policy.Use) []level {
	var all []level
	for i := range u.Pools {
		of := &u.Pools[i]
		for _, f := range policy.Families {
			l := level{pool: of.Pool, family: f, allocated: of.Allocated(f)}
			for _, b := range of.Blocks {
				if policy.FamilyOf(b.CIDR.Addr()) == f {
					l.addresses += size(b.CIDR)
				}
			}
			if l.addresses > 0 {
				all = append(all, l)
			}
		}
	}
	return all
}

// size returns how many addresses a block has.
func size(p netip.Prefix) float64 { return math.Ldexp(1, p.Addr().BitLen()-p.Bits()) }

// ipFamily is how Kubernetes calls a family.
func ipFamily(f policy.Family) string {
	if f == policy.IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// findPoolProblems returns all that is wrong with pools, those of one pool together,
// by precedence. crowded decides which of them are nearly full.
func findPoolProblems(pools *policy.Pools, use policy.Use, crowded func(level) bool) []finding {
	var found []finding
	for _, p := range pools.Problems {
		f := finding{pool: p.Pool, reason: p.Reason, topic: string(p.Reason), text: p.Err.Error() + remains(p, pools)}
		if p.CIDR.IsValid() {
			f.topic += " " + p.CIDR.String()
		}
		found = append(found, f)
	}
	for i := range use.Pools {
		if f, ok := stillInUse(&use.Pools[i]); ok {
			found = append(found, f)
		}
	}
	for _, l := range levels(use) {
		if crowded(l) {
			found = append(found, l.finding())
		}
	}
	slices.SortStableFunc(found, func(a, b finding) int { return a.pool.Compare(b.pool) })
	return found
}

// remains says what is in force of a pool that has a problem, unless the problem does.
func remains(p policy.PoolProblem, pools *policy.Pools) string {
	if p.InForce {
		return ""
	}
	i := slices.IndexFunc(pools.All, func(o *policy.Pool) bool { return o.Origin == p.Pool.Origin && o.Name == p.Pool.Name })
	switch {
	case i < 0 || len(pools.All[i].CIDRs) == 0:
		return "; nothing of the pool is in force"
	case p.CIDR.IsValid():
		return "; in force of the pool: " + (*prefixes)(&pools.All[i].CIDRs).String()
	}
	return "; the rest of the pool is in force"
}

// stillInUse finds a disabled pool of which pods have addresses.
func stillInUse(u *policy.PoolUse) (finding, bool) {
	n := u.Allocated(policy.IPv4) + u.Allocated(policy.IPv6)
	if !u.Pool.Disabled || n == 0 {
		return finding{}, false
	}
	return finding{
		pool: u.Pool, reason: disabledInUse, topic: string(disabledInUse),
		text: fmt.Sprintf("the pool is disabled, and pods have %d of its addresses: what it says holds for them until they end: "+
			"see to it that the base CNI gives no more of its addresses, and have these pods made anew", n),
	}, true
}
