package policy

import (
	"maps"
	"net/netip"
	"slices"
)

// poolKey names a pool. Those of different origins may have the same name.
type poolKey struct {
	origin Origin
	name   string
}

func (c *Compiler) updatePool(o *Pool, deleted bool) {
	k := poolKey{o.Origin, o.Name}
	if deleted {
		delete(c.pools, k)
	} else {
		c.pools[k] = o
	}
	c.dirtyPools = true
}

func (c *Compiler) updateServices(o *ServiceCIDR, deleted bool) {
	if deleted {
		delete(c.services, o.Name)
	} else {
		c.services[o.Name] = o
	}
	c.dirtyPools = true
}

// resolvePools decides anew which pools are in force, if that may have changed, and
// tells whether it did.
func (c *Compiler) resolvePools() bool {
	if !c.dirtyPools {
		return false
	}
	c.dirtyPools = false
	services := slices.Collect(maps.Values(c.services))
	if len(c.cfg.ServiceCIDRs) > 0 {
		services = append(services, &ServiceCIDR{Meta: Meta{Name: "--service-cidrs"}, CIDRs: c.cfg.ServiceCIDRs})
	}
	c.resolved = Resolve(slices.Collect(maps.Values(c.pools)), slices.Collect(maps.Values(c.nodes)), services)
	return true
}

// Pools returns the pools in force.
func (c *Compiler) Pools() *Pools {
	c.settle()
	return c.resolved
}

// PoolUse counts how much of the pools is in use in the whole cluster. That takes a
// look at every pod.
func (c *Compiler) PoolUse() Use {
	c.settle()
	return c.resolved.Use(func(yield func(netip.Addr, *Pod) bool) {
		for a, p := range c.owners {
			if !yield(a, p.Pod) {
				return
			}
		}
	})
}

// countPoolPolicies keeps account of the policies that select pods by their pools.
func (c *Compiler) countPoolPolicies(old, now *policy) {
	before := c.poolPolicies
	if old != nil && old.rules.byPool {
		c.poolPolicies--
	}
	if now != nil && now.rules.byPool {
		c.poolPolicies++
	}
	c.dirtyLabels = c.dirtyLabels || before == 0 && c.poolPolicies > 0
}

// poolOf returns what a pod has under PoolLabel, or "". As long as no policy asks,
// nobody has anything.
func (c *Compiler) poolOf(p *Pod) string {
	if c.poolPolicies == 0 || c.resolved.Implicit {
		return ""
	}
	if pool := c.resolved.OfPod(p); pool != nil {
		return pool.Name
	}
	return ""
}

// relabel finds the pools of all pods anew, if they may have changed and a policy
// asks for them. A pod that changes its pool is treated as one that changes a label.
func (c *Compiler) relabel(resolved bool) {
	if c.poolPolicies == 0 || !resolved && !c.dirtyLabels {
		return
	}
	c.dirtyLabels = false
	for _, p := range c.pods {
		now := c.poolOf(p.Pod)
		if now == p.pool {
			continue
		}
		p.pool = now
		c.rematch(p)
		if c.local(p.Pod) {
			c.dirtyPods[p] = struct{}{}
		}
	}
}
