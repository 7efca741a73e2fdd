package world_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

// sources asks the servers of a namespace, over TCP and UDP and both families, which
// source they see.
func (c *cluster) sources(t *testing.T, from *world.Namespace, to []netip.Addr) []netip.Addr {
	t.Helper()
	var probes []world.Probe
	for _, a := range to {
		for _, p := range serves[:2] {
			probes = append(probes, world.Probe{From: from, To: netip.AddrPortFrom(a, p.Number), Protocol: p.Protocol, Want: world.Allowed})
		}
	}
	var seen []netip.Addr
	for i, r := range c.Probe(t.Context(), probes...) {
		if r.Outcome != world.Allowed {
			t.Errorf("%s to %s: %s (%v)", from.ID, probes[i].To, r.Outcome, r.Err)
		}
		seen = append(seen, r.Source.Addr())
	}
	return seen
}

func (c *cluster) checkSources(t *testing.T, from *world.Namespace, to []netip.Addr, want func(policy.Family) netip.Addr) {
	t.Helper()
	for i, got := range c.sources(t, from, to) {
		if f := policy.FamilyOf(to[i/2]); got != want(f) {
			t.Errorf("%s to %s comes from %s, want %s", from.ID, to[i/2], got, want(f))
		}
	}
}

func TestServersTellTheSource(t *testing.T) {
	c := newCluster(t, world.FilterNamespace)
	for _, from := range []*world.Pod{c.bridged, c.routed} {
		for _, to := range [][]netip.Addr{c.x.Addrs(), c.neighbour.Addrs(), c.outside.Addrs} {
			c.checkSources(t, from.Namespace, to, from.Addr)
		}
	}
}

func TestFlannelMasquerade(t *testing.T) {
	c := newCluster(t, world.FilterNamespace)
	networks := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd44::/16")}
	for _, n := range []*world.Node{c.a, c.b} {
		if err := n.FlannelMasquerade(t.Context(), networks...); err != nil {
			t.Fatal(err)
		}
	}
	rules, err := c.a.Run(t.Context(), "iptables-nft", "-t", "nat", "-S")
	if err != nil || strings.Count(rules, "flanneld masq") != 7 {
		t.Errorf("the rules are\n%s(%v)", rules, err)
	}
	for _, from := range []*world.Pod{c.bridged, c.routed} {
		for _, to := range [][]netip.Addr{c.x.Addrs(), c.neighbour.Addrs()} {
			c.checkSources(t, from.Namespace, to, from.Addr)
		}
		c.checkSources(t, from.Namespace, c.outside.Addrs, c.a.Addr)
	}
	if err := c.a.FlannelMasquerade(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.checkSources(t, c.bridged.Namespace, c.outside.Addrs, c.bridged.Addr)
}
