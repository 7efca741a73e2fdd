package metrics

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestPoolSeries has no more series than it may, whatever the cluster has, and loses
// no address by that.
func TestPoolSeries(t *testing.T) {
	m := New("")
	if n := testutil.CollectAndCount(m.pools); n != 0 {
		t.Errorf("%d series before anything was counted", n)
	}
	var use []PoolUse
	for i := range 130 {
		use = append(use, PoolUse{Pool: fmt.Sprintf("p%03d", i), Family: "IPv4", Addresses: 256, Allocated: i})
	}
	use = append(use,
		PoolUse{Family: "IPv4", Addresses: 256, Allocated: 1}, PoolUse{Family: "IPv4", Addresses: 256, Allocated: 2},
		PoolUse{Pool: "p099", Family: "IPv4", Addresses: 16, Allocated: 1},
	)
	m.SetPools(Pools{Use: use})
	if n := testutil.CollectAndCount(m.pools, "selvage_pool_addresses"); n != maxPools+2 {
		t.Errorf("%d series, want %d", n, maxPools+2)
	}
	for name, want := range map[string]PoolUse{
		"p000": {Addresses: 256}, "p099": {Addresses: 272, Allocated: 100},
		"(podCIDRs)": {Addresses: 512, Allocated: 3}, "(others)": {Addresses: 30 * 256, Allocated: (100 + 129) * 15},
	} {
		found := false
		for _, u := range m.pools.use {
			if u.Pool == name {
				found = true
				if u.Addresses != want.Addresses || u.Allocated != want.Allocated {
					t.Errorf("%+v, want %+v", u, want)
				}
			}
		}
		if !found {
			t.Errorf("no series of %s", name)
		}
	}
	m.SetPools(Pools{Use: []PoolUse{{Pool: "new", Family: "IPv6", Addresses: 4, Allocated: 1}}})
	if err := testutil.CollectAndCompare(m.pools, strings.NewReader(`# HELP selvage_pool_allocated_addresses Addresses of a pool that pods of the whole cluster have.
# TYPE selvage_pool_allocated_addresses gauge
selvage_pool_allocated_addresses{family="IPv6",pool="new"} 1
`), "selvage_pool_allocated_addresses"); err != nil {
		t.Error(err)
	}
}
