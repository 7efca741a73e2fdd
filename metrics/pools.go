package metrics

import (
	"cmp"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Pools is what there is to show of the pools of addresses.
type Pools struct {
	// InForce is how many are in force, by origin. All origins must be there.
	InForce map[string]int
	// Problems is how many problems there are, by reason. All reasons must be there.
	Problems map[string]int
	// Use is how much of the pools is in use, those that count first.
	Use []PoolUse
	// Outside is the number of pods that have an address in none of them.
	Outside int
}

// PoolUse is how much of a pool is in use, for one family of addresses. Of several
// with the same name and family the sums are shown.
type PoolUse struct {
	// Pool is its name; empty if it is a node's podCIDRs.
	Pool   string
	Family string
	// Addresses is how many it has, Allocated how many of these pods have.
	Addresses float64
	Allocated int
}

// maxPools is how many pools have series of their own.
const maxPools = 100

// nodePools stands for the podCIDRs of all nodes. No pool can have such a name.
const nodePools = "(podCIDRs)"

// poolCollector shows what it was last told: one scrape never sees the numbers of two
// counts, nor a pool that is gone.
type poolCollector struct {
	pools, problems, addresses, allocated, outside *prometheus.Desc

	mu  sync.Mutex // guards what follows
	now *Pools     // nil before the first count
	use []PoolUse
}

func newPoolCollector() *poolCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &poolCollector{
		pools:     desc("selvage_pools", "Pools of addresses that are in force, by origin.", "origin"),
		problems:  desc("selvage_pool_problems", "What is wrong with pools, by reason; Events on the pools say more.", "reason"),
		addresses: desc("selvage_pool_addresses", "Addresses of a pool.", "pool", "family"),
		allocated: desc("selvage_pool_allocated_addresses", "Addresses of a pool that pods of the whole cluster have.", "pool", "family"),
		outside:   desc("selvage_pods_outside_pools", "Pods of the whole cluster that have an address in no pool."),
	}
}

// SetPools says how the pools are. Whoever calls it does not change what it was given.
func (m *Metrics) SetPools(p Pools) {
	use := sumPools(p.Use)
	m.pools.mu.Lock()
	defer m.pools.mu.Unlock()
	m.pools.now, m.pools.use = &p, use
}

// sumPools sums what has no series of its own.
func sumPools(all []PoolUse) []PoolUse {
	type key struct{ pool, family string }
	named := make(map[string]bool)
	sums := make(map[key]*PoolUse)
	for _, u := range all {
		u.Pool = clean(u.Pool)
		switch {
		case u.Pool == "":
			u.Pool = nodePools
		case !named[u.Pool] && len(named) == maxPools:
			u.Pool = others
		default:
			named[u.Pool] = true
		}
		if sum := sums[key{u.Pool, u.Family}]; sum != nil {
			sum.Addresses += u.Addresses
			sum.Allocated += u.Allocated
		} else {
			sums[key{u.Pool, u.Family}] = &u
		}
	}
	out := make([]PoolUse, 0, len(sums))
	for _, sum := range sums {
		out = append(out, *sum)
	}
	slices.SortFunc(out, func(a, b PoolUse) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Family, b.Family))
	})
	return out
}

// Describe implements prometheus.Collector.
func (c *poolCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.pools, c.problems, c.addresses, c.allocated, c.outside} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *poolCollector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	now, use := c.now, c.use
	c.mu.Unlock()
	if now == nil {
		return
	}
	show := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for origin, n := range now.InForce {
		show(c.pools, float64(n), origin)
	}
	for reason, n := range now.Problems {
		show(c.problems, float64(n), reason)
	}
	for _, u := range use {
		show(c.addresses, u.Addresses, u.Pool, u.Family)
		show(c.allocated, float64(u.Allocated), u.Pool, u.Family)
	}
	show(c.outside, float64(now.Outside))
}

// Masquerader is somebody else who masquerades what pods send.
type Masquerader struct{ By, Family string }

// SetBaseMasquerade says who else masquerades on this node; those of before are
// forgotten. The names must be few and fixed.
func (m *Metrics) SetBaseMasquerade(now []Masquerader) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, who := range now {
		m.masquerade.WithLabelValues(who.By, who.Family).Set(1)
	}
	for _, who := range m.masqueraders {
		if !slices.Contains(now, who) { // no Reset, as in SetBridges
			m.masquerade.DeleteLabelValues(who.By, who.Family)
		}
	}
	m.masqueraders = slices.Clone(now)
}
