package bench

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// packet is the one packet of a flow of UDP, made by hand, but for what differs from
// one flow to the next.
type packet struct {
	bytes []byte
	// src and udp are where the source address and UDP's header begin.
	src, udp int
	// sum is that of all that UDP's checksum is made of but for the source's address
	// and port; 0 in IPv4, where the checksum may be left out.
	sum uint32
}

const payload = 32

// The lengths of headers.
const (
	ipv4Header = 20
	ipv6Header = 40
	udpHeader  = 8
)

// newPacket makes the packet to the flow's pod.
func newPacket(f Flow) packet {
	const length = udpHeader + payload
	if f.family() == policy.IPv4 {
		b := make([]byte, ipv4Header+length)
		b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		copy(b[16:], f.Pod.AsSlice())
		// The kernel fills in the header's checksum (raw(7)).
		return packet{bytes: withUDP(b, ipv4Header, f.Port), src: 12, udp: ipv4Header}
	}
	b := make([]byte, ipv6Header+length)
	b[0], b[6], b[7] = 0x60, unix.IPPROTO_UDP, 64
	binary.BigEndian.PutUint16(b[4:], length)
	copy(b[24:], f.Pod.AsSlice())
	p := packet{bytes: withUDP(b, ipv6Header, f.Port), src: 8, udp: ipv6Header}
	// The pseudo header (RFC 8200, 8.1): addresses, length and protocol.
	p.sum = sum(b[24:40]) + length + unix.IPPROTO_UDP + sum(b[ipv6Header:])
	return p
}

func withUDP(b []byte, at int, port uint16) []byte {
	binary.BigEndian.PutUint16(b[at+2:], port)
	binary.BigEndian.PutUint16(b[at+4:], udpHeader+payload)
	return b
}

// from returns the packet as it comes from an address and a port, until the next call.
func (p *packet) from(a netip.Addr, port uint16) []byte {
	copy(p.bytes[p.src:], a.AsSlice())
	binary.BigEndian.PutUint16(p.bytes[p.udp:], port)
	if p.sum != 0 {
		s := p.sum + sum(p.bytes[p.src:p.src+16]) + uint32(port)
		for s>>16 != 0 {
			s = s&0xffff + s>>16
		}
		if s == 0xffff {
			s = 0 // a checksum of 0 would be none
		}
		binary.BigEndian.PutUint16(p.bytes[p.udp+6:], ^uint16(s))
	}
	return p.bytes
}

// sum adds up 16-bit numbers.
func sum(b []byte) uint32 {
	var s uint32
	for ; len(b) > 0; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	return s
}

func domain(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}
