package nflog

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Headers, as they are on the wire.
const (
	ip4TCP      = "45 00 003c 1234 4000 40 06 0000 0a f4 01 07  0a f4 02 09 "
	ip4Options  = "46 00 0040 1234 4000 40 11 0000 0a f4 01 07  0a f4 02 09  94 04 00 00 "
	ip4Fragment = "45 00 003c 1234 2005 40 11 0000 0a f4 01 07  0a f4 02 09 "
	ip4ICMP     = "45 00 0054 1234 4000 40 01 0000 0a f4 01 07  0a f4 02 09 "
	ip4Short    = "43 00 003c 1234 4000 40 06 0000 0a f4 01 07  0a f4 02 09 "
	ip4OSPF     = "45 00 003c 1234 4000 40 59 0000 0a f4 01 07  0a f4 02 09 "
	ip6         = "60 000000 0028 NEXT 40 fd000001000000000000000000000007 fd000002000000000000000000000009 "
	tcpSYN      = "c350 1538 00000001 00000000 a0 02 ffff 0000 0000"
	udp         = "d431 0035 0010 0000"
	echo        = "08 00 0000 0001 0001"
)

func ip6With(next string) string { return strings.ReplaceAll(ip6, "NEXT", next) }

func fromHex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecode(t *testing.T) {
	v4 := func(protocol uint8, length int) Packet {
		return Packet{Source: netip.MustParseAddr("10.244.1.7"), Destination: netip.MustParseAddr("10.244.2.9"), Protocol: protocol, Length: length}
	}
	v6 := func(protocol uint8) Packet {
		return Packet{Source: netip.MustParseAddr("fd00:1::7"), Destination: netip.MustParseAddr("fd00:2::9"), Protocol: protocol, Length: 80}
	}
	ports := func(p Packet, from, to uint16, flags TCPFlags) Packet {
		p.SourcePort, p.DestinationPort, p.TCPFlags = from, to, flags
		return p
	}
	icmp := func(p Packet, kind, code uint8) Packet {
		p.ICMPType, p.ICMPCode, p.HasICMP = kind, code, true
		return p
	}
	for _, tt := range []struct {
		name, packet string
		want         Packet
	}{
		{"TCP", ip4TCP + tcpSYN, ports(v4(unix.IPPROTO_TCP, 60), 50000, 5432, SYN)},
		{"options", ip4Options + udp, ports(v4(unix.IPPROTO_UDP, 64), 54321, 53, 0)},
		{"a later fragment has no ports", ip4Fragment + udp, v4(unix.IPPROTO_UDP, 60)},
		{"ICMP", ip4ICMP + echo, icmp(v4(unix.IPPROTO_ICMP, 84), 8, 0)},
		{"what has no ports", ip4OSPF + tcpSYN, v4(89, 60)},
		{"a header that is shorter than a header", ip4Short + tcpSYN, v4(unix.IPPROTO_TCP, 60)},
		{"ends in the ports", ip4TCP + "c350 15", v4(unix.IPPROTO_TCP, 60)},
		{"ends before the flags", ip4TCP + "c350 1538 00000001", ports(v4(unix.IPPROTO_TCP, 60), 50000, 5432, 0)},
		{"ends in the options", ip4Options[:len(ip4Options)-6], v4(unix.IPPROTO_UDP, 64)},
		{"ends in ICMP", ip4ICMP + "08", v4(unix.IPPROTO_ICMP, 84)},
		{"ends in the header", ip4TCP[:len(ip4TCP)-4], Packet{}},
		{"IPv6", ip6With("06") + tcpSYN, ports(v6(unix.IPPROTO_TCP), 50000, 5432, SYN)},
		{"SCTP", ip6With("84") + udp, ports(v6(unix.IPPROTO_SCTP), 54321, 53, 0)},
		{"ICMPv6", ip6With("3a") + "80 00 0000", icmp(v6(unix.IPPROTO_ICMPV6), 128, 0)},
		{"extensions", ip6With("00") + "3c 01 0000 00000000 0000000000000000" + "2b 00 0000 00000000" + "33 00 0000 00000000" + "11 01 0000 00000000 00000000" + udp,
			ports(v6(unix.IPPROTO_UDP), 54321, 53, 0)},
		{"the first fragment", ip6With("2c") + "11 00 0001 00000009" + udp, ports(v6(unix.IPPROTO_UDP), 54321, 53, 0)},
		{"a later one", ip6With("2c") + "11 00 0b51 00000009" + udp, v6(unix.IPPROTO_UDP)},
		{"ends in an extension", ip6With("00") + "11 00 0000", v6(unix.IPPROTO_HOPOPTS)},
		{"an extension longer than the packet", ip6With("3c") + "06 ff 0000 00000000" + tcpSYN, v6(unix.IPPROTO_TCP)},
		{"ends in the header of IPv6", ip6With("06")[:60], Packet{}},
		{"another version", "50" + tcpSYN, Packet{}},
		{"nothing", "", Packet{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p Packet
			p.decode(fromHex(t, tt.packet))
			if p != tt.want {
				t.Errorf("it is %+v, want %+v", p, tt.want)
			}
		})
	}
}

// FuzzDecode takes any bytes.
func FuzzDecode(f *testing.F) {
	for _, packet := range []string{
		ip4TCP + tcpSYN, ip4Options + udp, ip4ICMP + echo, ip4Short,
		ip6With("06") + tcpSYN, ip6With("00") + "3c 00 0000 00000000" + "2c 00 0000 00000000" + "11 00 0001 00000009" + udp,
	} {
		f.Add(fromHex(f, packet))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		before := slices.Clone(packet)
		var p Packet
		p.decode(packet)
		if !slices.Equal(before, packet) {
			t.Error("the bytes were changed")
		}
		if p.Source.IsValid() != p.Destination.IsValid() || p.Source.Is4() != p.Destination.Is4() {
			t.Errorf("addresses of two kinds: %+v", p)
		}
		if !p.Source.IsValid() && p != (Packet{}) {
			t.Errorf("without addresses: %+v", p)
		}
		if p.HasICMP && p.SourcePort+p.DestinationPort > 0 {
			t.Errorf("ICMP with ports: %+v", p)
		}
	})
}
