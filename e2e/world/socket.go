package world

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// DialTCP connects from inside the namespace; the zero src leaves the source
// address to the kernel. Unlike net.Dialer it holds no thread while it waits.
func (n *Namespace) DialTCP(ctx context.Context, src netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
	var fd int
	err := n.Do(func() (err error) {
		domain := unix.AF_INET
		if dst.Addr().Is6() {
			domain = unix.AF_INET6
		}
		fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("socket in %s: %w", n.ID, err)
	}
	if src.IsValid() {
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0))); err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("bind to %s in %s: %w", src, n.ID, err)
		}
	}
	// Connect before the poller knows the socket: an idle one polls as hung up.
	if err := unix.Connect(fd, sockaddr(dst)); err != nil && err != unix.EINPROGRESS {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("connect to %s from %s: %w", dst, n.ID, err)
	}
	f := os.NewFile(uintptr(fd), "tcp "+dst.String())
	defer f.Close()
	if err := connected(ctx, f); err != nil {
		return nil, fmt.Errorf("connect to %s from %s: %w", dst, n.ID, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("connect to %s from %s: %w", dst, n.ID, err)
	}
	return c.(*net.TCPConn), nil
}

// connected waits until a connect that is in progress has ended.
func connected(ctx context.Context, f *os.File) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := f.SetWriteDeadline(deadline); err != nil {
			return err
		}
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) bool {
		var pending int
		if pending, result = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); result != nil {
			return true
		}
		if pending != 0 {
			result = unix.Errno(pending)
			return true
		}
		_, err := unix.Getpeername(int(fd))
		return err == nil // ENOTCONN: woken too early
	})
	if err != nil {
		return err
	}
	return result
}

// DialUDP opens a connected UDP socket inside the namespace.
func (n *Namespace) DialUDP(src netip.Addr, dst netip.AddrPort) (*net.UDPConn, error) {
	var from *net.UDPAddr
	if src.IsValid() {
		from = &net.UDPAddr{IP: src.AsSlice()}
	}
	var c *net.UDPConn
	err := n.Do(func() (err error) {
		c, err = net.DialUDP("udp", from, net.UDPAddrFromAddrPort(dst))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("udp to %s from %s: %w", dst, n.ID, err)
	}
	return c, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	// A zone is the number of an interface: names are not looked up, because
	// every namespace has its own.
	zone, _ := strconv.ParseUint(a.Addr().Zone(), 10, 32)
	return &unix.SockaddrInet6{Port: int(a.Port()), ZoneId: uint32(zone), Addr: a.Addr().As16()}
}
