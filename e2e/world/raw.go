package world

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/selvage-net/selvage/policy"
)

// ListenRaw opens a raw IP socket bound to an address of the namespace. Reading
// gives the payload of IP, without the IP header.
func (n *Namespace) ListenRaw(proto policy.Protocol, addr netip.Addr) (*net.IPConn, error) {
	network := fmt.Sprintf("ip4:%d", proto)
	if addr.Is6() {
		network = fmt.Sprintf("ip6:%d", proto)
	}
	var c *net.IPConn
	err := n.Do(func() (err error) {
		c, err = net.ListenIP(network, &net.IPAddr{IP: addr.AsSlice()})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("raw socket %s on %s in %s: %w", network, addr, n.ID, err)
	}
	return c, nil
}

// TCP flags.
const (
	FlagFIN uint8 = 1 << iota
	FlagSYN
	FlagRST
	FlagPSH
	FlagACK
)

// Segment is a TCP segment to be sent through a raw socket.
type Segment struct {
	Src, Dst netip.AddrPort
	Seq, Ack uint32
	Flags    uint8
	Window   uint16
	Payload  []byte
}

// Marshal writes the segment with its checksum (RFC 9293, 3.1).
func (s Segment) Marshal() []byte {
	b := make([]byte, 20, 20+len(s.Payload))
	binary.BigEndian.PutUint16(b[0:], s.Src.Port())
	binary.BigEndian.PutUint16(b[2:], s.Dst.Port())
	binary.BigEndian.PutUint32(b[4:], s.Seq)
	binary.BigEndian.PutUint32(b[8:], s.Ack)
	b[12], b[13] = 5<<4, s.Flags
	binary.BigEndian.PutUint16(b[14:], s.Window)
	b = append(b, s.Payload...)
	binary.BigEndian.PutUint16(b[16:], checksum(s.Src.Addr(), s.Dst.Addr(), policy.TCP, b))
	return b
}

// checksum is the Internet checksum over the pseudo header and the payload of
// IP (RFC 1071; RFC 8200, 8.1).
func checksum(src, dst netip.Addr, proto policy.Protocol, payload []byte) uint16 {
	pseudo := append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(payload)))
	pseudo = append(pseudo, 0, 0, 0, uint8(proto))
	var sum uint32
	for _, part := range [][]byte{pseudo, payload} {
		for i := 0; i < len(part); i += 2 {
			word := uint32(part[i]) << 8
			if i+1 < len(part) {
				word |= uint32(part[i+1])
			}
			sum += word
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
