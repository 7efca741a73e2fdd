package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

// oddity is a packet that opens no connection that conntrack would know.
type oddity struct {
	name  string
	proto policy.Protocol
	// payload makes what follows the IP header.
	payload func(src, dst netip.Addr) []byte
}

func segment(flags uint8, change func([]byte)) func(src, dst netip.Addr) []byte {
	return func(src, dst netip.Addr) []byte {
		b := world.Segment{Src: netip.AddrPortFrom(src, 4444), Dst: netip.AddrPortFrom(dst, 80), Seq: 1000, Ack: 2000, Flags: flags, Window: 500}.Marshal()
		if change != nil {
			change(b)
		}
		return b
	}
}

// oddities are the packets that conntrack calls invalid or takes for what they
// are not, and those of protocols that policy cannot name.
func oddities(f policy.Family) []oddity {
	echo, unreachable := world.ICMP, icmp.Type(ipv4.ICMPTypeDestinationUnreachable)
	if f == policy.IPv6 {
		echo, unreachable = world.ICMPv6, ipv6.ICMPTypeDestinationUnreachable
	}
	return []oddity{
		{name: "lone RST", proto: policy.TCP, payload: segment(world.FlagRST, nil)},
		{name: "lone ACK", proto: policy.TCP, payload: segment(world.FlagACK, nil)},
		{name: "lone FIN", proto: policy.TCP, payload: segment(world.FlagFIN|world.FlagACK, nil)},
		{name: "SYN and ACK", proto: policy.TCP, payload: segment(world.FlagSYN|world.FlagACK, nil)},
		{name: "SYN and FIN", proto: policy.TCP, payload: segment(world.FlagSYN|world.FlagFIN, nil)},
		{name: "no flags", proto: policy.TCP, payload: segment(0, nil)},
		{name: "SYN with a wrong checksum", proto: policy.TCP, payload: segment(world.FlagSYN, func(b []byte) { b[16] ^= 0xff })},
		{name: "half a header", proto: policy.TCP, payload: func(src, dst netip.Addr) []byte { return segment(world.FlagSYN, nil)(src, dst)[:10] }},
		{name: "UDP of length 0", proto: policy.UDP, payload: func(_, _ netip.Addr) []byte { return []byte{0, 5, 0, 80, 0, 0, 0, 0} }},
		{name: "SCTP with a wrong checksum", proto: policy.SCTP, payload: func(_, _ netip.Addr) []byte { return append([]byte{0, 5, 0, 80}, make([]byte, 40)...) }},
		{name: "unknown protocol", proto: world.Nameless, payload: func(_, _ netip.Addr) []byte { return make([]byte, 40) }},
		{name: "GRE", proto: world.GRE, payload: func(_, _ netip.Addr) []byte { return make([]byte, 40) }},
		{name: "fragments", proto: world.Nameless, payload: func(_, _ netip.Addr) []byte { return make([]byte, 4000) }},
		{name: "error about nothing", proto: echo, payload: func(src, dst netip.Addr) []byte {
			// As if dst had sent a UDP datagram to src.
			return marshalICMP(icmp.Message{Type: unreachable, Code: 3, Body: &icmp.DstUnreach{Data: quoted(dst, src)}})
		}},
		{name: "answer to no question", proto: echo, payload: func(_, _ netip.Addr) []byte {
			typ := map[policy.Family]icmp.Type{policy.IPv4: ipv4.ICMPTypeEchoReply, policy.IPv6: ipv6.ICMPTypeEchoReply}[f]
			return marshalICMP(icmp.Message{Type: typ, Body: &icmp.Echo{ID: 7, Seq: 7}})
		}},
	}
}

func marshalICMP(m icmp.Message) []byte {
	b, err := m.Marshal(nil) // the kernel fills in the checksum of ICMPv6
	if err != nil {
		panic(err)
	}
	return b
}

// quoted is the beginning of a UDP datagram, with its IP header.
func quoted(src, dst netip.Addr) []byte {
	udp := []byte{4, 0, 0, 80, 0, 8, 0, 0}
	if src.Is4() {
		h := ipv4.Header{Version: 4, Len: 20, TotalLen: 28, TTL: 60, Protocol: 17, Src: src.AsSlice(), Dst: dst.AsSlice()}
		b, err := h.Marshal()
		if err != nil {
			panic(err)
		}
		return append(b, udp...)
	}
	b := append([]byte{0x60, 0, 0, 0, 0, 8, 17, 60}, src.AsSlice()...)
	return append(append(b, dst.AsSlice()...), udp...)
}

// send sends an oddity from one pod to another.
func (o oddity) send(t *testing.T, from *world.Pod, to netip.Addr) {
	t.Helper()
	src := from.Addr(policy.FamilyOf(to))
	c, err := from.ListenRaw(o.proto, src)
	must(t, err)
	defer c.Close()
	_, err = c.WriteToIP(o.payload(src, to), &net.IPAddr{IP: to.AsSlice()})
	must(t, err)
}

// arrivals counts at a pod's door what comes from each of the others, in both
// families, fragments included, but not the neighbour discovery of IPv6.
func arrivals(t *testing.T, at *actor, proto policy.Protocol, from ...*actor) *world.Watch {
	t.Helper()
	matches := map[string]string{}
	for _, a := range from {
		for _, addr := range a.Addrs() {
			match := fmt.Sprintf("%s saddr %s", policy.FamilyOf(addr), addr)
			if proto == world.ICMPv6 {
				match += " icmpv6 type 1-132"
			} else {
				match += " meta l4proto != icmpv6"
			}
			matches[counterName(a, addr)] = match
		}
	}
	// Before conntrack of the pod's own namespace would put fragments together.
	w, err := at.Watch(t.Context(), "prerouting", -450, matches)
	must(t, err)
	return w
}

func counterName(a *actor, addr netip.Addr) string {
	return fmt.Sprintf("%s_%s", a.Name, strings.TrimPrefix(policy.FamilyOf(addr).Suffix(), "-"))
}

// TestOddPackets sends what is no proper opening of a connection. It must not
// get through where the pod at either end is isolated and has no rule for it;
// between pods that nothing isolates it must, or the test would say nothing.
func TestOddPackets(t *testing.T) {
	for _, tracking := range []string{"tracked", "notrack"} {
		t.Run(tracking, func(t *testing.T) {
			c := newCast(t)
			var (
				sealed = c.add(t, c.a, "sealed", world.Bridged) // isolated for ingress
				mute   = c.add(t, c.a, "mute", world.Routed)    // isolated for egress
				open1  = c.add(t, c.a, "open1", world.Bridged)
				open2  = c.add(t, c.a, "open2", world.Routed)
				far    = c.add(t, c.b, "far", world.Bridged)
				lax    = c.add(t, c.a, "lax", world.Bridged) // isolated, with rules that allow everything
			)
			c.set(t, c.snapshot(t,
				np("sealed", "sealed", "ingress: [{from: ["+peer("mute")+"], ports: [{port: 8080}]}]")+
					np("mute", "mute", "policyTypes: [Egress], egress: [{to: ["+peer("sealed")+"], ports: [{port: 8080}]}]")+
					np("lax", "lax", "policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]")))
			if tracking == "notrack" {
				for _, n := range []*enforced{c.a, c.b} {
					must(t, n.NFT(t.Context(), "table inet raw { chain prerouting { type filter hook prerouting priority raw; notrack; }; }"))
				}
			}
			senders := []*actor{mute, open1, open2, far, lax}
			receivers := []*actor{sealed, open1, open2, far, lax}
			for _, f := range policy.Families {
				for _, o := range oddities(f) {
					watches := map[*actor]*world.Watch{}
					for _, to := range receivers {
						watches[to] = arrivals(t, to, o.proto, senders...)
					}
					// A flow of an earlier round would be established.
					for _, n := range []*enforced{c.a, c.b} {
						_, err := n.Run(t.Context(), "conntrack", "-F")
						must(t, err)
					}
					for _, from := range senders {
						for _, to := range receivers {
							if from != to {
								o.send(t, from.Pod, to.Addr(f))
							}
						}
					}
					checkOddity(t, c, o, f, tracking, senders, receivers, watches)
				}
			}
		})
	}
}

func checkOddity(t *testing.T, c *cast, o oddity, f policy.Family, tracking string, senders, receivers []*actor, watches map[*actor]*world.Watch) {
	t.Helper()
	forbidden := func(from, to *actor) bool { return to == c.actors["sealed"] || from == c.actors["mute"] }
	// An answer that the receiver of another packet sends, such as a reset, is
	// a packet too: only whether any came counts.
	var got map[*actor]map[string]uint64
	arrived := func(from, to *actor) uint64 { return got[to][counterName(from, from.Addr(f))] }
	missing := func() (names []string) {
		got = map[*actor]map[string]uint64{}
		for _, to := range receivers {
			packets, err := watches[to].Packets(t.Context())
			must(t, err)
			got[to] = packets
			for _, from := range senders {
				if from != to && !forbidden(from, to) && arrived(from, to) == 0 {
					names = append(names, fmt.Sprintf("from %s to %s", from.Name, to.Name))
				}
			}
		}
		return names
	}
	for deadline := time.Now().Add(patience); len(missing()) > 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	// Packets that were sent before these have been dealt with after them.
	c.settle(t)
	for _, name := range missing() {
		t.Errorf("%s, %s, %s: nothing arrived %s, though nothing forbids it", o.name, f, tracking, name)
	}
	for _, to := range receivers {
		for _, from := range senders {
			if n := arrived(from, to); from != to && forbidden(from, to) && n > 0 {
				t.Errorf("%s, %s, %s: %d packets from %s reached %s", o.name, f, tracking, n, from.Name, to.Name)
			}
		}
	}
}

// TestOutOfWindow sends segments that conntrack calls invalid on a connection
// that policy has cut.
func TestOutOfWindow(t *testing.T) {
	c := newCast(t)
	server, client := c.add(t, c.a, "server", world.Bridged), c.add(t, c.a, "client", world.Bridged)
	allow := np("server", "server", "ingress: [{from: ["+peer("client")+"]}]")
	c.set(t, c.snapshot(t, allow))
	for _, f := range policy.Families {
		fl := open(t, "client", policy.TCP, client.Namespace, netip.AddrPortFrom(server.Addr(f), 80), server.Pod, netip.AddrPortFrom(server.Addr(f), 80))
		c.set(t, c.snapshot(t, np("server", "server", "ingress: []")))
		w := arrivals(t, server, policy.TCP, client)
		src := fl.client.local
		raw, err := client.ListenRaw(policy.TCP, src.Addr())
		must(t, err)
		defer raw.Close()
		for _, seq := range []uint32{0, 1 << 30, 1 << 31, 3 << 30} {
			s := world.Segment{Src: src, Dst: netip.AddrPortFrom(server.Addr(f), 80), Seq: seq, Ack: seq, Flags: world.FlagACK, Window: 100, Payload: []byte("x")}
			_, err := raw.WriteToIP(s.Marshal(), &net.IPAddr{IP: server.Addr(f).AsSlice()})
			must(t, err)
		}
		c.settle(t)
		got, err := w.Packets(t.Context())
		must(t, err)
		if n := got[counterName(client, src.Addr())]; n > 0 {
			t.Errorf("%s: %d segments out of the window reached the server", f, n)
		}
		c.set(t, c.snapshot(t, allow))
	}
}

// TestErrorsOfAllowedFlows wants ICMP errors to reach a pod that is isolated in
// both directions, if they are about a flow that it may have: without them it
// learns of neither a closed port nor a narrow path.
func TestErrorsOfAllowedFlows(t *testing.T) {
	c := newCast(t)
	client := c.add(t, c.a, "client", world.Bridged)
	far := map[policy.Family]netip.Addr{policy.IPv4: netip.MustParseAddr("198.51.100.1"), policy.IPv6: netip.MustParseAddr("2001:db8:51::1")}
	c.set(t, c.snapshot(t, np("client", "client", `policyTypes: [Ingress, Egress], egress: [
		{to: [{ipBlock: {cidr: 192.168.0.0/24}}, {ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: "fd00:ff::/64"}}, {ipBlock: {cidr: "2001:db8:51::/64"}}]}]`)))
	for _, f := range policy.Families {
		t.Run(f.String(), func(t *testing.T) {
			// The way there is narrow beyond the host outside.
			_, err := c.outside.Run(t.Context(), "ip", map[policy.Family]string{policy.IPv4: "-4", policy.IPv6: "-6"}[f],
				"route", "add", far[f].String(), "via", c.b.Addr(f).String(), "mtu", "lock", "1300")
			must(t, err)
			conn, err := client.DialUDP(netip.Addr{}, netip.AddrPortFrom(far[f], 80))
			must(t, err)
			defer conn.Close()
			raw, err := conn.SyscallConn()
			must(t, err)
			level, discover, do := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
			if f == policy.IPv6 {
				level, discover, do = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
			}
			must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, discover, do) }))
			must(t, err)
			fails := func(what string, want unix.Errno, send func() error) {
				t.Helper()
				var last error
				for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
					if last = send(); last != nil && strings.Contains(last.Error(), want.Error()) {
						return
					}
				}
				t.Errorf("%s: %v, want %v", what, last, want)
			}
			fails("a datagram too long for the path", unix.EMSGSIZE, func() error { _, err := conn.Write(make([]byte, 1400)); return err })

			closed, err := client.DialUDP(netip.Addr{}, netip.AddrPortFrom(c.outside.Addr(f), 81))
			must(t, err)
			defer closed.Close()
			fails("a datagram to a closed port", unix.ECONNREFUSED, func() error { _, err := closed.Write([]byte("x")); return err })
		})
	}
}

// TestFragments sends datagrams that must be cut into pieces. The ports are in
// the first piece alone.
func TestFragments(t *testing.T) {
	c := newCast(t)
	server := c.add(t, c.a, "server", world.Bridged)
	var flows []*flow
	allowed := []*actor{c.add(t, c.a, "ok1", world.Bridged), c.add(t, c.a, "ok2", world.Routed), c.add(t, c.b, "ok3", world.Bridged)}
	denied := []*actor{c.add(t, c.a, "shut1", world.Bridged), c.add(t, c.a, "shut2", world.Routed), c.add(t, c.b, "shut3", world.Bridged)}
	c.set(t, c.snapshot(t, np("server", "server", "ingress: [{from: ["+peer("ok")+"], ports: [{protocol: UDP, port: 1000, endPort: 2000}]}]")))
	port := uint16(1000)
	for _, from := range allowed {
		for _, a := range server.Addrs() {
			at := netip.AddrPortFrom(a, port)
			flows = append(flows, open(t, from.Name, policy.UDP, from.Namespace, at, server.Pod, at))
			port++
		}
	}
	w := arrivals(t, server, policy.UDP, denied...)
	long := strings.Repeat("x", 5000)
	for _, f := range flows {
		for what, d := range map[string][2]*end{"request": {f.client, f.server}, "answer": {f.server, f.client}} {
			must(t, d[0].send(long))
			select {
			case got := <-d[1].lines:
				if got != long {
					t.Errorf("%s: a long %s arrived as %d bytes", f.name, what, len(got))
				}
			case <-time.After(patience):
				t.Errorf("%s: a long %s did not arrive", f.name, what)
			}
		}
	}
	for _, from := range denied {
		for _, a := range server.Addrs() {
			conn, err := from.DialUDP(netip.Addr{}, netip.AddrPortFrom(a, 1000))
			must(t, err)
			_, err = conn.Write([]byte(long))
			must(t, errors.Join(err, conn.Close()))
		}
	}
	c.settle(t)
	got, err := w.Packets(t.Context())
	must(t, err)
	for name, n := range got {
		if n > 0 {
			t.Errorf("%d packets of %s reached the server", n, name)
		}
	}
}
