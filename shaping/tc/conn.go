package tc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	gotc "github.com/florianl/go-tc"
	"github.com/florianl/go-tc/core"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/shaping"
)

// timeout is how long an answer is waited for. The kernel answers before it returns
// from the call that asks.
const timeout = 10 * time.Second

// Conn reads and changes the traffic control of one network namespace. It is for one
// goroutine at a time.
type Conn struct {
	netlink *netlink.Conn
	tc      *gotc.Tc
}

// setClock tells go-tc how long a tick is. It has a global for that, and wants to
// read from /proc what has been a constant of the kernel for long (PSCHED_SHIFT in
// include/net/pkt_sched.h).
var setClock = sync.OnceFunc(func() { core.SetClockParameters(1, 1000.0/64) })

// Open connects to the caller's network namespace.
func Open() (*Conn, error) { return open(0) }

// OpenAt connects to the network namespace of an interface. One that is not the
// caller's takes CAP_SYS_ADMIN, or else the error is ErrPermission; it lives at least
// as long as the connection, which therefore should not last.
func OpenAt(at shaping.Interface) (*Conn, error) {
	if at.NetNS == "" {
		return Open()
	}
	f, err := os.Open(at.NetNS)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	defer f.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", at.NetNS, err)
	}
	if stat.Ino != at.NetNSInode {
		return nil, fmt.Errorf("%w: %s leads to another network namespace by now", ErrGone, at.NetNS)
	}
	return open(int(f.Fd()))
}

// open connects to the network namespace of a descriptor, or the caller's if it is 0.
func open(fd int) (*Conn, error) {
	setClock()
	n, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: fd})
	if err != nil {
		return nil, wrap("open rtnetlink", err)
	}
	t, err := gotc.Open(&gotc.Config{NetNS: fd})
	if err != nil {
		return nil, errors.Join(wrap("open rtnetlink", err), n.Close())
	}
	return &Conn{netlink: n, tc: t}, nil
}

// Close closes the connection.
func (c *Conn) Close() error { return errors.Join(c.netlink.Close(), c.tc.Close()) }

// ErrPermission says that the kernel refused for want of a capability.
var ErrPermission = errors.New("missing capability")

// wrap says what was done. The error remains what it is for errors.Is.
func wrap(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: %w: %w", what, ErrPermission, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// errInterrupted says that something changed during a dump, which may therefore lack
// what was there all along.
var errInterrupted = errors.New("the listing was interrupted by changes")

// dumps is how often an interrupted dump is taken anew.
const dumps = 10

// dump asks for a listing until it is not interrupted, some times at most.
func (c *Conn) dump(kind uint16, data []byte) ([]netlink.Message, error) {
	for range dumps {
		answers, err := c.ask(kind, netlink.Dump, data)
		if !errors.Is(err, errInterrupted) {
			return answers, err
		}
	}
	return nil, errInterrupted
}

// ask sends a request that is answered by any number of messages, and returns these.
// An acknowledgement is asked for as well: for the queueing disciplines that are
// built in, the kernel answers nothing at all.
func (c *Conn) ask(kind uint16, flags netlink.HeaderFlags, data []byte) ([]netlink.Message, error) {
	dump := flags&netlink.Dump == netlink.Dump
	if !dump {
		flags |= netlink.Acknowledge
	}
	if err := c.netlink.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	request := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags}, Data: data}
	sent, err := c.netlink.Send(request)
	if err != nil {
		return nil, err
	}
	var answers []netlink.Message
	for {
		received, err := c.netlink.Receive()
		if err != nil {
			return nil, err
		}
		for _, m := range received {
			if m.Header.Flags&netlink.DumpInterrupted != 0 {
				return nil, errInterrupted
			}
			switch {
			case m.Header.Sequence != sent.Header.Sequence: // of a request that was given up
			case m.Header.Type == netlink.Error:
				return answers, nil
			default:
				answers = append(answers, m)
			}
		}
		if dump { // Receive has read it to its end
			return answers, nil
		}
	}
}
