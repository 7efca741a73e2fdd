package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

// live is a TCP connection that is held over steps of the story.
type live struct {
	name string
	conn net.Conn
	// survives says whether the story wants it to.
	survives bool
	sent     int
}

// openLive opens the connections of the step cutLive, over both families.
func (c *cluster) openLive(ctx context.Context) error {
	for _, from := range []struct {
		name     string
		survives bool
	}{{"api", false}, {"client", true}} {
		for _, to := range withPort(c.places["web"].addrs, 8080) {
			conn, err := c.places[from.name].DialTCP(ctx, netip.Addr{}, to)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("%s to web:8080 over %s", from.name, version(policy.FamilyOf(to.Addr())))
			l := &live{name: name, conn: conn, survives: from.survives}
			c.live = append(c.live, l)
			if alive, err := l.talk(ctx, true); err != nil || !alive {
				return fmt.Errorf("%s: no answer before the change: %w", name, err)
			}
		}
	}
	return nil
}

func version(f policy.Family) string {
	if f == policy.IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// talk sends a line and tells whether it comes back. A connection that should
// be alive is given the time that a loaded machine may need.
func (l *live) talk(ctx context.Context, patient bool) (bool, error) {
	wait := 400 * time.Millisecond
	if patient {
		wait = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	l.sent++
	_, err := world.Exchange(ctx, l.conn, fmt.Sprintf("line number %4d", l.sent))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	}
	return err == nil, err
}

func (l *live) close() {
	if c, ok := l.conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0) // a reset: what was not delivered is not tried again
	}
	_ = l.conn.Close()
}
