package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/informer/link/isolate"
	"github.com/selvage-net/selvage/policy/nft"
)

// TestEngines plants what other engines make, one after the other, in the kernel.
func TestEngines(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	const filter = "nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority 0; }'\n"
	for _, tt := range []struct{ engine, plant, sign string }{
		{"kube-network-policies", "nft add table inet kube-network-policies", "table inet kube-network-policies"},
		{"kindnet", "nft add table inet kindnet-network-policies", "table inet kindnet-network-policies"},
		{"kube-router", "nft add chain ip filter KUBE-ROUTER-FORWARD", "chain ip filter KUBE-ROUTER-FORWARD"},
		{"kube-router", "nft add table ip6 kube-router-filter-ipv6", "table ip6 kube-router-filter-ipv6"},
		{"calico", "nft add chain ip filter cali-FORWARD", "chain ip filter cali-FORWARD"},
		{"calico", "nft add table ip calico", "table ip calico"},
		{"cilium", "nft add chain ip filter CILIUM_FORWARD", "chain ip filter CILIUM_FORWARD"},
		{"cilium", "ip link add cilium_host type veth peer name cilium_net", "interface cilium_host"},
		{"antrea", "ip link add antrea-gw0 type bridge", "interface antrea-gw0"},
		{"ovn-kubernetes", "ip link add ovn-k8s-mp0 type bridge", "interface ovn-k8s-mp0"},
		{"weave-npc", "nft add chain ip filter WEAVE-NPC", "chain ip filter WEAVE-NPC"},
		{"azure-npm", "nft add chain ip filter AZURE-NPM", "chain ip filter AZURE-NPM"},
		// These are none.
		{"", "nft add chain ip filter KUBE-FORWARD; nft add table ip kube-proxy; ip link add cni0 type bridge; nft add table inet filter", ""},
	} {
		isolate.Sh(t, filter+tt.plant)
		a, _, _ := newTestAgent()
		for range 2 {
			if err := a.lookForEngines(); err != nil {
				t.Fatal(err)
			}
		}
		got := messages(a)
		if tt.engine == "" && got != "" || tt.engine != "" && strings.Count(got, "\n") > 0 ||
			!strings.Contains(got, tt.engine) || !strings.Contains(got, tt.sign) {
			t.Errorf("%s: %q", tt.plant, got)
		}
		if n := gauge(t, a, "selvage_other_policy_engine"); (n == 1) != (tt.engine != "") {
			t.Errorf("%s: the metric is %v", tt.plant, n)
		}
		if err := a.conditions.unready(); err != nil {
			t.Errorf("%s: not ready: %v", tt.plant, err)
		}
		isolate.Sh(t, "nft flush ruleset; for l in cilium_host antrea-gw0 ovn-k8s-mp0 cni0; do ip link del $l 2> /dev/null || true; done")
		if err := a.lookForEngines(); err != nil {
			t.Fatal(err)
		}
		if got := messages(a); got != "" {
			t.Errorf("%s: still there when it is gone: %s", tt.plant, got)
		}
	}
}

// TestEnginesOfOld finds the chains of iptables-legacy, and keeps what is known
// if it cannot be looked.
func TestEnginesOfOld(t *testing.T) {
	a, _, _ := newTestAgent()
	no := errors.New("no luck")
	nothing := sight{
		place:  func(nft.Place) (bool, error) { return false, nil },
		link:   func(string) (bool, error) { return false, nil },
		chains: func(string) ([]string, error) { return nil, nil },
	}
	legacy, blind, deaf := nothing, nothing, nothing
	legacy.chains = func(string) ([]string, error) { return []string{"DOCKER-USER", "KUBE-ROUTER-FORWARD"}, nil }
	blind.place = func(nft.Place) (bool, error) { return false, no }
	deaf.chains = func(string) ([]string, error) { return nil, no }
	for i, step := range []struct {
		s    sight
		err  error
		want string
	}{
		{nothing, nil, ""},
		{legacy, nil, "another policy engine, kube-router, has rules on this node, recognised by chain KUBE-ROUTER-FORWARD of iptables-legacy"},
		{blind, no, "kube-router"},
		{deaf, no, "kube-router"},
		{nothing, nil, ""},
	} {
		if err := a.checkEngines(step.s); !errors.Is(err, step.err) {
			t.Errorf("step %d: %v, want %v", i, err, step.err)
		}
		if got := messages(a); (got == "") != (step.want == "") || !strings.Contains(got, step.want) || strings.Contains(got, "\n") {
			t.Errorf("step %d: %q, want %q", i, got, step.want)
		}
	}
}
