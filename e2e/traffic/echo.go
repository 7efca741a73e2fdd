package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// Echo is a small UDP datagram that is sent now and then and sent back.
type Echo struct {
	From, To Place
	// Addr is To's.
	Addr netip.Addr
	// Interval is the time from one to the next.
	Interval time.Duration
	// Length is how long it goes on.
	Length time.Duration
}

// EchoFrame is the size of an Echo's frames over IPv4.
const EchoFrame = echoPayload + 14 + 20 + 8

// A datagram of an echo is: its number, when it was sent, and in the answer how
// long that took.
const echoPayload = 24

// EchoResult says what became of an Echo.
type EchoResult struct {
	// Times are the round trips that came to an end, sorted.
	Times []time.Duration `json:"times"`
	// Sent counts all, Lost those without answer within a second of the last one.
	Sent int `json:"sent"`
	Lost int `json:"lost"`
}

// Quantile returns the q-quantile of the times; what was lost counts as longer than
// all others, and as the longest that is possible.
func (r EchoResult) Quantile(q float64) time.Duration {
	if r.Sent == 0 {
		return math.MaxInt64
	}
	i := int(math.Ceil(q*float64(r.Sent))) - 1
	if i = max(i, 0); i >= len(r.Times) {
		return math.MaxInt64
	}
	return r.Times[i]
}

// Run sends the datagrams and waits for their answers.
func (e Echo) Run(ctx context.Context) (EchoResult, error) {
	var r EchoResult
	out, in, err := pairUDP(e.From, e.To, e.Addr, 1<<20)
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, e.Length)
	defer cancel()
	answered, got := make(chan error, 1), make(chan error, 1)
	var count atomic.Int64
	go func() { answered <- answer(in) }()
	go func() { got <- r.collect(out, &count) }()
	sent, err := e.send(ctx, out)
	// The last answers are on their way.
	for last := time.Now().Add(time.Second); int(count.Load()) < sent && time.Now().Before(last); {
		time.Sleep(time.Millisecond)
	}
	past := time.Unix(1, 0)
	err = errors.Join(err, out.SetReadDeadline(past), in.SetReadDeadline(past), <-got, <-answered, out.Close(), in.Close())
	if err != nil {
		return r, fmt.Errorf("echo of %s: %w", e.Addr, err)
	}
	r.Sent, r.Lost = sent, sent-len(r.Times)
	slices.Sort(r.Times)
	return r, nil
}

func (e Echo) send(ctx context.Context, c *net.UDPConn) (int, error) {
	ticker := time.NewTicker(e.Interval)
	defer ticker.Stop()
	for n := 0; ; n++ {
		var b [echoPayload]byte
		binary.NativeEndian.PutUint64(b[:], uint64(n))
		binary.NativeEndian.PutUint64(b[8:], uint64(time.Now().UnixNano()))
		if _, err := c.Write(b[:]); err != nil {
			return n, fmt.Errorf("send: %w", err)
		}
		select {
		case <-ctx.Done():
			return n + 1, nil
		case <-ticker.C:
		}
	}
}

// answer sends back what comes.
func answer(c *net.UDPConn) error {
	var b [echoPayload]byte
	return datagrams(c, b[:], func(at time.Time, _ int, from netip.AddrPort) error {
		// From here on is the way back.
		binary.NativeEndian.PutUint64(b[16:], uint64(time.Since(at)))
		_, err := c.WriteToUDPAddrPort(b[:], from)
		return err
	})
}

// collect reads the answers, each once, and counts them.
func (r *EchoResult) collect(c *net.UDPConn, count *atomic.Int64) error {
	var b [echoPayload]byte
	seen := make(map[uint64]bool)
	return datagrams(c, b[:], func(at time.Time, n int, _ netip.AddrPort) error {
		number := binary.NativeEndian.Uint64(b[:])
		if n < echoPayload || seen[number] {
			return nil
		}
		seen[number] = true
		began := time.Unix(0, int64(binary.NativeEndian.Uint64(b[8:])))
		took := at.Sub(began) - time.Duration(binary.NativeEndian.Uint64(b[16:]))
		r.Times = append(r.Times, max(took, 0))
		count.Add(1)
		return nil
	})
}

// datagrams calls f for each datagram, which is in b, until the deadline.
func datagrams(c *net.UDPConn, b []byte, f func(at time.Time, n int, from netip.AddrPort) error) error {
	oob := make([]byte, 128)
	for {
		n, oobn, _, from, err := c.ReadMsgUDPAddrPort(b, oob)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err == nil {
			err = f(stamp(oob[:oobn]), n, from)
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
	}
}
