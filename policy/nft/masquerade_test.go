package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"

	"github.com/selvage-net/selvage/policy"
)

// TestMasquerade sends packets: what leaves the pods for the world comes from the
// node, and what goes to other pods or to who is not to be deceived does not.
func TestMasquerade(t *testing.T) {
	e := newEdge(t)
	c := e.router.open(t)
	pods, others := prefixes("10.1.0.0/24", "fd00:1::/64"), prefixes("10.9.0.0/16", "fd00:9::/64")
	none := &policy.Ruleset{Tables: [2]policy.Table{{Family: policy.IPv4}, {Family: policy.IPv6}}}
	all := slices.Concat(pods, others)
	kept := prefixes("198.51.100.0/24", "2001:db8:51::/48")
	before := none
	for _, step := range []struct {
		what               string
		rules              *policy.Ruleset
		world, peer, keeps place
	}{
		{"at first", none, edgePod, edgePod, edgePod},
		{"all sets", natTables(pods, all, kept), edgeRouter, edgePod, edgePod},
		{"without the other pool", natTables(pods, pods, kept), edgeRouter, edgeRouter, edgePod},
		{"nothing kept", natTables(pods, all, nil), edgeRouter, edgePod, edgeRouter},
		{"other pods masqueraded", natTables(others, all, kept), edgePod, edgePod, edgePod},
		{"all sets again", natTables(pods, all, kept), edgeRouter, edgePod, edgePod},
		{"no pool", none, edgePod, edgePod, edgePod},
	} {
		mustApply(t, c, policy.Diff(before, step.rules))
		before = step.rules
		for _, f := range policy.Families {
			e.mustAsk(t, step.what, edgeWorld[f], step.world[f])
			e.mustAsk(t, step.what, edgePeer[f], step.peer[f])
			e.mustAsk(t, step.what, edgeKept[f], step.keeps[f])
		}
	}
	if list := e.router.list(t); strings.Contains(list, "set") || strings.Contains(list, "chain") {
		t.Errorf("what is left:\n%s", list)
	}
}

// TestMasqueradedOnce: where the base CNI masquerades, whatever by, we come too late,
// and a flow has one source translation. Without the CNI we are not too late, which
// shows that the test can tell.
func TestMasqueradedOnce(t *testing.T) {
	for name, base := range map[string]struct {
		script string
		ours   int
	}{
		"nobody else": {"", 1},
		"iptables-nft": {flannelIPTables("iptables-nft", "10.0.0.0/8", "10.1.0.0/24", "224.0.0.0/4") +
			flannelIPTables("ip6tables-nft", "fd00::/8", "fd00:1::/64", "ff00::/8"), 0},
		"iptables-legacy": {flannelIPTables("iptables-legacy", "10.0.0.0/8", "10.1.0.0/24", "224.0.0.0/4") +
			flannelIPTables("ip6tables-legacy", "fd00::/8", "fd00:1::/64", "ff00::/8"), 0},
		"nftables": {strings.ReplaceAll(flannelNFTables("ip", "flannel-ipv4", "10.0.0.0/8", "10.1.0.0/24", "224.0.0.0/4")+
			flannelNFTables("ip6", "flannel-ipv6", "fd00::/8", "fd00:1::/64", "ff00::/8"), "<<END", "<<-END"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEdge(t)
			pods := prefixes("10.1.0.0/24", "fd00:1::/64")
			// Ours are there first, and yet come second.
			mustApply(t, e.router.open(t), fill(natTables(pods, pods, nil)))
			e.router.run(t, base.script, "sh", "-e")
			for _, f := range policy.Families {
				e.mustAsk(t, name, edgeWorld[f], edgeRouter[f])
				if n := e.counted(t, f); n != base.ours {
					t.Errorf("%s: our rule has masqueraded %d flows, want %d", f, n, base.ours)
				}
				family := map[policy.Family]string{policy.IPv4: "ipv4", policy.IPv6: "ipv6"}[f]
				flows := strings.Fields(e.router.run(t, "", "conntrack", "-L", "-f", family, "-p", "udp", "--orig-port-dst", fmt.Sprint(edgePort)))
				var addrs []string
				for _, field := range flows {
					if a, ok := strings.CutPrefix(field, "src="); ok {
						addrs = append(addrs, "from "+a)
					}
					if a, ok := strings.CutPrefix(field, "dst="); ok {
						addrs = append(addrs, "to "+a)
					}
				}
				want := []string{"from " + edgePod[f].String(), "to " + edgeWorld[f].String(), "from " + edgeWorld[f].String(), "to " + edgeRouter[f].String()}
				if diff := cmp.Diff(want, addrs); diff != "" {
					t.Errorf("%s: the tuples of the flow, wanted (-) and there (+):\n%s", f, diff)
				}
			}
		})
	}
}

// TestOtherMasqueradesAreForeign: only ours is taken for ours.
func TestOtherMasqueradesAreForeign(t *testing.T) {
	ns := newNamespace(t)
	ns.nft(t, `table ip selvage {
		set kept-v4 { type ipv4_addr; flags interval; }
		set pairs-v4 { type ipv4_addr . ipv4_addr; }
		chain postrouting {
			type nat hook postrouting priority 110; policy accept;
			masquerade fully-random
			ip daddr != @kept-v4 masquerade fully-random
			masquerade
			masquerade random
			masquerade fully-random,persistent
			meta l4proto tcp masquerade to :1024-2047 fully-random
			snat to 192.0.2.1 fully-random
			ip saddr . ip daddr != @pairs-v4 masquerade fully-random
		}
	}`)
	got, err := ns.open(t).Read()
	if err != nil {
		t.Fatal(err)
	}
	rules := got.Tables[policy.IPv4].Chains[0].Rules
	if len(rules) != 8 {
		t.Fatalf("%d rules", len(rules))
	}
	for i, r := range rules {
		if foreign := len(r.Match) == 1 && r.Match[0].Op == opForeign; foreign != (i >= 2) {
			t.Errorf("rule %d is read as %q, foreign %t", i, r.Text(policy.IPv4), foreign)
		}
	}
}

// TestIntervalsChangeInPlace changes what is in an interval set, each time in one
// transaction, and compares with what nft(8) makes of the result from nothing.
func TestIntervalsChangeInPlace(t *testing.T) {
	v4 := func(blocks ...string) [2][]netip.Prefix { return [2][]netip.Prefix{prefixes(blocks...)} }
	v6 := func(blocks ...string) [2][]netip.Prefix { return [2][]netip.Prefix{policy.IPv6: prefixes(blocks...)} }
	ns, clean := newNamespace(t), newNamespace(t)
	c, conn := ns.open(t), clean.open(t)
	now := natTables(nil, nil, nil)
	mustApply(t, c, fill(now))
	for _, step := range []struct {
		what   string
		blocks [2][]netip.Prefix
	}{
		{"one", v4("10.1.0.0/16")},
		{"a neighbour above", v4("10.1.0.0/16", "10.2.0.0/16")},
		{"a neighbour below", v4("10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/16")},
		{"the one between them goes", v4("10.0.0.0/16", "10.2.0.0/16")},
		{"and comes again", v4("10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/16")},
		{"all three in one", v4("10.0.0.0/14")},
		{"which becomes smaller", v4("10.1.0.0/16")},
		{"and larger, with the same beginning", v4("10.0.0.0/15")},
		{"and smaller, with the same end", v4("10.1.0.0/16")},
		{"two out of one", v4("10.1.0.0/17", "10.1.128.0/17")},
		{"moved up by half", v4("10.1.128.0/17", "10.2.0.0/17")},
		{"everything else", v4("172.16.0.0/12", "192.168.0.0/16")},
		{"up to the last address", v4("0.0.0.0/1", "128.0.0.0/1")},
		{"every address", v4("0.0.0.0/0")},
		{"the last address", v4("255.255.255.255/32", "0.0.0.0/32")},
		{"of the other family", v6("fd00::/48", "fd00:0:1::/48", "ff00::/8")},
		{"of it in one", v6("fd00::/16")},
		{"and in many", v6("fd00:1::/32", "fd00:2::/32", "fd00:3::/32", "fe00::/7")},
		{"nothing", v4()},
	} {
		blocks := slices.Concat(step.blocks[:]...)
		next := natTables(blocks, blocks, nil)
		if stats := mustApply(t, c, policy.Diff(now, next)); stats.Batches != 1 {
			t.Errorf("%s: %+v", step.what, stats)
		}
		now = next
		got, err := c.Read()
		if err != nil {
			t.Fatal(err)
		}
		if diff := diffRulesets(next, got); diff != "" {
			t.Errorf("%s: wanted (-) and in the kernel (+):\n%s", step.what, diff)
		}
		if _, err := conn.Cleanup(); err != nil {
			t.Fatal(err)
		}
		clean.nft(t, next.String())
		if diff := cmp.Diff(clean.list(t), ns.list(t)); diff != "" {
			t.Errorf("%s: listed after nft -f (-) and after the change (+):\n%s", step.what, diff)
		}
	}
}

// TestBaseChainGoesBeforeItsSets: no packet may look into sets of a chain that are
// about to go.
func TestBaseChainGoesBeforeItsSets(t *testing.T) {
	ns := newNamespace(t)
	c := ns.open(t)
	r := natTables(prefixes("10.1.0.0/16"), nil, nil)
	mustApply(t, c, fill(r))
	gone := policy.Diff(r, &policy.Ruleset{Tables: [2]policy.Table{{Family: policy.IPv4}, {Family: policy.IPv6}}})
	for _, way := range []string{"applied", "read"} {
		if way == "read" {
			if _, err := c.Read(); err != nil {
				t.Fatal(err)
			}
		}
		m, err := c.encoder.change(gone, &c.known)
		if err != nil {
			t.Fatal(err)
		}
		var ops []string
		for _, msgs := range [][]netlink.Message{m.Prepare, m.Switch, m.Sweep} {
			for i := range msgs {
				op, object := describe(&msgs[i])
				ops = append(ops, op+" "+object)
			}
			ops = append(ops, "then")
		}
		want := []string{
			"then", "delete chain ip selvage postrouting", "delete chain ip6 selvage postrouting", "then",
			"delete set ip selvage kept-v4", "delete set ip selvage masquerade-v4", "delete set ip selvage pools-v4",
			"delete set ip6 selvage kept-v6", "delete set ip6 selvage masquerade-v6", "delete set ip6 selvage pools-v6", "then",
		}
		if diff := cmp.Diff(want, ops); diff != "" {
			t.Errorf("%s: wanted (-) and done (+):\n%s", way, diff)
		}
	}
	mustApply(t, c, gone)
}
