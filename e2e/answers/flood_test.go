package answers

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/selvage-net/selvage/e2e/traffic"
	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

const (
	// floodRate is how many packets a second are to be denied.
	floodRate = 100_000
	// floodRounds of floodLength each are the flood. Before each it is quiet as long.
	floodRounds, floodLength = 3, time.Second
	// floodPorts is how many ports are tried: each makes drops of another kind.
	floodPorts = 1000
	// mostCPU is what the flood may cost the agent, as a part of one core.
	mostCPU = 0.10
	// mostSampled is how many packets the rules pass on at most: in each round a burst of
	// five and two a second, for twice as long as it is to be.
	mostSampled = floodRounds * (5 + 2*int(2*floodLength/time.Second))
	// leastCounted is the part of the packets that must be counted: a machine that is busy
	// drops some before they come to the rules.
	leastCounted = 0.99
)

// flood sends datagrams to many ports until ctx ends, at floodRate if the machine can,
// and returns how many the kernel took.
func flood(ctx context.Context, from *world.Pod, to netip.Addr) (sent int, err error) {
	var c *net.UDPConn
	err = from.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", nil)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	packets := make([]ipv4.Message, floodPorts)
	for i := range packets {
		packets[i] = ipv4.Message{Buffers: [][]byte{[]byte("flood")}, Addr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, uint16(10_000+i)))}
	}
	const batch = 50
	out := ipv4.NewPacketConn(c)
	for began := time.Now(); ctx.Err() == nil; {
		first := sent % floodPorts
		n, err := out.WriteBatch(packets[first:min(first+batch, floodPorts)], 0)
		if sent += n; err != nil {
			return sent, err
		}
		due := began.Add(time.Duration(sent) * time.Second / floodRate)
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
		}
	}
	return sent, nil
}

// round is what became of a time with or without a flood.
type round struct {
	echo traffic.EchoResult
	sent int
	// took is how long it lasted, cpu how much of a processor the agent used.
	took, cpu time.Duration
}

// play has friend talk to web, which is allowed, maybe while rogue floods web.
func (s *stage) play(flooded bool) round {
	s.t.Helper()
	var r round
	before, began := s.cpu(), time.Now()
	ctx, end := context.WithCancel(s.t.Context())
	done := make(chan error, 1)
	go func() {
		var err error
		if flooded {
			r.sent, err = flood(ctx, s.rogue, s.web.Addr(policy.IPv4))
		}
		done <- err
	}()
	var err error
	r.echo, err = traffic.Echo{From: s.friend, To: s.web, Addr: s.web.Addr(policy.IPv4), Interval: 2 * time.Millisecond, Length: floodLength}.Run(ctx)
	end()
	must(s.t, <-done)
	r.took = time.Since(began)
	must(s.t, err)
	r.cpu = s.cpu() - before
	return r
}

// cpu is how much of a processor the agent has used: the user's and the system's time in
// /proc/PID/stat, as it says itself.
func (s *stage) cpu() time.Duration {
	s.t.Helper()
	return time.Duration(s.metrics().Sum("process_cpu_seconds_total", nil) * float64(time.Second))
}

// TestFlood has a pod send far more than it may. That costs the agent little, fills no
// log, loses nothing of what is allowed, and is counted.
func TestFlood(t *testing.T) {
	s := newStage(t)
	var quiet, loud []round
	for range floodRounds {
		quiet = append(quiet, s.play(false))
		loud = append(loud, s.play(true))
	}
	sent, lost := 0, 0
	var took, cpu time.Duration
	for _, r := range loud {
		sent, took, cpu = sent+r.sent, took+r.took, cpu+r.cpu
	}
	for _, r := range slices.Concat(quiet, loud) {
		lost += r.echo.Lost
	}
	m := s.metrics()
	logged, left := m.Sum("selvage_drops_logged_total", nil), m.Sum("selvage_drops_left_out_total", nil)
	share := cpu.Seconds() / took.Seconds()
	t.Logf("%d packets denied in %v, %.0f a second; the agent used %v, %.1f %% of a core; lines tell of %.0f, %.0f were left out",
		sent, took.Round(time.Millisecond), float64(sent)/took.Seconds(), cpu, 100*share, logged, left)
	t.Logf("the policies have counted %.0f", m.Sum(deniedTotal, series("shop/web-friend", "ingress")))
	for i := range quiet {
		a, b := quiet[i].echo, loud[i].echo
		t.Logf("echo of what is allowed: p50 %v, with the flood %v, %.2f times; p99 %v and %v; %d of %d lost",
			a.Quantile(.5), b.Quantile(.5), b.Quantile(.5).Seconds()/a.Quantile(.5).Seconds(), a.Quantile(.99), b.Quantile(.99), a.Lost+b.Lost, a.Sent+b.Sent)
	}
	if sent < floodRate {
		t.Errorf("%d packets are no flood", sent)
	}
	if share >= mostCPU {
		t.Errorf("the agent used %.1f %% of a core, more than %.0f %%", 100*share, 100*mostCPU)
	}
	if lost > 0 {
		t.Errorf("%d packets that are allowed were lost", lost)
	}
	for _, ref := range []string{"shop/web-friend", "shop/web-cousin"} {
		if denied := m.Sum(deniedTotal, series(ref, "ingress")); int(denied) > sent || denied < leastCounted*float64(sent) {
			t.Errorf("%d packets were sent, and %.0f of %s denied", sent, denied, ref)
		}
	}
	if logged < 1 || logged+left > float64(mostSampled) {
		t.Errorf("lines tell of %.0f packets, and %.0f were left out: more than %d", logged, left, mostSampled)
	}
	text, err := os.ReadFile(s.agent.Log)
	must(t, err)
	if lines := strings.Count(string(text), " msg=denied "); lines < 1 || lines > mostSampled {
		t.Errorf("the log has %d lines of denied packets, more than %d", lines, mostSampled)
	}
}
