package world

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/selvage-net/selvage/policy"
)

// FlannelRules are the rules in the table nat by which flanneld masquerades, in the
// syntax of iptables-restore, for a cluster whose pods are in network, on the node
// whose pods are in pods. They are those of flannel 0.28 with --ip-masq.
func FlannelRules(network, pods netip.Prefix) string {
	multicast := "224.0.0.0/4"
	if network.Addr().Is6() {
		multicast = "ff00::/8"
	}
	var b strings.Builder
	b.WriteString("*nat\n:FLANNEL-POSTRTG - [0:0]\n")
	rule := func(chain, match, target string) {
		fmt.Fprintf(&b, "-A %s %s -m comment --comment \"flanneld masq\" -j %s\n", chain, match, target)
	}
	rule("POSTROUTING", "", "FLANNEL-POSTRTG")
	for _, r := range []struct{ match, target string }{
		{"-m mark --mark 0x4000/0x4000", "RETURN"}, // kube-proxy's
		{fmt.Sprintf("-s %s -d %s", pods, network), "RETURN"},
		{fmt.Sprintf("-s %s -d %s", network, pods), "RETURN"},
		{fmt.Sprintf("! -s %s -d %s", network, pods), "RETURN"},
		{fmt.Sprintf("-s %s ! -d %s", network, multicast), "MASQUERADE --random-fully"},
		{fmt.Sprintf("! -s %s -d %s", network, network), "MASQUERADE --random-fully"},
	} {
		rule("FLANNEL-POSTRTG", r.match, r.target)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// FlannelMasquerade has the node masquerade as flanneld does in a cluster whose pods
// are in the given networks, one of each family at the most. Without any, that ends.
func (n *Node) FlannelMasquerade(ctx context.Context, networks ...netip.Prefix) error {
	var errs []error
	for f, restore := range map[policy.Family]string{policy.IPv4: "iptables-nft-restore", policy.IPv6: "ip6tables-nft-restore"} {
		rules := "*nat\nCOMMIT\n" // flushes
		for _, network := range networks {
			for _, pods := range n.PodCIDRs {
				if policy.FamilyOf(network.Addr()) == f && network.Overlaps(pods) {
					rules = FlannelRules(network, pods)
				}
			}
		}
		_, err := n.run(ctx, rules, restore)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
