package world

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"net"
)

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

func (p Probe) sendSCTP(ctx context.Context, token string) error {
	id, err := hex.DecodeString(token)
	if err != nil {
		return err
	}
	tag := uint32(id[4])<<24 | uint32(id[5])<<16 | uint32(id[6])<<8 | uint32(id[7])
	c, err := p.rawSocket(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	// The tag spreads probes over source ports, so that each is a flow of its own.
	out := sctpPacket{src: uint16(tag)%28000 + 32768, dst: p.To.Port(), chunk: sctpInit, tag: tag}
	if _, err := c.WriteToIP(out.marshal(), &net.IPAddr{IP: p.To.Addr().AsSlice()}); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	for {
		size, _, err := c.ReadFromIP(buf)
		if err != nil {
			return err
		}
		if in, ok := parseSCTP(buf[:size]); ok && in.chunk == sctpInitAck && in.cookie == tag {
			return nil
		}
	}
}
