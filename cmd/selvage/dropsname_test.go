package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nflog"
)

// dropNames is a lookup: pods by address, policies by chain.
type dropNames struct {
	pods   map[string][2]string
	chains map[string][]policy.PolicyRef
}

func (n dropNames) Owner(a netip.Addr) (namespace, name string) {
	pod := n.pods[a.String()]
	return pod[0], pod[1]
}

func (n dropNames) Isolating(chain string) []policy.PolicyRef { return n.chains[chain] }

// shopNames are two pods of a shop, and one that looks at it.
func shopNames() dropNames {
	return dropNames{
		pods: map[string][2]string{
			"10.244.1.7": {"shop", "web"}, "10.244.2.9": {"shop", "db"}, "10.244.3.1": {"ops", "probe"}, "fd00::7": {"shop", "web"},
			"127.0.0.7": {"shop", "web"}, "127.0.0.9": {"shop", "db"},
		},
		chains: map[string][]policy.PolicyRef{
			"deny-ingress-a": {{Namespace: "shop", Name: "closed"}, {Namespace: "shop", Name: "db"}},
			"deny-egress-b":  {{Namespace: "shop", Name: "no-egress"}},
		},
	}
}

func TestResolveDrop(t *testing.T) {
	at := time.Date(2026, 11, 5, 12, 0, 0, 0, time.UTC)
	web, db := dropEnd{"shop", "web", netip.MustParseAddr("10.244.1.7")}, dropEnd{"shop", "db", netip.MustParseAddr("10.244.2.9")}
	probe := dropEnd{"ops", "probe", netip.MustParseAddr("10.244.3.1")}
	outside, unknown := dropEnd{Address: netip.MustParseAddr("192.0.2.1")}, dropEnd{Address: netip.MustParseAddr("10.244.1.99")}
	packet := func(prefix string, from, to dropEnd, protocol uint8, ports ...uint16) nflog.Packet {
		p := nflog.Packet{Time: at, Prefix: prefix, Source: from.Address, Destination: to.Address, Protocol: protocol, Interface: "veth1"}
		if len(ports) == 2 {
			p.SourcePort, p.DestinationPort = ports[0], ports[1]
		}
		return p
	}
	flags := func(p nflog.Packet, f nflog.TCPFlags) nflog.Packet {
		p.TCPFlags = f
		return p
	}
	icmp := func(p nflog.Packet, kind uint8) nflog.Packet {
		p.HasICMP, p.ICMPType = true, kind
		return p
	}
	ingress := drop{Time: at, Node: "n1", Direction: "ingress", Reason: dropPolicyDenies, Source: web, Destination: db, Protocol: "TCP", Port: 5432, Interface: "veth1",
		Policies: []dropPolicy{{"shop", "closed"}, {"shop", "db"}}, Count: 1}
	with := func(n drop, change func(*drop)) drop {
		change(&n)
		return n
	}
	reply := func(n *drop) { n.Reply = true }
	egress := with(ingress, func(n *drop) {
		n.Direction, n.Policies = "egress", []dropPolicy{{"shop", "no-egress"}}
	})
	nobody := with(ingress, func(n *drop) {
		n.Reason, n.Policies, n.Destination = dropUnknownPod, []dropPolicy{}, unknown
	})
	request, answer := uint8(8), uint8(129)
	for _, tt := range []struct {
		name   string
		packet nflog.Packet
		want   drop
	}{
		{"a connection begins", flags(packet("deny-ingress-a", web, db, unix.IPPROTO_TCP, 50000, 5432), nflog.SYN), ingress},
		{"to a port that is a client's", flags(packet("deny-ingress-a", web, db, unix.IPPROTO_TCP, 1023, 50000), nflog.SYN), with(ingress, func(n *drop) { n.Port = 50000 })},
		{"it goes on", flags(packet("deny-ingress-a", web, db, unix.IPPROTO_TCP, 50000, 5432), nflog.ACK|nflog.PSH), ingress},
		{"its first answer", flags(packet("deny-ingress-a", db, web, unix.IPPROTO_TCP, 5432, 50000), nflog.SYN|nflog.ACK), with(ingress, reply)},
		{"an answer within a namespace", flags(packet("deny-ingress-a", db, web, unix.IPPROTO_TCP, 5432, 50000), nflog.ACK), with(ingress, reply)},
		{"an answer to another namespace, whatever the ports", packet("deny-ingress-a", db, probe, unix.IPPROTO_UDP, 40000, 53), with(ingress, func(n *drop) {
			n.Source, n.Protocol, n.Port, n.Reply = probe, "UDP", 40000, true
		})},
		{"from another namespace, whatever the ports", packet("deny-ingress-a", probe, db, unix.IPPROTO_UDP, 53, 40000), with(ingress, func(n *drop) {
			n.Source, n.Protocol, n.Port = probe, "UDP", 40000
		})},
		{"egress", packet("deny-egress-b", web, outside, unix.IPPROTO_UDP, 50000, 53), with(egress, func(n *drop) {
			n.Destination, n.Protocol, n.Port = outside, "UDP", 53
		})},
		{"an answer to egress", packet("deny-egress-b", outside, web, unix.IPPROTO_SCTP, 80, 50000), with(egress, func(n *drop) {
			n.Destination, n.Protocol, n.Port, n.Reply = outside, "SCTP", 80, true
		})},
		{"egress within a namespace", packet("deny-egress-b", web, db, unix.IPPROTO_TCP, 50000, 5432), egress},
		{"ping", icmp(packet("deny-ingress-a", web, db, unix.IPPROTO_ICMP), 8), with(ingress, func(n *drop) {
			n.Protocol, n.Port, n.ICMPType = "ICMP", 0, &request
		})},
		{"its answer", icmp(packet("deny-ingress-a", db, web, unix.IPPROTO_ICMPV6), 129), with(ingress, func(n *drop) {
			n.Protocol, n.Port, n.ICMPType, n.Reply = "ICMPv6", 0, &answer, true
		})},
		{"another protocol", packet("deny-ingress-a", web, db, 89), with(ingress, func(n *drop) { n.Protocol, n.Port = "89", 0 })},
		{"the policies are gone", packet("deny-ingress-gone", web, db, unix.IPPROTO_TCP, 50000, 5432), with(ingress, func(n *drop) { n.Policies = []dropPolicy{} })},
		{"to nobody", packet("deny-unknown", web, unknown, unix.IPPROTO_TCP, 50000, 5432), nobody},
		{"from nobody", packet("deny-unknown", unknown, db, unix.IPPROTO_TCP, 50000, 5432), with(nobody, func(n *drop) {
			n.Direction, n.Source, n.Destination = "egress", unknown, db
		})},
		{"an answer of nobody", packet("deny-unknown", unknown, web, unix.IPPROTO_TCP, 5432, 50000), with(nobody, reply)},
		{"nobody at both ends", packet("deny-unknown", outside, unknown, unix.IPPROTO_TCP, 50000, 5432), with(nobody, func(n *drop) {
			n.Direction, n.Source = "", outside
		})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDrops(defaultDropsConfig(), "n1", shopNames(), testLogger(t))
			if diff := cmp.Diff(tt.want, d.resolve(tt.packet), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}
