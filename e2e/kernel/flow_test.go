package kernel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

// flow is a connection of which a test holds both ends.
type flow struct {
	name           string
	client, server *end
}

// end is one end of a flow; what arrives there is read at once.
type end struct {
	send func(line string) error
	// lines are what arrived.
	lines  chan string
	local  netip.AddrPort
	closer func()
}

const (
	// patience is how long something that must happen may take.
	patience = 10 * time.Second
	// impatience is how long something that must not happen is waited for,
	// after other packets have gone the same way.
	impatience = 200 * time.Millisecond
)

var serial atomic.Uint64

// passes tells whether a line from one end arrives at the other.
func passes(from, to *end, wait time.Duration) (bool, error) {
	line := fmt.Sprintf("line %d", serial.Add(1))
	if err := from.send(line); err != nil {
		return false, err
	}
	timeout := time.After(wait)
	for {
		select {
		case got := <-to.lines:
			if got == line {
				return true, nil
			}
		case <-timeout:
			return false, nil
		}
	}
}

func (f *flow) close() {
	f.client.closer()
	f.server.closer()
}

// open opens a connection to an address that leads to a port of the server.
func open(t *testing.T, name string, proto policy.Protocol, from *world.Namespace, to netip.AddrPort, server *world.Pod, at netip.AddrPort) *flow {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	f := &flow{name: fmt.Sprintf("%s, %s to %s", name, proto, to)}
	if proto == policy.TCP {
		f.openTCP(ctx, t, from, to, server, at)
	} else {
		f.openUDP(t, from, to, server, at)
	}
	t.Cleanup(f.close)
	for _, d := range []struct{ from, to *end }{{f.client, f.server}, {f.server, f.client}} {
		if ok, err := passes(d.from, d.to, patience); !ok {
			t.Fatalf("%s: does not pass at the start: %v", f.name, err)
		}
	}
	return f
}

func (f *flow) openTCP(ctx context.Context, t *testing.T, from *world.Namespace, to netip.AddrPort, server *world.Pod, at netip.AddrPort) {
	t.Helper()
	var l *net.TCPListener
	must(t, server.Do(func() (err error) { l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); return err }))
	defer l.Close()
	client, err := from.DialTCP(ctx, netip.Addr{}, to)
	if err != nil {
		t.Fatalf("%s: %v", f.name, err)
	}
	deadline, _ := ctx.Deadline()
	must(t, l.SetDeadline(deadline))
	accepted, err := l.AcceptTCP()
	must(t, err)
	f.client, f.server = tcpEnd(client), tcpEnd(accepted)
}

func tcpEnd(c *net.TCPConn) *end {
	e := &end{lines: make(chan string, 1000), local: c.LocalAddr().(*net.TCPAddr).AddrPort(), closer: func() {
		_ = c.SetLinger(0) // a reset: what was cut does not try again
		_ = c.Close()
	}}
	e.send = func(line string) error { _, err := fmt.Fprintln(c, line); return err }
	go func() {
		for lines := bufio.NewScanner(c); lines.Scan(); {
			e.lines <- lines.Text()
		}
	}()
	return e
}

func (f *flow) openUDP(t *testing.T, from *world.Namespace, to netip.AddrPort, server *world.Pod, at netip.AddrPort) {
	t.Helper()
	var s *net.UDPConn
	must(t, server.Do(func() (err error) { s, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); return err }))
	client, err := from.DialUDP(netip.Addr{}, to)
	must(t, err)
	var peer atomic.Pointer[netip.AddrPort]
	f.client, f.server = udpEnd(client, nil), udpEnd(s, &peer)
	f.client.send = func(line string) error { _, err := client.Write([]byte(line)); return err }
	f.server.send = func(line string) error { _, err := s.WriteToUDPAddrPort([]byte(line), *peer.Load()); return err }
}

func udpEnd(c *net.UDPConn, peer *atomic.Pointer[netip.AddrPort]) *end {
	e := &end{lines: make(chan string, 1000), closer: func() { _ = c.Close() }}
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			if err != nil {
				continue
			}
			if peer != nil {
				peer.Store(&from)
			}
			e.lines <- strings.TrimSpace(string(buf[:n]))
		}
	}()
	return e
}

// live checks that flows pass in both directions, or in none.
func live(t *testing.T, when string, want bool, flows ...*flow) {
	t.Helper()
	wait := patience
	if !want {
		wait = impatience
	}
	type result struct {
		what string
		ok   bool
		err  error
	}
	results := make(chan result)
	for _, f := range flows {
		for what, d := range map[string][2]*end{"from the client": {f.client, f.server}, "from the server": {f.server, f.client}} {
			go func() {
				ok, err := passes(d[0], d[1], wait)
				results <- result{f.name + ": data " + what, ok, err}
			}()
		}
	}
	for range 2 * len(flows) {
		if r := <-results; r.ok != want {
			t.Errorf("%s: %s passes: %v, want %v (%v)", when, r.what, r.ok, want, r.err)
		}
	}
}
