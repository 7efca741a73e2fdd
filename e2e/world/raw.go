package world

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
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

// SCTP chunk types (RFC 9260, 3.2).
const (
	sctpInit    = 1
	sctpInitAck = 2
)

// sctpPacket is a packet with one INIT or INIT ACK chunk.
type sctpPacket struct {
	src, dst uint16
	vtag     uint32
	chunk    uint8
	// tag is the initiate tag; a probe is known by it.
	tag uint32
	// cookie is what an INIT ACK gives back: the initiate tag of the INIT.
	cookie uint32
}

const (
	sctpHeaderLen = 12
	sctpInitLen   = 20
	sctpCookieLen = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// marshal writes the packet with its CRC32c (RFC 9260, 6.8), without which
// conntrack calls it invalid.
func (p sctpPacket) marshal() []byte {
	b := make([]byte, sctpHeaderLen+sctpInitLen, sctpHeaderLen+sctpInitLen+sctpCookieLen)
	binary.BigEndian.PutUint16(b[0:], p.src)
	binary.BigEndian.PutUint16(b[2:], p.dst)
	binary.BigEndian.PutUint32(b[4:], p.vtag)
	chunk := b[sctpHeaderLen:]
	chunk[0] = p.chunk
	binary.BigEndian.PutUint32(chunk[4:], p.tag)
	binary.BigEndian.PutUint32(chunk[8:], 65536) // receiver window
	binary.BigEndian.PutUint16(chunk[12:], 1)    // outbound streams
	binary.BigEndian.PutUint16(chunk[14:], 1)    // inbound streams
	binary.BigEndian.PutUint32(chunk[16:], p.tag)
	if p.chunk == sctpInitAck {
		b = append(b, 0, 7, 0, sctpCookieLen) // state cookie
		b = binary.BigEndian.AppendUint32(b, p.cookie)
	}
	binary.BigEndian.PutUint16(b[sctpHeaderLen+2:], uint16(len(b)-sctpHeaderLen))
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

func parseSCTP(b []byte) (p sctpPacket, ok bool) {
	if len(b) < sctpHeaderLen+sctpInitLen {
		return p, false
	}
	p.src, p.dst = binary.BigEndian.Uint16(b[0:]), binary.BigEndian.Uint16(b[2:])
	p.vtag, p.chunk = binary.BigEndian.Uint32(b[4:]), b[sctpHeaderLen]
	p.tag = binary.BigEndian.Uint32(b[sctpHeaderLen+4:])
	if p.chunk == sctpInitAck {
		if len(b) < sctpHeaderLen+sctpInitLen+sctpCookieLen {
			return p, false
		}
		p.cookie = binary.BigEndian.Uint32(b[sctpHeaderLen+sctpInitLen+4:])
	}
	return p, p.chunk == sctpInit || p.chunk == sctpInitAck
}

func (n *Namespace) answerSCTP(c *net.IPConn) {
	buf := make([]byte, 2048)
	for {
		size, from, err := c.ReadFromIP(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		p, ok := parseSCTP(buf[:size])
		if !ok || p.chunk != sctpInit {
			continue
		}
		n.arrived.add(sctpToken(p.tag))
		ack := sctpPacket{src: p.dst, dst: p.src, vtag: p.tag, chunk: sctpInitAck, tag: ^p.tag, cookie: p.tag}
		_, _ = c.WriteToIP(ack.marshal(), from) // a lost answer shows at the one who waits for it
	}
}

func sctpToken(tag uint32) string {
	return hex.EncodeToString(binary.BigEndian.AppendUint32(make([]byte, 4), tag))
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
