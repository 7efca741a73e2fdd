package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Server echoes lines and datagrams and remembers what came. It is safe for
// concurrent use.
type Server struct {
	// Name is told with every answer.
	Name string

	mu       sync.Mutex
	arrivals map[string]*Arrival
	sockets  []*net.UDPConn
}

// Arrivals returns what came so far, by token.
func (s *Server) Arrivals() map[string]Arrival {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]Arrival, len(s.arrivals))
	for token, a := range s.arrivals {
		seen := *a
		seen.From = maps.Clone(a.From)
		all[token] = seen
	}
	return all
}

// Overflowed returns how many datagrams the sockets of ServeUDP had no room for
// since they were opened. It fails once one of them is closed.
func (s *Server) Overflowed() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum uint64
	for _, c := range s.sockets {
		n, err := overflowed(c)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// note remembers a line or datagram and returns the answer to it.
func (s *Server) note(line string, from netip.Addr) string {
	line = strings.TrimSpace(line)
	token, _, _ := strings.Cut(line, " ")
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.arrivals[token]
	if a == nil {
		a = &Arrival{First: now, From: map[string]uint64{}}
		if s.arrivals == nil {
			s.arrivals = map[string]*Arrival{}
		}
		s.arrivals[token] = a
	}
	a.Count++
	a.Last = now
	a.From[from.String()]++
	return fmt.Sprintf("%s %s %s\n", line, s.Name, from)
}

// ServeTCP answers every line of every connection until ctx ends or the
// listener is closed. The caller keeps the listener.
func (s *Server) ServeTCP(ctx context.Context, l net.Listener) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of file descriptors: others will end
			continue
		}
		go s.echo(c)
	}
}

func (s *Server) echo(c net.Conn) {
	defer c.Close()
	from := addrOf(c.RemoteAddr())
	lines := bufio.NewReader(c)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		if _, err := c.Write([]byte(s.note(line, from))); err != nil {
			return
		}
	}
}

// ServeUDP answers every datagram until ctx ends or the socket is closed.
func (s *Server) ServeUDP(ctx context.Context, c *net.UDPConn) {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	widen(c)
	s.mu.Lock()
	s.sockets = append(s.sockets, c)
	s.mu.Unlock()
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error for an earlier answer
		}
		// A lost answer shows at the one who waits for it.
		_, _ = c.WriteToUDPAddrPort([]byte(s.note(string(buf[:n]), from.Addr().Unmap())), from)
	}
}

// addrOf is the IP address of a peer.
func addrOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
