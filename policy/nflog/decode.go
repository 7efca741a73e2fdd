package nflog

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Where things are in the headers that follow that of IP.
const (
	portsLen     = 4  // both ports, in TCP, UDP and SCTP alike
	tcpFlagsAt   = 13 // of TCP's header
	icmpLen      = 2  // type and code
	extensionLen = 8  // the shortest extension header of IPv6
)

// decode fills in what the first bytes of a packet tell. It may be any bytes: of a
// packet that ends early, or makes no sense, what is left is zero.
func (p *Packet) decode(b []byte) {
	if len(b) == 0 {
		return
	}
	switch b[0] >> 4 {
	case ipv4.Version:
		p.decodeIPv4(b)
	case ipv6.Version:
		p.decodeIPv6(b)
	}
}

func (p *Packet) decodeIPv4(b []byte) {
	if len(b) < ipv4.HeaderLen {
		return
	}
	// The parser wants the options, too, which may be missing: zeros do.
	var h ipv4.Header
	if h.Parse(append(b[:len(b):len(b)], make([]byte, 15*4)...)) != nil {
		return
	}
	p.Source, p.Destination = addr(h.Src).Unmap(), addr(h.Dst).Unmap()
	p.Length, p.Protocol = h.TotalLen, uint8(h.Protocol)
	if h.Len >= ipv4.HeaderLen && h.FragOff == 0 {
		p.decodeTransport(b[min(h.Len, len(b)):])
	}
}

func (p *Packet) decodeIPv6(b []byte) {
	h, err := ipv6.ParseHeader(b)
	if err != nil {
		return
	}
	p.Source, p.Destination = addr(h.Src), addr(h.Dst)
	p.Length, p.Protocol = ipv6.HeaderLen+h.PayloadLen, uint8(h.NextHeader)
	b = b[ipv6.HeaderLen:]
	for isExtension(p.Protocol) {
		if len(b) < extensionLen {
			return
		}
		size := extensionLen * (int(b[1]) + 1)
		switch p.Protocol {
		case unix.IPPROTO_FRAGMENT:
			size = extensionLen
			if binary.BigEndian.Uint16(b[2:])&^7 != 0 { // not the first one
				p.Protocol = b[0]
				return
			}
		case unix.IPPROTO_AH:
			size = 4 * (int(b[1]) + 2)
		}
		p.Protocol, b = b[0], b[min(size, len(b)):]
	}
	p.decodeTransport(b)
}

// isExtension tells whether a header of IPv6 is one that others follow.
func isExtension(header uint8) bool {
	switch header {
	case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_FRAGMENT, unix.IPPROTO_AH, unix.IPPROTO_DSTOPTS:
		return true
	}
	return false
}

// decodeTransport reads the header after that of IP, or as much as there is of it.
func (p *Packet) decodeTransport(b []byte) {
	switch p.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		if len(b) < portsLen {
			return
		}
		p.SourcePort, p.DestinationPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		if p.Protocol == unix.IPPROTO_TCP && len(b) > tcpFlagsAt {
			p.TCPFlags = TCPFlags(b[tcpFlagsAt])
		}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		if len(b) < icmpLen {
			return
		}
		p.ICMPType, p.ICMPCode, p.HasICMP = b[0], b[1], true
	}
}

// addr is an address of 16 bytes, as the parsers give those of both families.
func addr(ip []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a
}
