package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// DialFunc opens a connection, as net.Dialer's DialContext does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Run tries all at once and returns the results in order.
func Run(ctx context.Context, dial DialFunc, tries []Try) []Result {
	results := make([]Result, len(tries))
	var wg sync.WaitGroup
	for i, t := range tries {
		wg.Go(func() { results[i] = t.run(ctx, dial) })
	}
	wg.Wait()
	return results
}

func (t Try) run(ctx context.Context, dial DialFunc) Result {
	ctx, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	began := time.Now()
	by, source, err := t.send(ctx, dial)
	return Result{Outcome: judge(err), By: by, Source: source, Error: text(err), Took: time.Since(began)}
}

func (t Try) send(ctx context.Context, dial DialFunc) (by, source string, err error) {
	c, err := dial(ctx, t.Kind.Network(), t.To)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	if t.Kind == TLS {
		// The server is asked whether it is there, not who it is.
		return "", "", tls.Client(c, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx)
	}
	// A reset leaves nothing behind that would speak again later.
	if tcp, ok := c.(*net.TCPConn); ok {
		if err := tcp.SetLinger(0); err != nil {
			return "", "", err
		}
	}
	return exchange(ctx, c, t.Token+" 0")
}

// exchange sends a line and returns who gave it back, and which address that
// one saw.
func exchange(ctx context.Context, c net.Conn, line string) (by, source string, err error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return "", "", err
		}
	}
	if _, err := fmt.Fprintf(c, "%s\n", line); err != nil {
		return "", "", err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", "", err
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(answer), line+" ")
	if !ok {
		return "", "", fmt.Errorf("answer %q to %q", answer, line)
	}
	by, source, _ = strings.Cut(rest, " ")
	return by, source, nil
}

// Network is what the kind is called in package net: tcp or udp.
func (k Kind) Network() string {
	if k == UDP || k == NewUDP {
		return "udp"
	}
	return "tcp"
}

func judge(err error) Outcome {
	switch {
	case err == nil:
		return Answered
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return Dropped
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET),
		errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EACCES):
		return Refused
	}
	return Failed
}

// text is what the system said, short enough to count by: without addresses and
// ports.
func text(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return ""
	case errors.As(err, &errno):
		return errno.Error()
	case judge(err) == Dropped:
		return TimedOut
	}
	return err.Error()
}
