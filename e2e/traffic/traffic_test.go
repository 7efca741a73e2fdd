package traffic

import (
	"context"
	"errors"
	"math"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

var (
	_ Place = (*world.Namespace)(nil)
	_ Place = (*bench.Namespace)(nil)
)

// requireRoot skips a test that needs privileges, or fails it where a skip would
// hide that it never ran.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
		t.Fatal("NOT RUN: network namespaces need root")
	}
	t.Skip("SKIPPED, NOT TESTED: network namespaces need root")
}

// pods returns two pods of one node.
func pods(t *testing.T) (from, to *world.Pod) {
	t.Helper()
	requireRoot(t)
	w, err := world.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	node, err := w.AddNode(world.NodeOptions{Name: "node", PodCIDRs: []netip.Prefix{
		netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd44:1::/64"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	add := func(name string, addrs ...string) *world.Pod {
		o := world.PodOptions{Name: name, Attachment: world.Routed}
		for _, a := range addrs {
			o.Addrs = append(o.Addrs, netip.MustParseAddr(a))
		}
		p, err := node.AddPod(o)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	return add("from", "10.244.1.2", "fd44:1::2"), add("to", "10.244.1.3", "fd44:1::3")
}

func TestStream(t *testing.T) {
	from, to := pods(t)
	for f, frame := range map[policy.Family]int{policy.IPv4: 1448 + 66, policy.IPv6: 1428 + 86} {
		s := Stream{From: from, To: to, Addr: to.Addr(f), Congestion: "cubic", Length: 100 * time.Millisecond}
		r, err := s.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if r.Frame != frame || r.Frame != 1514 || len(r.Bytes) != 10 || r.Bytes[0] == 0 || r.Start.IsZero() {
			t.Errorf("%s: %+v", f, r)
		}
	}
}

func TestStreamIsHeldToWhatTheQueueLetsPass(t *testing.T) {
	from, to := pods(t)
	const rate, burst = 8_000_000, 20_000
	if _, err := to.Node.Run(t.Context(), "tc", "qdisc", "add", "dev", to.HostInterface, "root", "tbf",
		"rate", "8mbit", "burst", "20000", "limit", "30000"); err != nil {
		t.Fatal(err)
	}
	for _, f := range policy.Families {
		// The bucket fills in the meantime.
		time.Sleep(burst * 8 * time.Second / rate)
		r, err := Stream{From: from, To: to, Addr: to.Addr(f), Length: 500 * time.Millisecond}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// What the machine does can make it less, but never more: the whole
		// frames that the kernel counted.
		if most := uint64(rate/8/2 + burst + 2*1514); r.Total() > most {
			t.Errorf("%s: %d bytes passed, at most %d may", f, r.Total(), most)
		}
	}
}

func TestEchoAndDatagrams(t *testing.T) {
	from, to := pods(t)
	for _, f := range policy.Families {
		e, err := Echo{From: from, To: to, Addr: to.Addr(f), Interval: 5 * time.Millisecond, Length: 50 * time.Millisecond}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if e.Sent == 0 || e.Sent != len(e.Times)+e.Lost || e.Lost > 0 || e.Quantile(0) > e.Quantile(1) {
			t.Errorf("echo over %s: %+v", f, e)
		}
		d, err := Datagrams{From: from, To: to, Addr: to.Addr(f), Size: 500, Rate: 1e6, Length: 100 * time.Millisecond}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		frame := map[policy.Family]int{policy.IPv4: 542, policy.IPv6: 562}[f]
		if d.Frame != frame || d.Received == 0 || d.Received > d.Sent || d.Total() > uint64(d.Received*frame) {
			t.Errorf("datagrams over %s: %d of %d received, %d bytes in frames of %d", f, d.Received, d.Sent, d.Total(), d.Frame)
		}
	}
}

func TestEchoCountsWhatIsLost(t *testing.T) {
	from, to := pods(t)
	if err := to.Node.NFT(t.Context(), "table ip t { chain c { type filter hook forward priority 0; meta l4proto udp drop; }; }"); err != nil {
		t.Fatal(err)
	}
	e, err := Echo{From: from, To: to, Addr: to.Addr(policy.IPv4), Interval: 5 * time.Millisecond, Length: 20 * time.Millisecond}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if e.Sent == 0 || e.Lost != e.Sent || e.Quantile(0.5) != math.MaxInt64 {
		t.Errorf("%+v", e)
	}
}

func TestInterrupted(t *testing.T) {
	from, to := pods(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	start := time.Now()
	_, err := Stream{From: from, To: to, Addr: to.Addr(policy.IPv4), Length: time.Minute}.Run(ctx)
	if !errors.Is(err, context.Canceled) || time.Since(start) > 30*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}
