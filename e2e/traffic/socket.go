package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Place is a network namespace.
type Place interface {
	// Do calls f on a thread that is in the namespace.
	Do(f func() error) error
}

// patience is how long connections and the last answers may take, and how much
// longer than asked for a measurement may last.
const patience = 5 * time.Second

// listenTCP listens on a port of the kernel's choice.
func listenTCP(ctx context.Context, at Place, addr netip.Addr) (*net.TCPListener, error) {
	var l net.Listener
	err := at.Do(func() (err error) {
		var c net.ListenConfig
		c.SetMultipathTCP(false)
		l, err = c.Listen(ctx, "tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l.(*net.TCPListener), nil
}

// dialTCP connects. congestion is the algorithm of what is sent; empty leaves it
// to the kernel.
func dialTCP(ctx context.Context, from Place, to netip.AddrPort, congestion string) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: patience}
	if congestion != "" {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			return control(c, func(fd int) error {
				return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
			})
		}
	}
	var c net.Conn
	err := from.Do(func() (err error) {
		c, err = d.DialContext(ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	return c.(*net.TCPConn), nil
}

// pairTCP makes a connection and returns its two ends.
func pairTCP(ctx context.Context, from, to Place, addr netip.Addr, congestion string) (out, in *net.TCPConn, err error) {
	l, err := listenTCP(ctx, to, addr)
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if out, err = dialTCP(ctx, from, l.Addr().(*net.TCPAddr).AddrPort(), congestion); err != nil {
		return nil, nil, err
	}
	if err = l.SetDeadline(time.Now().Add(patience)); err == nil {
		in, err = l.AcceptTCP()
	}
	if err != nil {
		reset(out)
		return nil, nil, fmt.Errorf("accept on %s: %w", addr, err)
	}
	return out, in, nil
}

// reset closes a connection without sending what waits to be sent.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// pairUDP makes two sockets, the first of which is connected to the second. The
// latter has room for that many bytes.
func pairUDP(from, to Place, addr netip.Addr, room int) (out, in *net.UDPConn, err error) {
	err = to.Do(func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	err = from.Do(func() (err error) {
		out, err = net.DialUDP("udp", nil, in.LocalAddr().(*net.UDPAddr))
		return err
	})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connect to %s: %w", in.LocalAddr(), err), in.Close())
	}
	err = errors.Join(
		option(out, unix.SO_TIMESTAMPNS, 1), option(in, unix.SO_TIMESTAMPNS, 1),
		option(in, unix.SO_RCVBUFFORCE, room))
	if err != nil {
		return nil, nil, errors.Join(err, in.Close(), out.Close())
	}
	return out, in, nil
}

// option sets a number at the level of the socket.
func option(c syscall.Conn, name, value int) error {
	raw, err := c.SyscallConn()
	if err == nil {
		err = control(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, name, value) })
	}
	if err != nil {
		return fmt.Errorf("set option %d of a socket: %w", name, err)
	}
	return nil
}

func control(c syscall.RawConn, f func(fd int) error) error {
	var inner error
	if err := c.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// stamp returns the kernel's time stamp among the control messages of what was
// received. The first packets may have none: then it is the time of now.
func stamp(oob []byte) time.Time {
	for len(oob) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		if header.Level == unix.SOL_SOCKET && header.Type == unix.SO_TIMESTAMPNS && len(data) >= 16 {
			return timespec(data)
		}
		oob = rest
	}
	return time.Now()
}
