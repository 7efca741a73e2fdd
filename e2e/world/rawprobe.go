package world

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/selvage-net/selvage/policy"
)

// Protocols that no policy can name (IANA, protocol numbers).
const (
	ICMP    policy.Protocol = 1
	GRE     policy.Protocol = 47
	ICMPv6  policy.Protocol = 58
	UDPLite policy.Protocol = 136
	// Nameless is one that is set aside for experiments (RFC 3692).
	Nameless policy.Protocol = 253
)

// A probe of a protocol without a server in the kernel is a header of 8 bytes,
// the token in binary, and a byte that tells question from answer. The header
// is zero, which GRE takes for its oldest version without options, or that of
// UDP-Lite.
const (
	rawHeaderLen = 8
	rawLen       = rawHeaderLen + tokenLen/2 + 1
	question     = '?'
	answer       = '!'
)

func rawPacket(proto policy.Protocol, src, dst netip.AddrPort, token []byte, kind byte) []byte {
	b := make([]byte, rawHeaderLen, rawLen)
	b = append(append(b, token...), kind)
	if proto == UDPLite {
		binary.BigEndian.PutUint16(b[0:], src.Port())
		binary.BigEndian.PutUint16(b[2:], dst.Port())
		// A coverage of 0 is the whole packet (RFC 3828, 3.1).
		binary.BigEndian.PutUint16(b[6:], checksum(src.Addr(), dst.Addr(), proto, b))
	}
	return b
}

// rawSocket opens the socket of a probe, which reads until ctx ends, and says
// what its address is.
func (p Probe) rawSocket(ctx context.Context) (c *net.IPConn, src netip.Addr, err error) {
	src = p.Src
	if !src.IsValid() {
		// Checksums need the address that the kernel would take.
		udp, err := p.From.DialUDP(src, netip.AddrPortFrom(p.To.Addr(), 9))
		if err != nil {
			return nil, src, err
		}
		src = udp.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		if err := udp.Close(); err != nil {
			return nil, src, err
		}
	}
	if c, err = p.From.ListenRaw(p.Protocol, src); err != nil {
		return nil, src, err
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, src, errors.Join(err, c.Close())
	}
	return c, src, nil
}

func (p Probe) sendRaw(ctx context.Context, token string) error {
	id, err := hex.DecodeString(token)
	if err != nil {
		return err
	}
	c, src, err := p.rawSocket(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	// An answer differs from the question in its first byte, the type, or in its last.
	var out, last []byte
	switch p.Protocol {
	case ICMP:
		out, err = echo(ipv4.ICMPTypeEcho, id)
	case ICMPv6:
		out, err = echo(ipv6.ICMPTypeEchoRequest, id)
	default:
		from := netip.AddrPortFrom(src, binary.BigEndian.Uint16(id)|1<<15)
		out, last = rawPacket(p.Protocol, from, p.To, id, question), []byte{answer}
	}
	if err != nil {
		return err
	}
	if _, err := c.WriteToIP(out, &net.IPAddr{IP: p.To.Addr().AsSlice()}); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	for {
		size, _, err := c.ReadFromIP(buf)
		if err != nil {
			return err
		}
		if bytes.HasSuffix(buf[:size], append(id, last...)) && (last != nil || out[0] != buf[0]) {
			return nil
		}
	}
}

// echo makes an echo request that carries the token.
func echo(request icmp.Type, token []byte) ([]byte, error) {
	m := icmp.Message{Type: request, Body: &icmp.Echo{ID: int(binary.BigEndian.Uint16(token)), Seq: 1, Data: token}}
	// Without a pseudo header the kernel fills in the checksum of ICMPv6.
	return m.Marshal(nil)
}

func (n *Namespace) answerRaw(c *net.IPConn, proto policy.Protocol) {
	local := c.LocalAddr().(*net.IPAddr).IP
	buf := make([]byte, 2048)
	for {
		size, from, err := c.ReadFromIP(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || size != rawLen || buf[rawLen-1] != question {
			continue
		}
		token := buf[rawHeaderLen : rawLen-1]
		n.arrived.add(hex.EncodeToString(token))
		src, _ := netip.AddrFromSlice(local)
		dst, _ := netip.AddrFromSlice(from.IP)
		out := rawPacket(proto,
			netip.AddrPortFrom(src.Unmap(), binary.BigEndian.Uint16(buf[2:])),
			netip.AddrPortFrom(dst.Unmap(), binary.BigEndian.Uint16(buf[0:])), token, answer)
		_, _ = c.WriteToIP(out, from) // a lost answer shows at the one who waits for it
	}
}
