package main

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/selvage-net/selvage/policy"
)

func TestLocalPods(t *testing.T) {
	l := localPods{node: "here"}
	pod := func(name, node, addr string, change ...func(*policy.Pod)) policy.Delta {
		p := &policy.Pod{Meta: policy.Meta{Namespace: "ns", Name: name}, Node: node}
		if addr != "" {
			p.Addrs = []netip.Addr{netip.MustParseAddr(addr)}
		}
		for _, f := range change {
			f(p)
		}
		return policy.Delta{Object: p}
	}
	gone := func(d policy.Delta) policy.Delta { d.Deleted = true; return d }
	node := func(name, cidr string) policy.Delta {
		return policy.Delta{Object: &policy.Node{Meta: policy.Meta{Name: name}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}}
	}
	for i, step := range []struct {
		delta   policy.Delta
		changed bool
		addrs   string
		cidrs   int
	}{
		{node("there", "10.1.0.0/24"), false, "[]", 0},
		{node("here", "10.2.0.0/24"), true, "[]", 1},
		{pod("a", "there", "10.1.0.1"), false, "[]", 1},
		{pod("b", "here", ""), true, "[]", 1},
		{pod("b", "here", "10.2.0.9"), true, "[10.2.0.9]", 1},
		{pod("c", "here", "10.2.0.3"), true, "[10.2.0.3 10.2.0.9]", 1},
		{pod("d", "here", "192.0.2.1", func(p *policy.Pod) { p.HostNetwork = true }), true, "[10.2.0.3 10.2.0.9]", 1},
		{policy.Delta{Object: &policy.Namespace{}}, false, "[10.2.0.3 10.2.0.9]", 1},
		{pod("b", "here", "10.2.0.9", func(p *policy.Pod) { p.Finished = true }), true, "[10.2.0.3]", 1},
		{gone(pod("c", "here", "10.2.0.3")), true, "[]", 1},
		{gone(node("here", "10.2.0.0/24")), true, "[]", 0},
	} {
		changed := l.update([]policy.Delta{step.delta})
		if got := l.addrs(); changed != step.changed || len(l.cidrs) != step.cidrs || fmt.Sprint(got) != step.addrs {
			t.Errorf("step %d: changed %v, addresses %v, %d CIDRs; want %v, %s, %d", i, changed, got, len(l.cidrs), step.changed, step.addrs, step.cidrs)
		}
	}
}
