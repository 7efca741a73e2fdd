package policy_test

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

// usedPods are pods with and without addresses of their own; two claim 10.1.0.2.
func usedPods() []*policy.Pod {
	at := func(name string, created int64, addrs ...string) *policy.Pod {
		p := somePod(name, policytest.NodeA, "")
		p.Created = created
		for _, a := range addrs {
			p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
		}
		return p
	}
	host, done := at("host", 1, "10.1.0.9"), at("done", 9, "10.1.0.8")
	host.HostNetwork, done.Finished = true, true
	return []*policy.Pod{
		at("older", 1, "10.1.0.2"), at("newer", 2, "10.1.0.2", "fd00:1::2"), at("web", 1, "10.1.0.130", "fd00:9::2"),
		at("stray", 1, "10.9.0.2", "fd00:9::3"), at("astray", 1, "10.9.0.3"), host, done, at("starts", 1),
	}
}

func useText(u policy.Use) string {
	var b strings.Builder
	for i := range u.Pools {
		of := &u.Pools[i]
		fmt.Fprintf(&b, "%s %v v4 %d v6 %d\n", of.Pool.Name, of.Blocks, of.Allocated(policy.IPv4), of.Allocated(policy.IPv6))
	}
	for _, p := range u.Outside {
		fmt.Fprintf(&b, "outside: %s\n", p.Name)
	}
	return b.String()
}

const wantUse = `first [{fd00:1::/64 1} {10.1.0.0/25 1}] v4 1 v6 1
second [{10.1.0.128/25 1} {10.2.0.0/24 0}] v4 1 v6 0
none [] v4 0 v6 0
outside: astray
outside: stray
outside: web
`

// TestUse: every address that a pod owns is counted once, in its block.
func TestUse(t *testing.T) {
	pools := []*policy.Pool{pool("none", 3, "10.1.0.0/24"), pool("first", 1, "fd00:1::/64", "10.1.0.0/25"), pool("second", 2, "10.1.0.128/25", "10.2.0.0/24")}
	use := policy.Resolve(pools, nil, nil).Use(maps.All(policy.Owners(usedPods())))
	if got := useText(use); got != wantUse {
		t.Errorf("got\n%swant\n%s", got, wantUse)
	}

	// A compiler counts the same.
	c := policy.NewCompiler(policy.DefaultConfig(policytest.NodeA))
	for _, p := range pools {
		c.Update(policy.Delta{Object: p})
	}
	for _, p := range usedPods() {
		c.Update(policy.Delta{Object: p})
	}
	if got := useText(c.PoolUse()); got != wantUse {
		t.Errorf("a compiler: got\n%swant\n%s", got, wantUse)
	}
}

// TestOwners: of several that claim an address the newest has it, whoever comes first.
func TestOwners(t *testing.T) {
	pods := usedPods()
	for range 2 {
		owners := policy.Owners(pods)
		if len(owners) != 7 {
			t.Errorf("%d addresses have an owner", len(owners))
		}
		for addr, want := range map[string]string{"10.1.0.2": "newer", "10.1.0.130": "web", "fd00:9::2": "web"} {
			if p := owners[netip.MustParseAddr(addr)]; p == nil || p.Name != want {
				t.Errorf("%s belongs to %v, want %s", addr, p, want)
			}
		}
		pods[0], pods[1] = pods[1], pods[0]
	}
}
