package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	defaultInterval = 10 * time.Millisecond
	defaultTimeout  = time.Second
)

// running is a flow that goes on. It is safe for concurrent use.
type running struct {
	Flow
	dial DialFunc
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	p       Progress
	pending map[uint64]time.Time
	next    uint64
	conn    net.Conn
}

// start begins a flow, which goes on until finish is called or ctx ends.
func start(ctx context.Context, dial DialFunc, f Flow) (*running, error) {
	if f.Interval == 0 {
		f.Interval = defaultInterval
	}
	if f.Timeout == 0 {
		f.Timeout = defaultTimeout
	}
	work := map[Kind]func(*running, context.Context){
		TCP: (*running).onOne, UDP: (*running).onOne, NewTCP: (*running).onMany, NewUDP: (*running).onMany,
	}[f.Kind]
	if work == nil || f.Token == "" || strings.ContainsAny(f.Token, " \n") {
		return nil, fmt.Errorf("flow %q of kind %q: no such kind, or no usable token", f.Token, f.Kind)
	}
	ctx, stop := context.WithCancel(ctx)
	r := &running{
		Flow: f, dial: dial, stop: stop, done: make(chan struct{}),
		p:       Progress{Began: time.Now(), Errors: map[string]uint64{}, By: map[string]uint64{}},
		pending: map[uint64]time.Time{},
	}
	go func() {
		defer close(r.done)
		work(r, ctx)
	}()
	return r, nil
}

// finish stops the flow, gives the last requests the time that they may take,
// and returns what came of it all.
func (r *running) finish() Progress {
	r.stop()
	<-r.done
	return r.progress()
}

func (r *running) progress() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep(time.Now())
	r.count()
	p := r.p
	p.Errors, p.By = maps.Clone(r.p.Errors), maps.Clone(r.p.By)
	return p
}

// count asks the kernel what it knows of the connection that the flow keeps to.
// The caller holds the lock.
func (r *running) count() {
	switch c := r.conn.(type) {
	case *net.TCPConn:
		r.p.Retransmits = retransmits(c)
	case *net.UDPConn:
		// What it does not tell passes for lost on the way.
		if n, err := overflowed(c); err == nil {
			r.p.Overflowed = n
		}
	}
}

// sweep counts as lost what has waited too long. The caller holds the lock.
func (r *running) sweep(now time.Time) {
	for n, at := range r.pending {
		if now.Sub(at) > r.Timeout {
			delete(r.pending, n)
			r.p.Lost++
			if r.p.FirstLost.IsZero() || at.Before(r.p.FirstLost) {
				r.p.FirstLost = at
			}
		}
	}
}

func (r *running) send() (n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = r.next
	r.next++
	r.p.Sent++
	now := time.Now()
	r.pending[n] = now
	if n%256 == 255 {
		r.sweep(now)
	}
	return n
}

func (r *running) answered(n uint64, by string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.sweep(now)
	if _, ok := r.pending[n]; !ok {
		r.p.Late++
	} else {
		delete(r.pending, n)
		r.p.Answered++
	}
	r.p.By[by]++
	if r.p.FirstAnswer.IsZero() {
		r.p.FirstAnswer = now
	} else {
		r.p.Gap = max(r.p.Gap, now.Sub(r.p.LastAnswer))
	}
	r.p.LastAnswer = now
}

func (r *running) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.p.Errors[text(err)]++
}

// ticks calls f at every interval until ctx ends or f returns false.
func (r *running) ticks(ctx context.Context, f func() bool) {
	t := time.NewTicker(r.Interval)
	defer t.Stop()
	for ctx.Err() == nil && f() {
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
}

// onMany opens a connection for each request.
func (r *running) onMany(ctx context.Context) {
	var wg sync.WaitGroup
	r.ticks(ctx, func() bool {
		n := r.send()
		wg.Go(func() { r.request(n) })
		return true
	})
	wg.Wait()
}

// request is not cut short when the flow is stopped: it may take its time.
func (r *running) request(n uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), r.Timeout)
	defer cancel()
	c, err := r.dial(ctx, r.Kind.Network(), r.To)
	if err != nil {
		r.failed(err)
		return
	}
	defer c.Close()
	if tcp, ok := c.(*net.TCPConn); ok {
		if err := tcp.SetLinger(0); err != nil {
			r.failed(err)
			return
		}
	}
	by, _, err := exchange(ctx, c, fmt.Sprintf("%s %d", r.Token, n))
	if udp, ok := c.(*net.UDPConn); ok {
		r.part(udp)
	}
	if err != nil {
		r.failed(err)
		return
	}
	r.answered(n, by)
}

// part adds what one of many sockets had no room for. What the kernel does not
// tell passes for lost on the way.
func (r *running) part(c *net.UDPConn) {
	n, err := overflowed(c)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.p.Overflowed += n
}

// onOne keeps to one connection, or socket.
func (r *running) onOne(ctx context.Context) {
	c, err := r.open(ctx)
	if err != nil {
		r.end(err)
		return
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		r.read(c)
	}()
	r.ticks(ctx, func() bool {
		_, err := fmt.Fprintf(c, "%s %d\n", r.Token, r.send())
		switch {
		case err == nil:
		case r.Kind == UDP:
			r.failed(err) // an ICMP error for an earlier request; the socket lives on
		default:
			r.end(err)
			return false
		}
		return true
	})
	for r.waiting() {
		time.Sleep(5 * time.Millisecond)
	}
	r.release()
	_ = c.Close() // nothing is sent any more, and what was to come has come
	<-read
}

// waiting tells whether a request waits for its answer and may do so.
func (r *running) waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep(time.Now())
	return len(r.pending) > 0
}

// release parts with the connection, and keeps what is known of it.
func (r *running) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count()
	r.conn = nil
}

func (r *running) open(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	c, err := r.dial(ctx, r.Kind.Network(), r.To)
	if err != nil {
		return nil, err
	}
	// A socket of onMany waits for one answer alone, and needs no more room.
	if udp, ok := c.(*net.UDPConn); ok {
		widen(udp)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn = c
	return c, nil
}

func (r *running) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.p.Ended = text(err)
}

// read takes the answers "TOKEN NUMBER NAME SOURCE" until the connection ends.
func (r *running) read(c net.Conn) {
	lines := bufio.NewReader(c)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			switch {
			case errors.Is(err, net.ErrClosed):
				return
			case r.Kind == UDP && !errors.Is(err, io.EOF):
				r.failed(err)
				continue
			}
			r.end(err)
			return
		}
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != r.Token {
			r.failed(errors.New("an answer that is none"))
			continue
		}
		n, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			r.failed(err)
			continue
		}
		r.answered(n, fields[2])
	}
}

// retransmits is how many segments the kernel has sent again, zero if it does
// not tell.
func retransmits(c *net.TCPConn) uint32 {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	var n uint32
	err = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = info.Total_retrans
		}
	})
	if err != nil {
		return 0
	}
	return n
}
