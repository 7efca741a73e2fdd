package bandwidth

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/traffic"
	"github.com/selvage-net/selvage/e2e/world"
)

// The limit of most tests, as an annotation and as a number. It is low enough for a
// machine that is busy with other tests.
const (
	rate     = "20M"
	rateBits = 20e6
)

// TestGoodput has a stream and datagrams held to the limit, each way, in both
// families, for a pod on the bridge and a routed one.
func TestGoodput(t *testing.T) {
	s := newStage(t)
	free := s.add("free", world.Routed, "", "")
	for _, how := range []world.Attachment{world.Bridged, world.Routed} {
		s.add("held-"+how.String(), how, rate, rate)
	}
	s.start()
	must(t, s.agent.WaitMetric(t.Context(), "selvage_shaped_pods", 2))
	for _, held := range s.node.Pods()[1:] {
		for _, f := range families() {
			for _, way := range []struct {
				name     string
				from, to *world.Pod
			}{{"to", free, held}, {"from", held, free}} {
				name := fmt.Sprintf("%s %s, %s", way.name, held.Name, f)
				stream, err := traffic.Stream{From: way.from, To: way.to, Addr: way.to.Addr(f), Length: 1500 * time.Millisecond}.Run(t.Context())
				must(t, err)
				if got := stream.Rate(0, 1500*time.Millisecond); !within(got, rateBits, .7, 1.1) {
					t.Errorf("%s: a stream of %.1f Mbit/s", name, got/1e6)
				}
				burst, err := traffic.Datagrams{From: way.from, To: way.to, Addr: way.to.Addr(f), Size: 1200, Rate: 2 * rateBits, Length: time.Second}.Run(t.Context())
				must(t, err)
				if got := burst.Rate(0, time.Second); !within(got, rateBits, .7, 1.1) {
					t.Errorf("%s: datagrams of %.1f Mbit/s", name, got/1e6)
				}
			}
		}
	}
}

// TestSecondOpinion asks iperf3.
func TestSecondOpinion(t *testing.T) {
	s := newStage(t)
	free, held := s.add("free", world.Routed, "", ""), s.add("held", world.Bridged, rate, rate)
	s.start()
	must(t, s.agent.WaitMetric(t.Context(), "selvage_shaped_pods", 1))
	addr := free.Addrs()[0].String()
	server := exec.CommandContext(t.Context(), "iperf3", "-s", "-B", addr)
	must(t, free.Start(server))
	defer func() { _ = server.Process.Kill(); _ = server.Wait() }()
	for _, reverse := range []string{"", "-R"} {
		var report struct {
			Error string
			End   struct {
				Received struct {
					Rate float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			}
		}
		// Until its server listens, and has done with the test before. With -J it exits
		// with 0 whatever happened, and writes the error into the report.
		s.eventually("iperf3", func() bool {
			args := strings.Fields("-c " + addr + " -t 2 -J " + reverse)
			out, err := held.Run(t.Context(), "iperf3", args...)
			report.Error = ""
			return err == nil && json.Unmarshal([]byte(out), &report) == nil && report.Error == ""
		})
		// It counts the payload.
		if got := report.End.Received.Rate * 1514 / 1448; !within(got, rateBits, .7, 1.1) {
			t.Errorf("iperf3 %s: %.1f Mbit/s", reverse, got/1e6)
		}
	}
}

// TestSameNode holds traffic between two pods of one bridge to the limits of both.
func TestSameNode(t *testing.T) {
	s := newStage(t)
	slow, fast := s.add("slow", world.Bridged, "8M", "16M"), s.add("fast", world.Bridged, "100M", "12M")
	s.start()
	must(t, s.agent.WaitMetric(t.Context(), "selvage_shaped_pods", 2))
	for _, way := range []struct {
		from, to *world.Pod
		want     float64
	}{{slow, fast, 16e6}, {fast, slow, 8e6}} {
		r, err := traffic.Stream{From: way.from, To: way.to, Addr: way.to.Addrs()[0], Length: 2 * time.Second}.Run(t.Context())
		must(t, err)
		if got := r.Rate(0, 2*time.Second); !within(got, way.want, .7, 1.1) {
			t.Errorf("from %s to %s: %.1f Mbit/s, want %.1f", way.from.Name, way.to.Name, got/1e6, way.want/1e6)
		}
	}
}

// TestExcludedTraffic leaves out one peer, and holds another to the limit, each way.
func TestExcludedTraffic(t *testing.T) {
	const blocks = "10.177.0.11/32,fd00:177::b/128"
	s := newStage(t, "--exclude-cidrs="+blocks)
	near, far := s.add("near", world.Routed, "", ""), s.add("far", world.Routed, "", "")
	held := s.add("held", world.Bridged, rate, rate)
	if !strings.Contains(blocks, near.Addrs()[0].String()+"/") {
		t.Fatalf("the first pod has %v", near.Addrs())
	}
	s.start()
	must(t, s.agent.WaitMetric(t.Context(), "selvage_shaped_pods", 1))
	for _, f := range families() {
		for _, peer := range []*world.Pod{near, far} {
			for _, way := range [][2]*world.Pod{{peer, held}, {held, peer}} {
				r, err := traffic.Stream{From: way[0], To: way[1], Addr: way[1].Addr(f), Length: time.Second}.Run(t.Context())
				must(t, err)
				got := r.Rate(0, time.Second)
				if peer == far && !within(got, rateBits, .7, 1.1) || peer == near && got < 2*rateBits {
					t.Errorf("from %s to %s, %s: %.1f Mbit/s", way[0].Name, way[1].Name, f, got/1e6)
				}
			}
		}
	}
}

// TestMacvlan holds a pod to its limits that has no interface on the node.
func TestMacvlan(t *testing.T) {
	s := newStage(t)
	// The peers are two macvlan interfaces of the same uplink.
	ctx := t.Context()
	var ends []*world.Pod
	for _, name := range []string{"one", "two"} {
		p := s.add(name, world.Routed, "", "")
		addr := fmt.Sprintf("10.178.0.%d", len(ends)+1)
		_, err := s.node.Run(ctx, "ip", "link", "add", "link", "eth0", "name", "mac"+name, "type", "macvlan", "mode", "bridge")
		must(t, err)
		_, err = s.node.Run(ctx, "ip", "link", "set", "mac"+name, "netns", p.ID)
		must(t, err)
		for _, line := range []string{"link set mac" + name + " up", "addr add " + addr + "/24 dev mac" + name} {
			_, err = p.Run(ctx, "ip", strings.Fields(line)...)
			must(t, err)
		}
		s.declare(name, []netip.Addr{netip.MustParseAddr(addr)}, map[string]string{"one": "10M"}[name], map[string]string{"one": rate}[name])
		ends = append(ends, p)
	}
	s.start()
	must(t, s.agent.WaitMetric(ctx, "selvage_shaped_pods", 1))
	for _, way := range []struct {
		from, to int
		want     float64
	}{{0, 1, rateBits}, {1, 0, 10e6}} {
		addr := netip.MustParseAddr(fmt.Sprintf("10.178.0.%d", way.to+1))
		r, err := traffic.Stream{From: ends[way.from], To: ends[way.to], Addr: addr, Length: 2 * time.Second}.Run(ctx)
		must(t, err)
		if got := r.Rate(0, 2*time.Second); !within(got, way.want, .7, 1.1) {
			t.Errorf("from %s: %.1f Mbit/s, want %.1f", ends[way.from].Name, got/1e6, way.want/1e6)
		}
	}
	for _, q := range s.qdiscs() {
		if q.Handle == "5e1a:" {
			t.Errorf("a queue on the node: %+v", q)
		}
	}
}

// TestLive changes the limit of a stream that goes on, has the agent killed, and takes
// the limit away.
func TestLive(t *testing.T) {
	s := newStage(t)
	free, held := s.add("free", world.Routed, "", ""), s.add("held", world.Bridged, "10M", "")
	s.start()
	must(t, s.agent.WaitMetric(t.Context(), "selvage_shaped_pods", 1))
	const phase = 1500 * time.Millisecond
	var r traffic.StreamResult
	var failed error
	var wg sync.WaitGroup
	wg.Go(func() {
		r, failed = traffic.Stream{From: free, To: held, Addr: held.Addrs()[0], Length: 4 * phase}.Run(t.Context())
	})
	time.Sleep(phase)
	s.limit("held", "40M", "")
	s.write()
	time.Sleep(phase)
	must(t, s.agent.Kill()) // the kernel goes on
	time.Sleep(phase)
	must(t, s.agent.Start())
	must(t, s.agent.WaitReady(t.Context()))
	s.limit("held", "", "")
	s.write()
	wg.Wait()
	must(t, failed)
	for i, want := range []float64{10e6, 40e6, 40e6} {
		// The last second of each phase: what was before is over.
		if got := r.Rate(time.Duration(i)*phase+phase/3, time.Duration(i+1)*phase-phase/10); !within(got, want, .6, 1.2) {
			t.Errorf("phase %d: %.1f Mbit/s, want %.1f", i, got/1e6, want/1e6)
		}
	}
	if got := r.Rate(4*phase-phase/3, 4*phase); got < 80e6 {
		t.Errorf("without a limit: %.1f Mbit/s", got/1e6)
	}
	if n := len(s.rates()); n > 0 {
		t.Errorf("%d queues are left", n)
	}
}

// TestChurn has pods and limits come, change and go, with an agent that is killed in
// between, under load. A pod that stays loses nothing, and in the end every pod has the
// limit that was said last.
func TestChurn(t *testing.T) {
	s := newStage(t)
	server, steady := s.add("server", world.Routed, "", ""), s.add("steady", world.Bridged, rate, rate)
	s.start()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	const length = 8 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), length+20*time.Second)
	defer cancel()
	var echo traffic.EchoResult
	var load traffic.DatagramResult
	var errs [2]error
	var wg sync.WaitGroup
	wg.Go(func() {
		echo, errs[0] = traffic.Echo{From: server, To: steady, Addr: steady.Addrs()[0], Interval: 5 * time.Millisecond, Length: length}.Run(ctx)
	})
	wg.Go(func() {
		// So little that what a sender has to catch up with that got no processor for
		// 200 ms finds room in the queue.
		load, errs[1] = traffic.Datagrams{From: steady, To: server, Addr: server.Addrs()[0], Size: 1000, Rate: rateBits / 8, Length: length}.Run(ctx)
	})
	var alive []*world.Pod
	for began, n := time.Now(), 0; time.Since(began) < length; n++ {
		switch k := rng.IntN(10); {
		case len(alive) < 8 || k < 3 && len(alive) < 30:
			alive = append(alive, s.add(fmt.Sprintf("pod%d", n), world.Bridged, mbit(rng), mbit(rng)))
		case k < 5:
			i := rng.IntN(len(alive))
			p := alive[i]
			alive = slices.Delete(alive, i, i+1)
			delete(s.pods, p.Name)
			if rng.IntN(2) == 0 { // the API says so before, or after
				s.write()
			}
			must(t, p.Close())
		case k == 9 && rng.IntN(4) == 0:
			must(t, s.agent.Kill())
			must(t, s.agent.Start())
		default:
			s.limit(alive[rng.IntN(len(alive))].Name, mbit(rng), mbit(rng))
			s.limit("steady", strconv.Itoa(20+rng.IntN(5))+"M", strconv.Itoa(20+rng.IntN(5))+"M")
		}
		s.write()
		time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
	}
	wg.Wait()
	must(t, errs[0])
	must(t, errs[1])
	if echo.Lost > 0 || echo.Sent < 500 {
		t.Errorf("lost %d of %d echoes", echo.Lost, echo.Sent)
	}
	if load.Received != load.Sent || load.Sent < 1000 {
		t.Errorf("%d of %d datagrams arrived", load.Received, load.Sent)
	}
	must(t, s.agent.WaitReady(ctx))
	s.checkSettled(alive)
}

// mbit draws an annotation, empty at times.
func mbit(rng *rand.Rand) string {
	if rng.IntN(4) == 0 {
		return ""
	}
	return strconv.Itoa(1+rng.IntN(90)) + "M"
}

// checkSettled compares all queues of the node with what the pods' annotations say.
func (s *stage) checkSettled(alive []*world.Pod) {
	s.t.Helper()
	want := map[int64]int{}
	shaped := 0
	for _, p := range s.pods {
		if len(p.Annotations) > 0 {
			shaped++
		}
		for _, v := range p.Annotations {
			n, err := strconv.Atoi(strings.TrimSuffix(v, "M"))
			must(s.t, err)
			want[int64(n)*1e6]++
		}
	}
	same := func() bool { return fmt.Sprint(s.rates()) == fmt.Sprint(want) }
	s.eventually(fmt.Sprintf("%d pods with %v", len(alive), want), same)
	must(s.t, s.agent.WaitMetric(s.t.Context(), "selvage_shaped_pods", shaped))
	ifbs, err := s.node.Run(s.t.Context(), "ip", "-br", "link", "show", "type", "ifb")
	must(s.t, err)
	out := 0
	for _, p := range s.pods {
		if p.Annotations["kubernetes.io/egress-bandwidth"] != "" {
			out++
		}
	}
	if n := strings.Count(ifbs, "selve-"); n != out || strings.Contains(ifbs, "selvi-") {
		s.t.Errorf("%d pods are limited in egress, and there are the IFBs\n%s", out, ifbs)
	}
}
