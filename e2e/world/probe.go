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
	// By is the ID of the namespace that answered a TCP or UDP probe.
	By string
	// Err is why the outcome is Unknown.
	Err error
}

const (
	patience   = 5 * time.Second
	impatience = 250 * time.Millisecond
	// parallel bounds the probes that wait at the same time.
	parallel = 256
)

// Probe sends all probes, many at a time, and returns their results in order.
func (w *World) Probe(ctx context.Context, probes ...Probe) []Result {
	results := make([]Result, len(probes))
	tokens := make([]string, len(probes))
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i, p := range probes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			results[i], tokens[i] = p.send(ctx)
		})
	}
	wg.Wait()
	// What had not arrived when its probe gave up has had time until now.
	for i := range results {
		if arrived := w.arrived.take(tokens[i]); arrived && results[i].Outcome == Dropped {
			results[i].Outcome = Unanswered
		}
	}
	return results
}

func (p Probe) send(ctx context.Context) (Result, string) {
	var id [tokenLen / 2]byte
	_, _ = rand.Read(id[:]) // never fails
	if p.Protocol == policy.SCTP {
		clear(id[:4])
	}
	token := hex.EncodeToString(id[:])
	wait := patience
	if p.Want == Dropped {
		wait = impatience
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var by string
	var err error
	switch p.Protocol {
	case policy.TCP:
		by, err = p.sendTCP(ctx, token)
	case policy.UDP:
		by, err = p.sendUDP(ctx, token)
	case policy.SCTP:
		err = p.sendSCTP(ctx, token)
	default:
		err = p.sendRaw(ctx, token)
	}
	return judge(by, err), token
}

func judge(by string, err error) Result {
	switch {
	case err == nil:
		return Result{Outcome: Allowed, By: by}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return Result{Outcome: Dropped}
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET),
		errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES):
		return Result{Outcome: Refused}
	}
	return Result{Err: err}
}

func (p Probe) sendTCP(ctx context.Context, token string) (string, error) {
	c, err := p.From.DialTCP(ctx, p.Src, p.To)
	if err != nil {
		return "", err
	}
	defer c.Close()
	// A reset leaves nothing behind that would speak again later.
	if err := c.SetLinger(0); err != nil {
		return "", err
	}
	return Exchange(ctx, c, token)
}

func (p Probe) sendUDP(ctx context.Context, token string) (string, error) {
	c, err := p.From.DialUDP(p.Src, p.To)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return Exchange(ctx, c, token)
}

// Exchange sends a line (or datagram) to a server of Serve and returns the ID
// of the namespace that gave it back. It fails with os.ErrDeadlineExceeded if
// nothing comes back before ctx ends.
func Exchange(ctx context.Context, c net.Conn, line string) (string, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return "", errors.New("exchange without a deadline")
	}
	if err := c.SetDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(c, "%s\n", line); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", err
	}
	by, ok := strings.CutPrefix(strings.TrimSpace(answer), line+" ")
	if !ok {
		return "", fmt.Errorf("answer %q to %q", answer, line)
	}
	return by, nil
}
