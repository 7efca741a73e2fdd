package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Load is a kind of traffic whose cost is measured.
type Load int

// The loads. One operation is always: send, and receive what was sent, by
// plain system calls of one thread, which runs both stacks and the node
// between them in the same go.
const (
	// UDPConnect is a flow of one packet, always from the same peer: a fresh
	// source port. Conntrack makes an entry, and all rules are walked.
	UDPConnect Load = iota
	// UDPConnectPeers is the same, but one peer after the other, in random
	// order: the look-up of the peer finds nothing in the processor's caches.
	UDPConnectPeers
	// UDPUnanswered is one packet of a flow that never got an answer: the entry
	// exists, but stays new, so that all rules are walked at every packet.
	// Nothing is a greater part of so cheap an operation than the rules are.
	UDPUnanswered
	// UDPEstablished is one packet of a flow that was answered once.
	UDPEstablished
	// TCPEstablished is a request and an answer of one byte.
	TCPEstablished
	// TCPConnect is connect, accept, a request and an answer, and a reset.
	TCPConnect
)

// Loads lists all loads.
var Loads = [...]Load{UDPConnect, UDPConnectPeers, UDPUnanswered, UDPEstablished, TCPEstablished, TCPConnect}

// String returns the name that the table uses.
func (l Load) String() string {
	return [...]string{"udp-connect", "udp-connect-peers", "udp-unanswered", "udp-established", "tcp-established", "tcp-connect"}[l]
}

// New tells whether the load is about new connections.
func (l Load) New() bool { return l != UDPEstablished && l != TCPEstablished }

// batch is how many operations are timed together: some 60 µs, short enough
// that most batches are not interrupted, long enough for the clock.
func (l Load) batch() int {
	if l == TCPConnect {
		return 4
	}
	return 32
}

// flows is how many conntrack entries an operation leaves behind.
func (l Load) flows() int {
	if l.raw() || l == TCPConnect {
		return 1
	}
	return 0
}

// raw tells whether the packets are made by hand.
func (l Load) raw() bool { return l == UDPConnect || l == UDPConnectPeers }

var errLost = errors.New("a packet that the rules allow did not arrive within a second")

// ends are the sockets of one Triple for one Load.
type ends struct {
	load       Load
	flow       Flow
	source     int // the client's socket; none for TCPConnect
	pod        int // the server's socket; listening for TCPConnect
	ns         *Namespace
	packet     packet
	buf        [256]byte
	port       uint16
	peer       int
	to         unix.Sockaddr
	connectors []int // sockets made in the source's namespace, one per connection
}

// open makes the sockets and, where the load needs it, the flow.
func (l Load) open(t *Triple) (*ends, error) {
	e := &ends{load: l, flow: t.Flow, ns: t.Source, source: -1, pod: -1, port: 1024}
	e.to = sockaddr(t.Flow.Pod, t.Flow.Port)
	if err := t.Pod.Do(e.openPod); err != nil {
		return nil, fmt.Errorf("open the pod's socket: %w", errors.Join(err, e.close()))
	}
	if err := t.Source.Do(e.openSource); err != nil {
		return nil, fmt.Errorf("open the source's socket: %w", errors.Join(err, e.close()))
	}
	if err := e.establish(); err != nil {
		return nil, fmt.Errorf("establish the flow: %w", errors.Join(err, e.close()))
	}
	return e, nil
}

func (e *ends) close() error {
	var errs []error
	for _, fd := range append([]int{e.source, e.pod}, e.connectors...) {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

func (e *ends) tcp() bool { return e.load == TCPEstablished || e.load == TCPConnect }

func (e *ends) openPod() (err error) {
	kind := unix.SOCK_DGRAM
	if e.tcp() {
		kind = unix.SOCK_STREAM
	}
	if e.pod, err = unix.Socket(domain(e.flow.Pod), kind|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if err := errors.Join(
		unix.SetsockoptInt(e.pod, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptTimeval(e.pod, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}),
		unix.Bind(e.pod, sockaddr(e.flow.Pod, e.flow.Port)),
	); err != nil {
		return err
	}
	if e.tcp() {
		return unix.Listen(e.pod, 1024)
	}
	return nil
}

func (e *ends) openSource() (err error) {
	switch e.load {
	case UDPConnect, UDPConnectPeers:
		e.packet = newPacket(e.flow)
		if e.source, err = unix.Socket(domain(e.flow.Pod), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err == nil {
			err = unix.Connect(e.source, e.to)
		}
		return err
	case TCPConnect:
		return nil
	case TCPEstablished:
		e.source, err = connector(e.flow.Peers[0])
	default:
		e.source, err = unix.Socket(domain(e.flow.Pod), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(
				unix.SetsockoptTimeval(e.source, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}),
				unix.Bind(e.source, sockaddr(e.flow.Peers[0], 0)))
		}
	}
	return err
}

// connector makes a TCP client that gives up quickly and ends with a reset: no
// TIME_WAIT keeps its port.
func connector(peer netip.Addr) (int, error) {
	fd, err := unix.Socket(domain(peer), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return fd, errors.Join(
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 1}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}),
		// The port is chosen at connect: bind alone would reserve it.
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
		unix.Bind(fd, sockaddr(peer, 0)),
	)
}

func (e *ends) establish() error {
	switch e.load {
	case UDPConnect, UDPConnectPeers, TCPConnect:
		return nil
	case TCPEstablished:
		if err := unix.Connect(e.source, e.to); err != nil {
			return err
		}
		fd, _, err := unix.Accept4(e.pod, unix.SOCK_CLOEXEC)
		if err != nil {
			return err
		}
		if err := unix.Close(e.pod); err != nil {
			return err
		}
		e.pod = fd
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err := unix.Connect(e.source, e.to); err != nil {
		return err
	}
	if e.load == UDPUnanswered {
		return nil
	}
	if err := send(e.source, e.buf[:payload]); err != nil {
		return err
	}
	_, from, err := unix.Recvfrom(e.pod, e.buf[:], 0)
	if err != nil {
		return err
	}
	if err := unix.Sendto(e.pod, e.buf[:payload], 0, from); err != nil {
		return err
	}
	return receive(e.source, e.buf[:])
}

// prepare does what must not be timed for n operations.
func (e *ends) prepare(n int) error {
	if e.load != TCPConnect {
		return nil
	}
	return e.ns.Do(func() error {
		for len(e.connectors) < n {
			fd, err := connector(e.flow.Peers[0])
			if err != nil {
				return err
			}
			e.connectors = append(e.connectors, fd)
		}
		return nil
	})
}

// run does n operations and returns how long they took.
func (e *ends) run(n int) (time.Duration, error) {
	start := time.Now()
	for range n {
		if err := e.once(); err != nil {
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINPROGRESS) {
				err = errLost
			}
			return 0, fmt.Errorf("%s: %w", e.load, err)
		}
	}
	return time.Since(start), nil
}

func (e *ends) once() error {
	switch e.load {
	case UDPConnect, UDPConnectPeers:
		if e.port++; e.port == 0 {
			e.port = 1024
		}
		if e.peer++; e.load == UDPConnect || e.peer == len(e.flow.Peers) {
			e.peer = 0
		}
		if err := send(e.source, e.packet.from(e.flow.Peers[e.peer], e.port)); err != nil {
			return err
		}
		return receive(e.pod, e.buf[:])
	case TCPEstablished:
		return e.exchange(e.source, e.pod)
	case TCPConnect:
		return e.connect()
	default:
		if err := send(e.source, e.buf[:payload]); err != nil {
			return err
		}
		return receive(e.pod, e.buf[:])
	}
}

func (e *ends) exchange(client, server int) error {
	if err := send(client, e.buf[:1]); err != nil {
		return err
	}
	if err := receive(server, e.buf[:1]); err != nil {
		return err
	}
	if err := send(server, e.buf[:1]); err != nil {
		return err
	}
	return receive(client, e.buf[:1])
}

func (e *ends) connect() error {
	client := e.connectors[len(e.connectors)-1]
	e.connectors = e.connectors[:len(e.connectors)-1]
	if err := unix.Connect(client, e.to); err != nil {
		return errors.Join(err, unix.Close(client))
	}
	server, _, err := unix.Accept4(e.pod, unix.SOCK_CLOEXEC)
	if err != nil {
		return errors.Join(err, unix.Close(client))
	}
	return errors.Join(e.exchange(client, server), unix.Close(client), unix.Close(server))
}
