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

// resolvePools decides anew which pools are in force, if that may have changed.
func (c *Compiler) resolvePools() {
	if !c.dirtyPools {
		return
	}
	c.dirtyPools = false
	services := slices.Collect(maps.Values(c.services))
	if len(c.cfg.ServiceCIDRs) > 0 {
		services = append(services, &ServiceCIDR{Meta: Meta{Name: "--service-cidrs"}, CIDRs: c.cfg.ServiceCIDRs})
	}
	c.resolved = Resolve(slices.Collect(maps.Values(c.pools)), slices.Collect(maps.Values(c.nodes)), services)
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
