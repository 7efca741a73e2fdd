package policytest

import (
	"net/netip"
	"slices"

	"go4.org/netipx"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
	"github.com/selvage-net/selvage/policy/trace"
)

// ICMP is the protocol of IPv4's messages; trace.ICMPv6 is that of IPv6's.
const ICMP policy.Protocol = 1

// Packets makes packets that are worth trying on a snapshot.
func Packets(s policy.Snapshot) *rapid.Generator[oracle.Packet] {
	pods, others, ports := podAddrs(s), otherAddrs(s), interestingPorts(s)
	var in, out []netip.Addr
	for _, a := range pods {
		ingress, egress := oracle.Isolated(s, NodeA, a)
		if ingress {
			in = append(in, a)
		}
		if egress {
			out = append(out, a)
		}
	}
	return rapid.Custom(func(t *rapid.T) oracle.Packet {
		d := drawer{t: t}
		// Most packets have an end that is isolated: about the others there is
		// little to be said.
		var src, dst netip.Addr
		switch side := d.upTo(4); {
		case side >= 3 && len(in) > 0:
			dst = pick(d, in...)
			src = d.end(only(pods, dst.Is4()), only(others, dst.Is4()))
		case side >= 1 && len(out) > 0:
			src = pick(d, out...)
			dst = d.end(only(pods, src.Is4()), only(others, src.Is4()))
		default:
			src = d.end(pods, others)
			dst = d.end(only(pods, src.Is4()), only(others, src.Is4()))
		}
		icmp := ICMP
		if src.Is6() {
			icmp = trace.ICMPv6
		}
		return oracle.Packet{
			Src: src, Dst: dst,
			// UDP-Lite and DCCP have ports that no policy can name.
			Protocol: pick(d, policy.TCP, policy.TCP, policy.TCP, policy.TCP, policy.UDP, policy.UDP, policy.SCTP, icmp, 47, 136, 33),
			Port:     pick(d, ports...),
		}
	})
}

// Pairs returns packets between all pods, and between them and a few others:
// for each pair the same ports, of which one is drawn for each protocol.
func Pairs(s policy.Snapshot) *rapid.Generator[[]oracle.Packet] {
	ends := append(podAddrs(s), netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9"))
	ports := interestingPorts(s)
	return rapid.Custom(func(t *rapid.T) []oracle.Packet {
		d := drawer{t: t}
		var packets []oracle.Packet
		kinds := []oracle.Packet{
			{Protocol: policy.TCP, Port: pick(d, ports...)}, {Protocol: policy.TCP, Port: pick(d, portNums16()...)},
			{Protocol: policy.UDP, Port: pick(d, ports...)}, {Protocol: policy.SCTP, Port: pick(d, ports...)}, {Protocol: ICMP},
		}
		for _, src := range ends {
			for _, dst := range ends {
				if src.Is4() != dst.Is4() {
					continue
				}
				for _, p := range kinds {
					p.Src, p.Dst = src, dst
					packets = append(packets, p)
				}
			}
		}
		return packets
	})
}

func portNums16() []uint16 {
	var out []uint16
	for _, n := range portNums {
		out = append(out, uint16(n))
	}
	return out
}

// end draws an end of a connection: most often a pod.
func (d drawer) end(pods, others []netip.Addr) netip.Addr {
	if len(pods) > 0 && d.upTo(3) != 0 {
		return pick(d, pods...)
	}
	return pick(d, others...)
}

func only(addrs []netip.Addr, v4 bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if a.Is4() == v4 {
			out = append(out, a)
		}
	}
	return out
}

func podAddrs(s policy.Snapshot) []netip.Addr {
	var addrs []netip.Addr
	for _, p := range s.Pods {
		addrs = append(addrs, p.Addrs...)
	}
	return unique(addrs)
}

func unique(addrs []netip.Addr) []netip.Addr {
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// otherAddrs are addresses in and around the blocks of the policies, unknown
// ones in the ranges of the nodes, and ones far away.
func otherAddrs(s policy.Snapshot) []netip.Addr {
	addrs := []netip.Addr{
		netip.MustParseAddr("10.1.0.0"), netip.MustParseAddr("10.1.0.200"), netip.MustParseAddr("10.1.0.255"), netip.MustParseAddr("10.2.0.200"),
		netip.MustParseAddr("fd00:1::"), netip.MustParseAddr("fd00:1::200"), netip.MustParseAddr("fd00:1::ffff:ffff:ffff:ffff"), netip.MustParseAddr("fd00:2::200"),
		netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9"),
		netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("192.168.0.2"),
	}
	addrs = append(addrs, poolPlaces(s)...)
	for _, np := range s.Policies {
		for _, block := range blocksOf(np) {
			for _, text := range append([]string{block.CIDR}, block.Except...) {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					continue
				}
				r := netipx.RangeOfPrefix(p)
				addrs = append(addrs, r.From(), r.To())
				if before := r.From().Prev(); before.IsValid() {
					addrs = append(addrs, before)
				}
				if after := r.To().Next(); after.IsValid() {
					addrs = append(addrs, after)
				}
			}
		}
	}
	return unique(addrs)
}

func blocksOf(np *networkingv1.NetworkPolicy) []*networkingv1.IPBlock {
	var peers []networkingv1.NetworkPolicyPeer
	for _, r := range np.Spec.Ingress {
		peers = append(peers, r.From...)
	}
	for _, r := range np.Spec.Egress {
		peers = append(peers, r.To...)
	}
	var blocks []*networkingv1.IPBlock
	for _, p := range peers {
		if p.IPBlock != nil {
			blocks = append(blocks, p.IPBlock)
		}
	}
	return blocks
}

// interestingPorts are those that the policies name, their neighbours, and
// those of the pods' named ports.
func interestingPorts(s policy.Snapshot) []uint16 {
	ports := []uint16{1, 80, 65535}
	add := func(p networkingv1.NetworkPolicyPort) {
		if p.Port == nil || p.Port.Type != intstr.Int {
			return
		}
		ends := []int32{p.Port.IntVal}
		if p.EndPort != nil {
			ends = append(ends, *p.EndPort)
		}
		for _, n := range ends {
			for _, m := range []int32{n - 1, n, n + 1} {
				if 1 <= m && m <= 65535 {
					ports = append(ports, uint16(m))
				}
			}
		}
	}
	for _, np := range s.Policies {
		for _, r := range np.Spec.Ingress {
			for _, p := range r.Ports {
				add(p)
			}
		}
		for _, r := range np.Spec.Egress {
			for _, p := range r.Ports {
				add(p)
			}
		}
	}
	for _, pod := range s.Pods {
		for _, p := range pod.Ports {
			ports = append(ports, p.Port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// Opening is the first packet of the connection, at the forward hook.
func Opening(p oracle.Packet) trace.Packet { return Tracked(p, policy.StateNew, 0, false) }

// Tracked is a packet of the connection: its state, its mark, and whether it is
// one of the answers.
func Tracked(p oracle.Packet, state, mark uint32, reply bool) trace.Packet {
	out := Stateless(p, false)
	if reply {
		out.Saddr, out.Daddr = p.Dst, p.Src
	}
	out.Flow = &trace.Flow{
		State: state, Mark: mark, Reply: reply, Protocol: p.Protocol,
		OriginalSaddr: p.Src, ReplySaddr: p.Dst,
		// For ICMP and for protocols that conntrack does not know this is not a
		// port at all, but the number is there.
		ReplyProtoSrc: p.Port,
	}
	return out
}

// Error is an ICMP error about the connection, from a router on the way or from
// the other end; conntrack calls it related.
func Error(p oracle.Packet, mark uint32, reply bool) trace.Packet {
	out := Tracked(p, policy.StateRelated, mark, reply)
	out.Protocol = ICMP
	if p.Src.Is6() {
		out.Protocol, out.ICMPv6Type = trace.ICMPv6, 1
	}
	return out
}

// Stateless is a packet with this header that conntrack has no entry for,
// because it calls it invalid or was told not to track it.
func Stateless(p oracle.Packet, untracked bool) trace.Packet {
	return trace.Packet{
		Saddr: p.Src, Daddr: p.Dst, Protocol: p.Protocol,
		// An echo request.
		ICMPv6Type: 128, HopLimit: 63, Iifname: "eth0", Untracked: untracked,
	}
}
