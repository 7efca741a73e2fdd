package world

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/selvage-net/selvage/policy"
)

// Port is a port of a protocol.
type Port struct {
	Protocol policy.Protocol
	Number   uint16
}

// tokenLen is the length of what identifies a probe, in bytes of text.
const tokenLen = 16

// arrivals are the probes that reached a server, whether or not the answer
// found its way back.
type arrivals struct {
	mu     sync.Mutex
	tokens map[string]bool
}

func (a *arrivals) add(token string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tokens == nil {
		a.tokens = map[string]bool{}
	}
	a.tokens[token] = true
}

// take tells whether the probe arrived, and forgets it.
func (a *arrivals) take(token string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	ok := a.tokens[token]
	delete(a.tokens, token)
	return ok
}

type listenerKey struct {
	addr netip.Addr
	port Port
}

// Serve answers on the pod's addresses until the pod is closed or given other
// addresses. See Namespace.Serve.
func (p *Pod) Serve(ports ...Port) error { return p.Namespace.Serve(p.addrs, ports...) }

// Serve answers on the node's addresses. See Namespace.Serve.
func (n *Node) Serve(ports ...Port) error {
	return n.Namespace.Serve(append(n.Gateways(), n.Addrs...), ports...)
}

// Serve answers on the given addresses and ports: a TCP server gives back every
// line, a UDP server every datagram, each with the namespace's ID and the source
// that it saw after it; an SCTP server answers an INIT for any port with an INIT
// ACK, through a raw socket, as the kernel may have no SCTP of its own; so does a
// server of any other protocol with a probe of its own kind. Ports that are served
// already are left alone.
func (n *Namespace) Serve(addrs []netip.Addr, ports ...Port) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range addrs {
		for _, p := range ports {
			if p.Protocol != policy.TCP && p.Protocol != policy.UDP {
				p.Number = 0
			}
			key := listenerKey{a, p}
			if n.listeners[key] != nil {
				continue
			}
			c, err := n.listen(key)
			if err != nil {
				return fmt.Errorf("serve %s port %d of %s in %s: %w", p.Protocol, p.Number, a, n.ID, err)
			}
			n.listeners[key] = c
		}
	}
	return nil
}

// StopServing closes all servers of the namespace. Connections that were
// accepted live on until the client ends them.
func (n *Namespace) StopServing() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for key, c := range n.listeners {
		_ = c.Close() // nothing was buffered
		delete(n.listeners, key)
	}
}

func (n *Namespace) listen(k listenerKey) (io.Closer, error) {
	at := net.TCPAddrFromAddrPort(netip.AddrPortFrom(k.addr, k.port.Number))
	switch k.port.Protocol {
	case policy.TCP:
		var l *net.TCPListener
		err := n.Do(func() (err error) { l, err = net.ListenTCP("tcp", at); return err })
		if err == nil {
			go n.acceptTCP(l)
		}
		return l, err
	case policy.UDP:
		var c *net.UDPConn
		err := n.Do(func() (err error) {
			c, err = net.ListenUDP("udp", &net.UDPAddr{IP: at.IP, Port: at.Port, Zone: at.Zone})
			return err
		})
		if err == nil {
			go n.echoUDP(c)
		}
		return c, err
	case policy.SCTP:
		c, err := n.ListenRaw(k.port.Protocol, k.addr)
		if err == nil {
			go n.answerSCTP(c)
		}
		return c, err
	}
	c, err := n.ListenRaw(k.port.Protocol, k.addr)
	if err == nil {
		go n.answerRaw(c)
	}
	return c, err
}

func (n *Namespace) acceptTCP(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		go n.echoTCP(c)
	}
}

func (n *Namespace) echoTCP(c *net.TCPConn) {
	defer c.Close()
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	lines := bufio.NewReader(c)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		n.note([]byte(line))
		if _, err := c.Write(n.answerTo([]byte(line), from)); err != nil {
			return
		}
	}
}

func (n *Namespace) echoUDP(c *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		size, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error for an earlier answer
		}
		n.note(buf[:size])
		// A lost answer shows at the one who waits for it.
		_, _ = c.WriteToUDPAddrPort(n.answerTo(buf[:size], from), from)
	}
}

// answerTo is what goes back for a line or datagram; see Exchange.
func (n *Namespace) answerTo(question []byte, from netip.AddrPort) []byte {
	from = netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
	return fmt.Appendf(nil, "%s %s %s\n", bytes.TrimSpace(question), n.ID, from)
}

func (n *Namespace) note(data []byte) {
	if len(data) >= tokenLen {
		n.arrived.add(string(data[:tokenLen]))
	}
}
