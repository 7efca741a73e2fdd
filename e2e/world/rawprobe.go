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
	ICMP   policy.Protocol = 1
	GRE    policy.Protocol = 47
	ICMPv6 policy.Protocol = 58
	// Nameless is one that is set aside for experiments (RFC 3692).
	Nameless policy.Protocol = 253
)

// A probe of a protocol without a server in the kernel is a header of 8 bytes,
// the token in binary, and a byte that tells question from answer. The header
// is zero, which GRE takes for its oldest version without options.
const (
	rawHeaderLen = 8
	rawLen       = rawHeaderLen + tokenLen/2 + 1
	question     = '?'
	answer       = '!'
)

func rawPacket(token []byte, kind byte) []byte {
	b := make([]byte, rawHeaderLen, rawLen)
	return append(append(b, token...), kind)
}

// rawSocket opens the socket of a probe, which reads until ctx ends.
func (p Probe) rawSocket(ctx context.Context) (*net.IPConn, error) {
	src := p.Src
	if !src.IsValid() {
		src = map[bool]netip.Addr{true: netip.IPv4Unspecified(), false: netip.IPv6Unspecified()}[p.To.Addr().Is4()]
	}
	c, err := p.From.ListenRaw(p.Protocol, src)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (p Probe) sendRaw(ctx context.Context, token string) error {
	id, err := hex.DecodeString(token)
	if err != nil {
		return err
	}
	c, err := p.rawSocket(ctx)
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
		out, last = rawPacket(id, question), []byte{answer}
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
	m := icmp.Message{Type: request, Body: &icmp.Echo{ID: int(binary.BigEndian.Uint16(token[tokenLen/4:])), Seq: 1, Data: token}}
	// Without a pseudo header the kernel fills in the checksum of ICMPv6.
	return m.Marshal(nil)
}

func (n *Namespace) answerRaw(c *net.IPConn) {
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
		_, _ = c.WriteToIP(rawPacket(token, answer), from) // a lost answer shows at the one who waits for it
	}
}
