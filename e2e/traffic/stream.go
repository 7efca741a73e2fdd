package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Stream is a TCP connection whose sender writes as fast as it can.
type Stream struct {
	From, To Place
	// Addr is To's.
	Addr netip.Addr
	// Congestion is the sender's algorithm, as in "cubic"; empty leaves it to the
	// kernel.
	Congestion string
	// Length is how long it lasts, from the first byte received.
	Length time.Duration
}

// StreamResult says what became of a Stream.
type StreamResult struct {
	Series
	// Retransmits are segments that were sent again.
	Retransmits int `json:"retransmits"`
	// Segment is how many bytes of the stream a full frame carries, and Frame how
	// long that is.
	Segment int `json:"segment"`
	Frame   int `json:"frame"`
}

// Run sends, and returns what arrived. What is not acknowledged at the end is
// given up.
func (s Stream) Run(ctx context.Context) (StreamResult, error) {
	r := StreamResult{Series: newSeries(s.Length)}
	whole, cancel := context.WithTimeout(ctx, s.Length+patience)
	defer cancel()
	out, in, err := pairTCP(whole, s.From, s.To, s.Addr, s.Congestion)
	if err != nil {
		return r, err
	}
	defer reset(out)
	defer reset(in)
	if err := option(in, unix.SO_TIMESTAMPNS, 1); err != nil {
		return r, err
	}
	if err := r.measureFrame(out); err != nil {
		return r, err
	}
	// At the end, whoever waits is woken.
	stop := context.AfterFunc(whole, func() {
		past := time.Unix(1, 0)
		_, _ = out.SetDeadline(past), in.SetDeadline(past)
	})
	defer stop()
	flooded := make(chan error, 1)
	go func() { flooded <- flood(out) }()
	err = receive(in, &r.Series)
	info, ierr := tcpInfo(out) // before the connection ends
	cancel()
	err = errors.Join(err, ierr, <-flooded, ctx.Err())
	if err == nil && r.Start.IsZero() {
		err = errors.New("nothing arrived")
	}
	if err != nil {
		return r, fmt.Errorf("stream to %s: %w", s.Addr, err)
	}
	r.Retransmits = int(info.Total_retrans)
	r.toFrames()
	return r, nil
}

// measureFrame finds out what a full frame is.
func (r *StreamResult) measureFrame(c *net.TCPConn) error {
	info, err := tcpInfo(c)
	if err != nil {
		return err
	}
	const ethernet, ipv4, ipv6, tcp, timestamps = 14, 20, 40, 20, 12
	r.Segment = int(info.Snd_mss)
	r.Frame = r.Segment + ethernet + tcp + ipv4
	if c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().Is6() {
		r.Frame += ipv6 - ipv4
	}
	if info.Options&tcpiOptTimestamps != 0 {
		r.Frame += timestamps
	}
	return nil
}

// tcpiOptTimestamps is TCPI_OPT_TIMESTAMPS of include/uapi/linux/tcp.h.
const tcpiOptTimestamps = 1

// toFrames turns bytes of the stream into those of frames that are full, as all
// are of a sender that always has more.
func (r *StreamResult) toFrames() {
	for i, b := range r.Bytes {
		r.Bytes[i] = b * uint64(r.Frame) / uint64(r.Segment)
	}
}

func tcpInfo(c *net.TCPConn) (*unix.TCPInfo, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var info *unix.TCPInfo
	err = control(raw, func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("state of a connection: %w", err)
	}
	return info, nil
}

// flood writes until the deadline, or until the other end is gone.
func flood(c *net.TCPConn) error {
	data := make([]byte, 128<<10)
	for {
		if _, err := c.Write(data); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return fmt.Errorf("send: %w", err)
		}
	}
}

// receive counts what comes until the series is full or the deadline is there.
// TCP does not copy what is read with MSG_TRUNC. A read is short, because its time
// stamp is that of its last packet.
func receive(c *net.TCPConn, s *Series) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	unused := make([]byte, 64<<10)
	oob := make([]byte, 128)
	for {
		var n, oobn int
		var inner error
		err := raw.Read(func(fd uintptr) bool {
			n, oobn, _, _, inner = unix.Recvmsg(int(fd), unused, oob, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			return inner != unix.EAGAIN && inner != unix.EINTR
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err == nil:
			err = inner
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if !s.add(stamp(oob[:oobn]), n) {
			return nil
		}
	}
}
