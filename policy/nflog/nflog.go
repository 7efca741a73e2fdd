// Package nflog receives what nftables' log statement tells of packets: those that
// `log group` sends, with the prefix of the rule and the first bytes of each.
//
// The kernel gathers messages for a moment, and drops them when nobody has read those
// before. That is no error here: what was lost is counted by the numbers that the
// messages bear (Options.Lost), and the reading goes on.
package nflog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/florianl/go-nflog/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// DefaultBuffer is the size of the socket's buffer: some thousand messages.
	DefaultBuffer = 1 << 20
	// DefaultRate is how many packets are read in a second.
	DefaultRate = 2000
)

const (
	// copied is how much of each packet is asked for, in bytes: enough for the longest
	// header of IPv4, or some of IPv6, and the ports. The rule may say less.
	copied = 128
	// flushAt and flushAfter are how many messages the kernel gathers, and for how many
	// hundredths of a second at most.
	flushAt    = 16
	flushAfter = 20
)

// TCPFlags are the flags of a TCP header, as they are there.
type TCPFlags uint8

// The flags that tell what a packet is to its connection.
const (
	FIN TCPFlags = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// Packet is what is known of a packet. Parts that are not are zero.
type Packet struct {
	// Time is when the kernel saw it, or when that was read.
	Time time.Time
	// Prefix is what the rule says.
	Prefix string
	// Source and Destination are those of the packet's own header, where the hook is:
	// after DNAT and before SNAT in forward.
	Source, Destination netip.Addr
	// Protocol is a number of IP's. For IPv6 it is that after all extension headers, as
	// far as they can be followed.
	Protocol uint8
	// SourcePort and DestinationPort are those of TCP, UDP and SCTP; later fragments
	// have none.
	SourcePort, DestinationPort uint16
	TCPFlags                    TCPFlags
	// ICMPType and ICMPCode are known if HasICMP is true.
	ICMPType, ICMPCode uint8
	HasICMP            bool
	// Length is that of the whole packet in bytes, by its header.
	Length int
	// Interface is where it came in: the port, if that is one of a bridge. Empty if it
	// was gone before it could be asked for.
	Interface string
}

// Options say how a Reader is made.
type Options struct {
	// Group is what to listen to. One program at a time can.
	Group uint16
	// NetNS is a file descriptor of the network namespace, or 0 for that of the calling
	// thread.
	NetNS int
	// Take is given each packet, one after the other, by a goroutine of the Reader's own.
	// While it is busy, nothing is read.
	Take func(Packet)
	// Lost, unless it is nil, is told by the same goroutine how many packets were missed,
	// as soon as a later one was read.
	Lost func(n uint32)
	// Buffer is the size of the socket's buffer in bytes, as the kernel counts what it
	// spends on messages; 0 means DefaultBuffer.
	Buffer int
	// Rate is how many packets are read in a second at most; 0 means DefaultRate. The
	// kernel drops the rest, which costs it little: whoever can provoke messages shall
	// not get a processor with it.
	Rate int
}

// A Reader receives packets from when it is opened until it is closed. Its methods may
// be used by several goroutines at once.
type Reader struct {
	take   func(Packet)
	missed func(n uint32)
	socket *nflog.Nflog
	stop   context.CancelFunc
	// done is closed when nothing is read any more; err is why, and nil after Close.
	done chan struct{}
	err  error

	// What follows belongs to the goroutine that reads.
	numbered bool
	next     uint32 // the number of the next message
	names    names
	brake    brake
}

// Open begins to listen. It needs CAP_NET_ADMIN. The error wraps the system call's as
// far as the library does.
func Open(o Options) (*Reader, error) {
	o.Buffer, o.Rate = cmp.Or(o.Buffer, DefaultBuffer), cmp.Or(o.Rate, DefaultRate)
	r, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("listen to group %d of nflog, as one program at a time can: %w", o.Group, err)
	}
	return r, nil
}

func open(o Options) (*Reader, error) {
	socket, err := nflog.Open(&nflog.Config{
		NetNS: o.NetNS, Group: o.Group, Flags: nflog.FlagSeq, Copymode: nflog.CopyPacket, Bufsize: copied, QThresh: flushAt, Timeout: flushAfter,
	})
	if err != nil {
		return nil, err
	}
	r := &Reader{
		take: o.Take, missed: o.Lost, socket: socket, done: make(chan struct{}),
		names: newNames(socket.Con), brake: brake{limit: o.Rate},
	}
	if err := socket.Con.SetReadBuffer(o.Buffer); err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	if err := socket.RegisterWithErrorFunc(ctx, r.receive, r.fail); err != nil {
		stop()
		return nil, errors.Join(err, socket.Close())
	}
	return r, nil
}

// Done is closed when nothing is read any more: after Close, or when the socket failed,
// which Close then tells.
func (r *Reader) Done() <-chan struct{} { return r.done }

// Close ends the reading and returns why it had ended before, if it had. Take is not
// called any more after it. It must be called once.
func (r *Reader) Close() error {
	// The library does not say when its goroutine ends. It is woken by a deadline, and
	// ends by what fail answers; only then may the rest go.
	err := r.socket.Con.SetReadDeadline(time.Unix(1, 0))
	<-r.done
	r.stop()
	return errors.Join(r.err, err, r.socket.Close())
}

// fail is told of errors of the socket. It returns 0 to go on.
func (r *Reader) fail(err error) int {
	if errors.Is(err, unix.ENOBUFS) {
		return 0 // messages were lost: the next one tells how many
	}
	var timeout interface{ Timeout() bool }
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		r.err = fmt.Errorf("read nflog: %w", err)
	}
	close(r.done)
	return 1
}

// receive takes in a message. It returns 0 to go on.
func (r *Reader) receive(a nflog.Attribute) int {
	if a.Seq != nil {
		if n := *a.Seq - r.next; n > 0 && r.numbered && r.missed != nil {
			r.missed(n)
		}
		r.numbered, r.next = true, *a.Seq+1
	}
	now := time.Now()
	r.take(r.packet(a, now))
	r.brake.hold(now)
	return 0
}

// packet makes a packet of a message.
func (r *Reader) packet(a nflog.Attribute, now time.Time) Packet {
	p := Packet{Time: now}
	if a.Timestamp != nil {
		p.Time = *a.Timestamp
	}
	if a.Prefix != nil {
		p.Prefix = *a.Prefix
	}
	if in := cmp.Or(a.PhysInDev, a.InDev); in != nil {
		p.Interface = r.names.of(*in, now)
	}
	if a.Payload != nil {
		p.decode(*a.Payload)
	}
	return p
}

// brake holds a loop up when it goes round more than limit times in a second.
type brake struct {
	limit int
	began time.Time
	n     int
}

// hold counts a round. It sleeps for the rest of the second, if there were enough in it.
func (b *brake) hold(now time.Time) {
	if now.Sub(b.began) >= time.Second {
		b.began, b.n = now, 0
	}
	if b.n++; b.n >= b.limit {
		time.Sleep(time.Until(b.began.Add(time.Second)))
	}
}

// names are the names of interfaces in the namespace of a socket, which are asked for
// once a minute at most: a flood comes in by few.
type names struct {
	socket *netlink.Conn
	known  map[uint32]name
}

type name struct {
	text  string
	until time.Time
}

// maxNames bounds how many names are remembered.
const maxNames = 4096

func newNames(socket *netlink.Conn) names { return names{socket, make(map[uint32]name)} }

// of returns the name of an interface, or "" if it has none any more.
func (n names) of(index uint32, now time.Time) string {
	if known, ok := n.known[index]; ok && now.Before(known.until) {
		return known.text
	}
	if len(n.known) >= maxNames {
		clear(n.known)
	}
	text := n.ask(index)
	n.known[index] = name{text, now.Add(time.Minute)}
	return text
}

// ask asks the kernel, which answers this by any socket.
func (n names) ask(index uint32) (text string) {
	request, err := unix.NewIfreq("")
	if err != nil {
		return ""
	}
	request.SetUint32(index)
	raw, err := n.socket.SyscallConn()
	if err != nil {
		return ""
	}
	_ = raw.Control(func(fd uintptr) { // if the socket is closed by now, nobody wants to know
		if unix.IoctlIfreq(int(fd), unix.SIOCGIFNAME, request) == nil {
			text = request.Name()
		}
	})
	return text
}
