package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/informer/link/isolate"
	"github.com/selvage-net/selvage/policy/nflog"
)

func testLogger(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// dropLogger returns a logger that writes lines without time and level.
func dropLogger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// lineWriter has each write received as a line.
type lineWriter chan string

func (w lineWriter) Write(b []byte) (int, error) {
	w <- strings.TrimSuffix(string(b), "\n")
	return len(b), nil
}

// logLines returns a logger, and what it has written since that was last asked.
func logLines() (*slog.Logger, func() []string) {
	var b bytes.Buffer
	return dropLogger(&b), func() []string {
		defer b.Reset()
		return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	}
}

// tcpTo is the first packet of a connection from shop/web to a port of shop/db.
func tcpTo(port int) nflog.Packet {
	return nflog.Packet{
		Prefix: "deny-ingress-a", Source: netip.MustParseAddr("10.244.1.7"), Destination: netip.MustParseAddr("10.244.2.9"),
		Protocol: unix.IPPROTO_TCP, SourcePort: 50000, DestinationPort: uint16(port), TCPFlags: nflog.SYN, Interface: "veth1",
	}
}

const tcpLine = "msg=denied source=shop/web destination=shop/db sourceAddress=10.244.1.7 destinationAddress=10.244.2.9 port=PORT protocol=TCP " +
	`direction=ingress reason=Policy policies="[shop/closed shop/db]" interface=veth1 count=`

// TestDropsLog writes the first of each kind at once, and the others once a minute.
func TestDropsLog(t *testing.T) {
	log, lines := logLines()
	d := newDrops(defaultDropsConfig(), "n1", shopNames(), log)
	now := time.Now()
	is := func(want ...string) {
		t.Helper()
		got := lines()
		for i := range max(len(got), len(want)) {
			if i >= len(got) || i >= len(want) || got[i] != want[i] {
				t.Errorf("it says\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				return
			}
		}
	}
	line := func(port string, count int) string {
		return strings.ReplaceAll(tcpLine, "PORT", port) + strconv.Itoa(count)
	}
	d.add(tcpTo(5432), now)
	d.add(tcpTo(5432), now)
	d.add(tcpTo(5433), now)
	d.add(tcpTo(5432), now)
	is(line("5432", 1), line("5433", 1))
	d.sweep(now.Add(time.Second))
	is("")
	d.sweep(now.Add(foldFor))
	is(line("5432", 2))
	now = now.Add(foldFor)
	ping := nflog.Packet{
		Prefix: "deny-unknown", Source: netip.MustParseAddr("10.244.1.99"), Destination: netip.MustParseAddr("fd00::7"),
		Protocol: unix.IPPROTO_ICMPV6, ICMPType: 129, HasICMP: true,
	}
	d.add(ping, now)
	is("msg=denied source=shop/web destination=10.244.1.99 sourceAddress=fd00::7 protocol=ICMPv6 icmpType=129 reply=true direction=ingress reason=UnknownPod policies=[] count=1")
	d.add(nflog.Packet{Prefix: "deny-ingress-a"}, now)
	if d.loggedPackets() != 5 || d.leftOut() != 1 {
		t.Errorf("%d were logged, and %d left out", d.loggedPackets(), d.leftOut())
	}
	if all, _ := d.last(dropFilter{}, false); len(all) != 4 || all[2].Count != 2 {
		t.Errorf("it keeps %v", all)
	}
}

// TestDropLogRate writes no more lines than it may, and says once a minute how much that
// leaves out. Whoever asks gets all.
func TestDropLogRate(t *testing.T) {
	for _, tt := range []struct {
		rate         float64
		burst, later int
	}{
		{0, 0, 0}, {0.01, 1, 0}, {0.5, 5, 5}, {10, 100, 100}, {1e6, 500, 500},
	} {
		log, lines := logLines()
		d := newDrops(dropsConfig{logRate: tt.rate}, "n1", shopNames(), log)
		now := time.Now()
		count := func() (denied, left int) {
			for _, line := range lines() {
				switch {
				case strings.HasPrefix(line, "msg=denied "):
					denied++
				case line != "":
					if _, err := fmt.Sscanf(line, `msg="denied packets of which no line tells, there were too many" count=%d`, &left); err != nil {
						t.Errorf("%s: %v", line, err)
					}
				}
			}
			return denied, left
		}
		for i := range 500 {
			d.add(tcpTo(i+1), now)
		}
		d.sweep(now)
		d.sweep(now.Add(time.Second))
		left := 500 - tt.burst
		if tt.rate == 0 {
			left = 0 // it was not asked to say anything
		}
		if n, m := count(); n != tt.burst || m != left {
			t.Errorf("%v lines a second: %d lines, and %d left out", tt.rate, n, m)
		}
		for i := range 500 {
			d.add(tcpTo(i+1000), now.Add(20*time.Second))
		}
		d.sweep(now.Add(20 * time.Second))
		if n, m := count(); n != tt.later || m > 0 {
			t.Errorf("%v lines a second: %d lines later, and %d left out", tt.rate, n, m)
		}
		if left = 500 - tt.later; tt.rate == 0 {
			left = 0
		}
		d.sweep(now.Add(foldFor))
		if n, m := count(); n > 0 || m != left {
			t.Errorf("%v lines a second: after a minute, %d lines, and %d left out", tt.rate, n, m)
		}
		if n := int(d.loggedPackets()); n != tt.burst+tt.later || int(d.leftOut()) != 1000-n {
			t.Errorf("%v lines a second: %d packets were logged, and %d left out", tt.rate, n, d.leftOut())
		}
		if all, _ := d.last(dropFilter{}, false); len(all) != 1000 {
			t.Errorf("%v lines a second: it keeps %d", tt.rate, len(all))
		}
	}
}

// TestDropsQueue counts what finds no room.
func TestDropsQueue(t *testing.T) {
	d := newDrops(defaultDropsConfig(), "n1", shopNames(), testLogger(t))
	for i := range maxQueued + 7 {
		d.take(tcpTo(i))
	}
	if d.leftOut() != 7 {
		t.Errorf("%d were left out", d.leftOut())
	}
	now := time.Now()
	for i := range maxFolded + 9 {
		d.add(tcpTo(i), now)
	}
	if want := uint64(7 + 9 + maxFolded - 100); d.leftOut() != want || d.loggedPackets() != 100 {
		t.Errorf("%d were left out, want %d", d.leftOut(), want)
	}
}

func TestDropsConfig(t *testing.T) {
	for rate, ok := range map[float64]bool{0: true, 0.1: true, 10: true, -1: false, math.Inf(1): false, math.NaN(): false} {
		c := dropsConfig{logRate: rate}
		if err := c.validate(); (err == nil) != ok {
			t.Errorf("%v: %v", rate, err)
		}
	}
}

// dropRules are rules that deny what comes to UDP ports from 53 on, as the agent's do.
// SAMPLE is where they sample.
const dropRules = `nft -f - <<'END'
table ip test {
	set sampled-ingress-v4 {
		type ipv4_addr
		size 4096
		flags dynamic
		timeout 1m
	}
	counter deny-ingress-a { }
	chain deny-ingress-a {
		SAMPLE log prefix "deny-ingress-a" group 24090 snaplen 128
		counter name deny-ingress-a drop
	}
	chain input {
		type filter hook input priority 0
		udp dport 53-55 goto deny-ingress-a
	}
}
END`

const sampled = "update @sampled-ingress-v4 { ip daddr limit rate 2/second burst 5 packets }"

func dialUDP(t *testing.T, port int) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 7)}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 9), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// runDrops runs d until the test ends.
func runDrops(t *testing.T, d *drops) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestDropsOfKernel tells of packets that the kernel's rules deny, and begins to as soon
// as it can.
func TestDropsOfKernel(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, strings.ReplaceAll(dropRules, "SAMPLE", sampled))
	other, err := nflog.Open(nflog.Options{Group: 24090, Take: func(nflog.Packet) {}})
	if err != nil {
		t.Fatal(err)
	}
	lines := make(lineWriter, 100)
	d := newDrops(defaultDropsConfig(), "n1", shopNames(), dropLogger(lines))
	defer runDrops(t, d)()
	const unseen = `msg="denied packets are not seen, but counted all the same" err="listen to group 24090 of nflog, as one program at a time can: `
	if line := <-lines; !strings.HasPrefix(line, unseen) || d.err() == nil {
		t.Errorf("it says %s; %v", line, d.err())
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if line := <-lines; line != `msg="denied packets are seen again"` || d.err() != nil {
		t.Errorf("it says %s; %v", line, d.err())
	}
	open, _ := followDrops(t.Context(), t, d)
	client, _ := open("follow=1&pod=db")
	for _, port := range []int{53, 54} {
		c := dialUDP(t, port)
		for range 3 {
			if _, err := c.Write([]byte("selvage")); err != nil {
				t.Fatal(err)
			}
		}
		want := fmt.Sprintf(`msg=denied source=shop/web destination=shop/db sourceAddress=127.0.0.7 destinationAddress=127.0.0.9 port=%d protocol=UDP `+
			`direction=ingress reason=Policy policies="[shop/closed shop/db]" interface=lo count=1`, port)
		if line := <-lines; line != want {
			t.Errorf("it says\n%s, want\n%s", line, want)
		}
		if got := portsOf(t, client.next(t)); got != strconv.Itoa(port) {
			t.Errorf("a client gets port %s", got)
		}
	}
}

// TestDropsFlood stands a flood, by rules that sample and by some that do not, as an
// agent's that someone has changed. Every packet of which the rules tell is accounted for.
func TestDropsFlood(t *testing.T) {
	const flood = "SELVAGE_TEST_FLOOD"
	if os.Getenv(flood) != "" {
		sendFlood(t)
		return
	}
	if !isolate.Test(t) {
		return
	}
	for _, sample := range []string{sampled, ""} {
		isolate.Sh(t, strings.ReplaceAll(dropRules, "SAMPLE", sample))
		d := newDrops(defaultDropsConfig(), "n1", shopNames(), slog.New(slog.DiscardHandler))
		stop := runDrops(t, d)
		awaitDrop(t, d, 55) // it listens
		began, before := time.Now(), usage(t)
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), flood+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		took, spent := time.Since(began), usage(t)-before
		t.Logf("sampled by %q: in %v, %v of a processor: %.1f %%", sample, took.Round(time.Millisecond), spent, 100*spent.Seconds()/took.Seconds())
		awaitDrop(t, d, 54) // it still does
		stop()
		seen := 0
		for _, known := range d.fold.kinds {
			seen += 1 + known.count
		}
		seen += len(d.queue)
		switch left := int(d.leftOut()); {
		case sample != "" && (left > 0 || seen > floodPackets/1000):
			t.Errorf("sampled: %d were seen, and %d left out", seen, left)
		case sample == "" && (left < floodPackets/2 || seen+left < floodPackets):
			t.Errorf("not sampled: %d were seen, and %d left out", seen, left)
		}
		isolate.Sh(t, "nft delete table ip test")
	}
}

// awaitDrop sends packets to a port until one of them is seen.
func awaitDrop(t *testing.T, d *drops, port int) {
	t.Helper()
	for c := dialUDP(t, port); ; time.Sleep(20 * time.Millisecond) {
		if _, err := c.Write([]byte("selvage")); err != nil {
			t.Fatal(err)
		}
		all, _ := d.last(dropFilter{}, false)
		if slices.ContainsFunc(all, func(n drop) bool { return int(n.Port) == port }) {
			return
		}
	}
}

// floodPackets in floodTime is what a flood is.
const (
	floodPackets = 150_000
	floodTime    = 1500 * time.Millisecond
)

// sendFlood sends as many packets a second as it is to.
func sendFlood(t *testing.T) {
	c := dialUDP(t, 53)
	began := time.Now()
	for i := range floodPackets {
		if _, err := c.Write([]byte("selvage")); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 {
			time.Sleep(time.Until(began.Add(floodTime * time.Duration(i) / floodPackets)))
		}
	}
}

// usage is how much of the processors this process has used.
func usage(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
