package probe_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

// TestServerOverflows sends to a server that does not read, until its socket has
// no room any more.
func TestServerOverflows(t *testing.T) {
	var d net.Dialer
	c, server := openBy(t, d.DialContext)
	out := dialUDP(t, server.LocalAddr())
	sent := uint64(0)
	send := func() {
		if _, err := fmt.Fprintf(out, "x %d\n", sent); err != nil {
			t.Fatal(err)
		}
		sent++
	}
	send()
	if _, err := out.Read(make([]byte, 64)); err != nil { // now it serves
		t.Fatal(err)
	}
	release := hold(t, server, send)
	if got, least := room(t, server), room(t, out); got <= least {
		t.Errorf("the server's socket has room for %d bytes, any other one for %d", got, least)
	}
	if n, err := c.Overflowed(t.Context()); n != 0 || err != nil {
		t.Fatalf("%d overflowed, %v", n, err)
	}
	shrink(t, server)
	for range 100 {
		send()
	}
	release()
	var arrived, missing uint64
	for began := time.Now(); arrived+missing != sent && time.Since(began) < 5*time.Second; time.Sleep(time.Millisecond) {
		arrivals, err := c.Arrivals(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		arrived = arrivals["x"].Count
		if missing, err = c.Overflowed(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if arrived+missing != sent || missing == 0 {
		t.Errorf("%d sent, %d arrived, %d overflowed", sent, arrived, missing)
	}
	server.Close()
	if n, err := c.Overflowed(t.Context()); err == nil {
		t.Errorf("%d overflowed at a socket that is closed", n)
	}
}

// TestFlowOverflows keeps a flow from reading its answers.
func TestFlowOverflows(t *testing.T) {
	opened := make(chan *net.UDPConn, 1)
	c, server := openBy(t, func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		if udp, ok := conn.(*net.UDPConn); ok {
			opened <- udp
		}
		return conn, err
	})
	f := probe.Flow{Token: "x", Kind: probe.UDP, To: server.LocalAddr().String(), Interval: time.Millisecond}
	if err := c.Start(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	socket := <-opened
	answers(t, c, "x", 1)
	release := hold(t, socket, func() {}) // the flow's own answers come
	if got, least := room(t, socket), room(t, dialUDP(t, server.LocalAddr())); got <= least {
		t.Errorf("the flow's socket has room for %d bytes, any other one for %d", got, least)
	}
	shrink(t, socket)
	time.Sleep(100 * time.Millisecond)
	p, err := c.Progress(t.Context(), "x")
	if err != nil || p.Overflowed == 0 {
		t.Errorf("in the middle: %+v, %v", p, err)
	}
	time.Sleep(50 * time.Millisecond)
	release()
	p, err = c.Stop(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if p.Overflowed == 0 || p.Lost != p.Overflowed+p.Late || p.Answered == 0 || len(p.Errors) > 0 {
		t.Errorf("%+v", p)
	}
	if n, err := c.Overflowed(t.Context()); n != 0 || err != nil {
		t.Errorf("%d overflowed at the server, %v", n, err)
	}
}

// TestSocketsOverflow floods each of the sockets of a flow before it is read.
func TestSocketsOverflow(t *testing.T) {
	var missing atomic.Uint64
	c, _ := openBy(t, func(context.Context, string, string) (net.Conn, error) {
		server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return nil, err
		}
		conn, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
		if err != nil {
			server.Close()
			return nil, err
		}
		held := make(chan struct{})
		go func() {
			defer server.Close()
			flood(t, server, conn, held, &missing)
		}()
		<-held
		return conn, nil
	})
	if err := c.Start(t.Context(), probe.Flow{Token: "x", Kind: probe.NewUDP, To: "flooded", Timeout: 5 * time.Second}); err != nil {
		t.Fatal(err)
	}
	answers(t, c, "x", 2)
	p, err := c.Stop(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if p.Sent < 2 || p.Answered != p.Sent || p.Overflowed == 0 || p.Overflowed != missing.Load() || len(p.Errors) > 0 {
		t.Errorf("%d overflowed: %+v", missing.Load(), p)
	}
}

// flood takes a request of a client, sends a hundred datagrams to its socket, and
// reads what that had room for, before the client itself may read: its answer.
// What there was no room for is added to missing.
func flood(t *testing.T, server, client *net.UDPConn, held chan<- struct{}, missing *atomic.Uint64) {
	raw, err := client.SyscallConn()
	if err != nil {
		t.Error(err)
	}
	err = raw.Read(func(fd uintptr) bool {
		close(held)
		buf := make([]byte, 512)
		n, from, err := server.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Error(err)
			return true
		}
		shrink(t, client)
		left := uint64(0)
		for range 100 {
			if _, err := server.WriteToUDPAddrPort([]byte("flood"), from); err != nil {
				t.Error(err)
			}
			left++
		}
		for readable(fd) {
			if _, _, err := unix.Recvfrom(int(fd), make([]byte, 16), unix.MSG_DONTWAIT); err != nil {
				t.Error(err)
			}
			left--
		}
		missing.Add(left)
		answer := fmt.Sprintf("%s server %s\n", strings.TrimSpace(string(buf[:n])), from.Addr())
		if _, err := server.WriteToUDPAddrPort([]byte(answer), from); err != nil {
			t.Error(err)
		}
		return true
	})
	if err != nil {
		t.Error(err)
	}
}

// readable tells whether a datagram is there, or comes soon.
func readable(fd uintptr) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

// answers waits until a flow has been answered so often.
func answers(t *testing.T, c *probe.Client, token string, number uint64) {
	t.Helper()
	for began := time.Now(); time.Since(began) < 5*time.Second; time.Sleep(time.Millisecond) {
		p, err := c.Progress(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		if p.Answered >= number {
			return
		}
	}
	t.Fatal("no answers to ", token)
}

// hold keeps others from reading a socket until the function that it returns is
// called. Who reads already goes on until the next datagram: more may send one.
func hold(t *testing.T, c *net.UDPConn, more func()) (release func()) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	held, released, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		// Only one at a time reads a socket.
		done <- raw.Read(func(uintptr) bool {
			close(held)
			<-released
			return true
		})
	}()
	for {
		more()
		select {
		case <-held:
			return func() {
				close(released)
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		case <-time.After(time.Millisecond):
		}
	}
}

// shrink leaves a socket room for a few datagrams.
func shrink(t *testing.T, c *net.UDPConn) {
	t.Helper()
	if err := c.SetReadBuffer(1); err != nil {
		t.Error(err)
	}
}

// room is the size of a socket's buffer.
func room(t *testing.T, c *net.UDPConn) (size int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		size, inner = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
	})
	if err := errors.Join(err, inner); err != nil {
		t.Fatal(err)
	}
	return size
}

func dialUDP(t *testing.T, to net.Addr) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, to.(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
