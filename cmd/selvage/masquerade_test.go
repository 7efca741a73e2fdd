package main

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/informer/link/isolate"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nft"
)

// poolsOf are pools in force: of each name what follows, a block and, if it is to be
// masqueraded, nat.
func poolsOf(texts ...string) *policy.Pools {
	var all []*policy.Pool
	for i, text := range texts {
		words := strings.Fields(text)
		all = append(all, &policy.Pool{
			Meta: policy.Meta{Name: words[0]}, Created: int64(i), CIDRs: cidrs(words[1]), NATOutgoing: len(words) > 2,
		})
	}
	return policy.Resolve(all, []*policy.Node{{Meta: policy.Meta{Name: "worker"}, PodCIDRs: cidrs("10.244.1.0/24")}}, nil)
}

// TestMasqueraders has flannel's rules in the kernel, and pools that they contradict.
func TestMasqueraders(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	a, _, _ := newTestAgent()
	var log strings.Builder
	a.masquerade.log = slog.New(slog.NewTextHandler(&log, nil))
	const plant = `nft add table ip flannel-ipv4; nft add chain ip flannel-ipv4 postrtg '{ type nat hook postrouting priority srcnat; }'
		nft add rule ip flannel-ipv4 postrtg ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random`
	for i, step := range []struct {
		script string
		pools  *policy.Pools
		found  float64
		want   string // of the condition
		lines  int
	}{
		{"", poolsOf("a 10.244.0.0/16"), 0, "", 0},
		{plant, poolsOf(), 1, "", 1},
		{"", poolsOf("a 10.244.0.0/16 nat"), 1, "", 0},
		{"", poolsOf("a 10.244.0.0/16", "b 10.9.0.0/16", "c 10.244.0.0/24"), 1, "BaseCNIMasquerades: flannel, recognised by chain ip flannel-ipv4 postrtg, masquerades what leaves the pool a [10.244.0.0/16], where", 0},
		{"", poolsOf("b 10.244.4.0/24", "a 10.244.3.0/24"), 1, "the pool b [10.244.4.0/24] and 1 more, where", 0},
		{"", poolsOf("a 10.9.0.0/16", "b fd00::/64"), 1, "", 0},
		{"", poolsOf("a 10.244.0.0/16"), 1, "give flanneld --ip-masq=false", 0},
		{"nft delete table ip flannel-ipv4", poolsOf("a 10.244.0.0/16"), 0, "", 1},
	} {
		log.Reset()
		isolate.Sh(t, step.script)
		a.masquerade.setPools(step.pools, nil)
		if err := a.lookForMasqueraders(); err != nil {
			t.Fatal(err)
		}
		if got := messages(a); (got == "") != (step.want == "") || !strings.Contains(got, step.want) || strings.Contains(got, "\n") {
			t.Errorf("step %d: %q, want %q", i, got, step.want)
		}
		if n := gauge(t, a, "selvage_base_masquerade"); n != step.found {
			t.Errorf("step %d: the metric is %v, want %v", i, n, step.found)
		}
		if got := strings.Count(log.String(), "\n"); got != step.lines {
			t.Errorf("step %d: %d lines, want %d:\n%s", i, got, step.lines, log.String())
		}
	}
	if err := a.conditions.unready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

// TestMasqueradersOfOld takes the chains of iptables-legacy for those of families that
// there are pools of, and brings together what has one name.
func TestMasqueradersOfOld(t *testing.T) {
	a, _, _ := newTestAgent()
	families := a.masquerade.families()
	if len(families) > 0 {
		t.Errorf("families %v before there are pools", families)
	}
	a.masquerade.setPools(poolsOf("a 10.244.0.0/16", "b 10.9.0.0/16"), nil)
	flannel := nft.Masquerader{Name: "flannel", Family: policy.IPv4, Place: nft.Place{Family: "ip", Table: "nat", Chain: "FLANNEL-POSTRTG"}, Sources: cidrs("10.244.0.0/16")}
	more := flannel
	more.Sources = cidrs("10.9.0.0/16")
	calico := nft.Masquerader{Name: "calico", Family: policy.IPv4}
	for _, tt := range []struct {
		name   string
		found  []nft.Masquerader
		legacy []string
		want   []string
		series float64
	}{
		{"none", nil, []string{"KUBE-POSTROUTING", "DOCKER", "CNI-HOSTPORT-DNAT"}, nil, 0},
		{"of two places", []nft.Masquerader{flannel, more}, nil, []string{"flannel", "the pool a [10.244.0.0/16] and 1 more"}, 1},
		{"nft and legacy", []nft.Masquerader{flannel}, []string{"FLANNEL-POSTRTG"}, []string{"flannel", "chain ip nat FLANNEL-POSTRTG", "and 1 more"}, 1},
		{"legacy", nil, []string{"CNI-0123456789abcdef01234567", "CNI-1123456789abcdef01234567"}, []string{"cni-plugins", "of iptables-legacy", `"ipMasq": false`, "and 1 more"}, 1},
		{"who follows pools", []nft.Masquerader{calico}, nil, nil, 1},
		{"everywhere", []nft.Masquerader{{Name: "kindnet", Family: policy.IPv4, Sources: cidrs("0.0.0.0/0")}, {Name: "kindnet", Family: policy.IPv6}}, nil, []string{"kindnet", "end it there"}, 2},
	} {
		a.masquerade.setOthers(masqueraders(tt.found, tt.legacy, a.masquerade.families()))
		got := messages(a)
		if (got == "") != (len(tt.want) == 0) || strings.Contains(got, "\n") {
			t.Errorf("%s: %q", tt.name, got)
		}
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q is not in %q", tt.name, want, got)
			}
		}
		if n := gauge(t, a, "selvage_base_masquerade"); n != tt.series {
			t.Errorf("%s: the metric is %v, want %v", tt.name, n, tt.series)
		}
	}
}

// TestNoMasquerade tells of a kernel that cannot, as long as a pool wants it.
func TestNoMasquerade(t *testing.T) {
	a, _, _ := newTestAgent()
	a.masquerade.unsupported = errors.New("load the module nft_masq")
	elsewhere := poolsOf("a 10.244.0.0/16 nat")
	zone := policy.NewLabels(map[string]string{"zone": "a"})
	elsewhere.All[0].Nodes = mixedPools().Pools[1].Nodes // zone=a,disk in (ssd)
	for i, step := range []struct {
		pools *policy.Pools
		want  string
	}{
		{poolsOf("a 10.244.0.0/16"), ""},
		{poolsOf("a 10.244.0.0/16", "b 10.9.0.0/16 nat"), "MasqueradeUnsupported: nothing is masqueraded of the pool b [10.9.0.0/16], though natOutgoing is true"},
		{elsewhere, ""},
		{poolsOf("b 10.9.0.0/16 nat"), "load the module nft_masq"},
		{poolsOf(), ""},
	} {
		a.masquerade.setPools(step.pools, zone)
		if got := messages(a); (got == "") != (step.want == "") || !strings.Contains(got, step.want) || strings.Contains(got, "\n") {
			t.Errorf("step %d: %q, want %q", i, got, step.want)
		}
	}
}
