package world

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// Outcome is what became of a probe.
type Outcome uint8

// The outcomes.
const (
	// Unknown: the probe itself failed, or nothing is expected.
	Unknown Outcome = iota
	// Allowed: the probe was answered.
	Allowed
	// Dropped: nothing came back, and nothing arrived.
	Dropped
	// Unanswered: the probe arrived, but its answer did not come back.
	Unanswered
	// Refused: a TCP reset or an ICMP error came back.
	Refused
)

// String returns a word for the outcome.
func (o Outcome) String() string {
	switch o {
	case Allowed:
		return "allowed"
	case Dropped:
		return "dropped"
	case Unanswered:
		return "unanswered"
	case Refused:
		return "refused"
	}
	return "unknown"
}

// Probe is a new connection to try.
type Probe struct {
	From *Namespace
	// Src is the address to send from; the zero address leaves it to the kernel.
	Src netip.Addr
	To  netip.AddrPort
	// Protocol may be any. ICMP is an echo request, which the kernel answers;
	// protocols without ports are served as port 0.
	Protocol policy.Protocol
	// Want decides how long the probe waits: a probe that should be dropped
	// does not wait long for an answer, any other waits for as long as a
	// machine under load may need. It does not decide the outcome.
	Want Outcome
}

// Result is what a probe saw.
type Result struct {
	Outcome Outcome
	// Answer is that to a TCP or UDP probe.
	Answer
	// Err is why the outcome is Unknown.
	Err error
}

// Answer is what a server of Serve says of itself and of who asked.
type Answer struct {
	// By is the ID of the namespace that answered.
	By string
	// Source is where the question came from, as the server saw it.
	Source netip.AddrPort
}

const (
	patience   = 5 * time.Second
	impatience = 250 * time.Millisecond
	// parallel bounds the probes that wait at the same time.
	parallel = 256
)

// Probe sends all probes, many at a time, and returns their results in order.
func (w *World) Probe(ctx context.Context, probes ...Probe) []Result {
	return w.each(ctx, len(probes), func(i int) (Outcome, func(context.Context, string) (Answer, error)) {
		return probes[i].Want, probes[i].send
	})
}

// Talk sends a line, or a datagram, over each of some connections to servers of
// Serve, all at once, and returns what became of them, as Probe does. want
// decides how long to wait.
func (w *World) Talk(ctx context.Context, conns []net.Conn, want []Outcome) []Result {
	return w.each(ctx, len(conns), func(i int) (Outcome, func(context.Context, string) (Answer, error)) {
		return want[i], func(ctx context.Context, token string) (Answer, error) { return Exchange(ctx, conns[i], token) }
	})
}

// each runs n sends, many at a time. A send gets a token for the server to see,
// and returns the answer.
func (w *World) each(ctx context.Context, n int, send func(i int) (Outcome, func(context.Context, string) (Answer, error))) []Result {
	results := make([]Result, n)
	tokens := make([]string, n)
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			want, send := send(i)
			wait := patience
			if want == Dropped {
				wait = impatience
			}
			ctx, cancel := context.WithTimeout(ctx, wait)
			defer cancel()
			tokens[i] = newToken()
			results[i] = judge(send(ctx, tokens[i]))
		})
	}
	wg.Wait()
	// What had not arrived when its sender gave up has had time until now.
	for i := range results {
		if arrived := w.arrived.take(tokens[i]); arrived && results[i].Outcome == Dropped {
			results[i].Outcome = Unanswered
		}
	}
	return results
}

// newToken makes a token, the first half of which is zero: SCTP has no room for
// more than 32 bits.
func newToken() string {
	var id [tokenLen / 2]byte
	_, _ = rand.Read(id[tokenLen/4:]) // never fails
	return hex.EncodeToString(id[:])
}

func (p Probe) send(ctx context.Context, token string) (Answer, error) {
	switch p.Protocol {
	case policy.TCP:
		return p.sendTCP(ctx, token)
	case policy.UDP:
		return p.sendUDP(ctx, token)
	case policy.SCTP:
		return Answer{}, p.sendSCTP(ctx, token)
	}
	return Answer{}, p.sendRaw(ctx, token)
}

func judge(a Answer, err error) Result {
	switch {
	case err == nil:
		return Result{Outcome: Allowed, Answer: a}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return Result{Outcome: Dropped}
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET),
		errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES):
		return Result{Outcome: Refused}
	}
	return Result{Err: err}
}

func (p Probe) sendTCP(ctx context.Context, token string) (Answer, error) {
	c, err := p.From.DialTCP(ctx, p.Src, p.To)
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	// A reset leaves nothing behind that would speak again later.
	if err := c.SetLinger(0); err != nil {
		return Answer{}, err
	}
	return Exchange(ctx, c, token)
}

func (p Probe) sendUDP(ctx context.Context, token string) (Answer, error) {
	c, err := p.From.DialUDP(p.Src, p.To)
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	return Exchange(ctx, c, token)
}

// Exchange sends a line (or datagram) to a server of Serve and returns its answer.
// It fails with os.ErrDeadlineExceeded if nothing comes back before ctx ends.
func Exchange(ctx context.Context, c net.Conn, line string) (Answer, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return Answer{}, errors.New("exchange without a deadline")
	}
	if err := c.SetDeadline(deadline); err != nil {
		return Answer{}, err
	}
	if _, err := fmt.Fprintf(c, "%s\n", line); err != nil {
		return Answer{}, err
	}
	text, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return Answer{}, err
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), line+" ")
	by, source, _ := strings.Cut(rest, " ")
	a := Answer{By: by}
	if a.Source, err = netip.ParseAddrPort(source); !ok || err != nil {
		return Answer{}, fmt.Errorf("answer %q to %q", text, line)
	}
	return a, nil
}
