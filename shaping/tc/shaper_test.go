package tc

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/selvage-net/selvage/informer/link/isolate"
	"github.com/selvage-net/selvage/shaping"
)

// rates returns what is in force for a pod, as tc says: bits per second to and from
// it, 0 for none.
func rates(t testing.TB, p pod) string {
	t.Helper()
	of := func(device string) int64 {
		if _, err := net.InterfaceByName(device); err != nil {
			return 0
		}
		if q := rootShown(t, "", device); q.Handle == "5e1a:" {
			return q.Options.Rate * 8
		}
		return 0
	}
	out := of(p.ifb(shaping.Egress))
	if out > 0 && !strings.Contains(isolate.Sh(t, "tc filter show dev "+p.at.Name+" ingress"), p.ifb(shaping.Egress)) {
		out = -1
	}
	return fmt.Sprintf("%s %s", shaping.Rate(of(p.at.Name)), shaping.Rate(out))
}

func shaped(n int) func(Status) bool { return func(s Status) bool { return s.Shaped == n } }

// TestShaper follows a pod from its start to its end.
func TestShaper(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p, other := addPod(t, 1), addPod(t, 2)
	s, observed := newShaper(t, Options{Defaults: shaping.Limits{shaping.Egress: {Rate: 3 * m}}}, p, other)
	start(t, s)
	time.Sleep(50 * time.Millisecond)
	if s.Ready() || len(observed) > 0 {
		t.Error("it did something before it knew anything")
	}
	is := func(want string) {
		t.Helper()
		eventually(t, want, func() bool { return rates(t, p) == want })
	}
	set(s, nil, other)
	until(t, observed, "shaped by default", shaped(1))
	if !s.Ready() {
		t.Error("not ready after the first round")
	}
	set(s, limited("10M", "20M"), p)
	until(t, observed, "shaped", shaped(2))
	is("10M 20M")
	set(s, limited("15M", "25M"), p)
	is("15M 25M")
	set(s, limited("15Mbit", ""), p)
	if st := until(t, observed, "in doubt", func(s Status) bool { return len(s.Problems) == 1 }); st.Problems[0].Annotation != shaping.Ingress.BandwidthAnnotation() {
		t.Errorf("%+v", st)
	}
	is("15M 3M")
	s.Change(func(model *shaping.Model) { model.SetNamespace("test", limited("", "4M")) })
	is("15M 4M")
	s.Change(func(model *shaping.Model) { model.SetNamespace("test", limited("", "four")) })
	until(t, observed, "the namespace in doubt", func(s Status) bool { return len(s.Problems) == 2 })
	s.Change(func(model *shaping.Model) { model.SetNamespace("test", limited("", "4M")) })
	until(t, observed, "the namespace as before", func(s Status) bool { return len(s.Problems) == 1 })
	// Another one of its name, by another interface.
	p2 := p
	isolate.Sh(t, "ip link del veth1; ip netns del pod1")
	p = addPod(t, 1)
	s.working.Lock()
	s.options.Find = table(p, other)
	s.working.Unlock()
	s.Change(func(model *shaping.Model) {
		sp := p.shaped()
		sp.UID, sp.Annotations = "reborn", limited("1M", "1M")
		model.SetPod(sp)
	})
	eventually(t, "1M", func() bool { return rootShown(t, "", "veth1").Options.Rate == 125_000 })
	if p2.at.Index == p.at.Index {
		t.Error("the same interface")
	}
	remove(s, p, other)
	until(t, observed, "gone", shaped(0))
	eventually(t, "the end of the IFBs", func() bool { return ifbs(t) == "" })
	if show := isolate.Sh(t, "tc qdisc show"); strings.Contains(show, "tbf") || strings.Contains(show, "clsact") {
		t.Errorf("left: %s", show)
	}
}

// TestRestart has one Shaper after the other, with changes in between: each takes over
// what it finds, and sends nothing if nothing is to be done.
func TestRestart(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	kept, changed, freed, gone, invalid, foreign := addPod(t, 1), addPod(t, 2), addPod(t, 3), addPod(t, 4), addPod(t, 5), addPod(t, 6)
	vanished := addPod(t, 7)
	all := []pod{kept, changed, freed, gone, invalid, foreign, vanished}
	isolate.Sh(t, "tc qdisc add dev veth6 root handle 1: htb")
	s, observed := newShaper(t, Options{}, all...)
	stop := start(t, s)
	set(s, limited("10M", "20M"), all...)
	until(t, observed, "shaped", shaped(7))
	stop()

	listen := func() (stop func() int) {
		ctx, cancel := context.WithCancel(t.Context())
		c := connect(t, shaping.Interface{})
		var mu sync.Mutex
		n := 0
		done := make(chan error)
		go func() { done <- c.Monitor(ctx, func(Change) { mu.Lock(); n++; mu.Unlock() }) }()
		// The first change that is heard tells that it listens.
		eventually(t, "the monitor", func() bool {
			isolate.Sh(t, "tc qdisc replace dev lo root pfifo limit 7")
			mu.Lock()
			defer mu.Unlock()
			return n > 0
		})
		time.Sleep(50 * time.Millisecond)
		mu.Lock()
		n = 0
		mu.Unlock()
		return func() int {
			time.Sleep(100 * time.Millisecond)
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			return n
		}
	}
	heard := listen()
	s, observed = newShaper(t, Options{}, all...)
	stop = start(t, s)
	set(s, limited("10M", "20M"), all...)
	until(t, observed, "shaped", shaped(7))
	stop()
	if n := heard(); n > 0 {
		t.Errorf("it changed %d things, though nothing was to be done", n)
	}

	// While nobody watches, pods go and others are annotated anew.
	isolate.Sh(t, "ip link del veth7")
	s, observed = newShaper(t, Options{}, kept, changed, freed, gone, invalid, foreign)
	stop = start(t, s)
	s.Change(func(model *shaping.Model) {
		for p, a := range map[*pod]annotations{&kept: limited("10M", "20M"), &changed: limited("11M", "22M"), &freed: nil, &invalid: limited("10Mbit", "many"), &foreign: limited("10M", "20M")} {
			sp := p.shaped()
			sp.Annotations = a
			model.SetPod(sp)
		}
	})
	st := until(t, observed, "shaped again", shaped(4))
	if len(st.Problems) != 2 || len(st.Unshaped) != 1 || st.Unshaped[0].Reason != ForeignQdisc || st.Unshaped[0].Pod.Name != foreign.name {
		t.Errorf("%+v", st)
	}
	for p, want := range map[*pod]string{
		&kept: "10M 20M", &changed: "11M 22M", &freed: "unlimited unlimited", &gone: "unlimited unlimited", &invalid: "10M 20M", &foreign: "unlimited 20M",
	} {
		if got := rates(t, *p); got != want {
			t.Errorf("%s: %s, want %s", p.name, got, want)
		}
	}
	var want []string
	for _, p := range []pod{kept, changed, invalid, foreign} {
		want = append(want, p.ifb(shaping.Egress))
	}
	slices.Sort(want)
	eventually(t, "the end of the other IFBs", func() bool { return ifbs(t) == strings.Join(want, " ") })
	if q := rootShown(t, "", "veth6"); q.Kind != "htb" || q.Handle != "1:" {
		t.Errorf("somebody's htb has become %+v", q)
	}
	stop()
	if n, err := connect(t, shaping.Interface{}).Cleanup(); err != nil || n == 0 {
		t.Errorf("cleaned up %d: %v", n, err)
	}
	if show := isolate.Sh(t, "tc qdisc show"); strings.Contains(show, "tbf") || strings.Contains(show, "clsact") || !strings.Contains(show, "htb") || ifbs(t) != "" {
		t.Errorf("left: %s", show)
	}
}

// TestRepair has somebody else remove and change what is in force.
func TestRepair(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p := addPod(t, 1)
	s, observed := newShaper(t, Options{}, p)
	start(t, s)
	set(s, limited("10M", "20M"), p)
	until(t, observed, "shaped", shaped(1))
	ifb := p.ifb(shaping.Egress)
	links := make(chan struct{})
	go func() { // what the link's notifications do
		for range links {
			s.Suspect(Change{})
		}
	}()
	defer close(links)
	for i, harm := range []string{
		"tc qdisc del dev veth1 root",
		"tc qdisc replace dev veth1 root tbf rate 1gbit burst 100000 limit 100000",
		"tc qdisc change dev veth1 root handle 5e1a: tbf rate 1gbit burst 100000 limit 100000",
		"tc qdisc replace dev veth1 root pfifo limit 10; tc qdisc del dev veth1 root",
		"tc qdisc del dev IFB root",
		"tc filter del dev veth1 ingress",
		"tc qdisc del dev veth1 clsact",
		"ip link del IFB",
		"ip link set IFB down",
	} {
		isolate.Sh(t, strings.ReplaceAll(harm, "IFB", ifb))
		if strings.HasPrefix(harm, "ip link") {
			links <- struct{}{}
		}
		// One command may be heard, and repaired, in two steps.
		until(t, observed, "repaired: "+harm, func(st Status) bool { return st.Repaired > i })
		eventually(t, harm, func() bool { return rates(t, p) == "10M 20M" })
		if up := isolate.Sh(t, "ip -br link show dev "+ifb); !strings.Contains(up, ",UP") {
			t.Errorf("%s: %s", harm, up)
		}
	}
	// A root that is really somebody else's is left alone, and told.
	isolate.Sh(t, "tc qdisc replace dev veth1 root handle 1: htb")
	st := until(t, observed, "told", func(st Status) bool { return len(st.Unshaped) == 1 })
	if st.Unshaped[0].Reason != ForeignQdisc || !strings.Contains(st.Unshaped[0].Err.Error(), "htb") {
		t.Errorf("%+v", st.Unshaped)
	}
	isolate.Sh(t, "tc qdisc del dev veth1 root")
	until(t, observed, "shaped again", func(st Status) bool { return len(st.Unshaped) == 0 })
	eventually(t, "the rate", func() bool { return rates(t, p) == "10M 20M" })
}

// TestUnshaped has pods that cannot be shaped, for every reason that there is.
func TestUnshaped(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p := addPod(t, 1)
	lost, host, defaulted := addPod(t, 2), addPod(t, 3), addPod(t, 4)
	s, observed := newShaper(t, Options{Defaults: shaping.Limits{{Rate: 5 * m}}, Lasting: 300 * time.Millisecond}, p)
	start(t, s)
	s.Change(func(model *shaping.Model) {
		for q, change := range map[*pod]func(*shaping.Pod){
			&p: func(*shaping.Pod) {}, &lost: func(*shaping.Pod) {},
			&host:      func(sp *shaping.Pod) { sp.HostNetwork, sp.Annotations = true, limited("1M", "") },
			&defaulted: func(sp *shaping.Pod) { sp.HostNetwork = true }, // nobody has asked for that
		} {
			sp := q.shaped()
			change(&sp)
			model.SetPod(sp)
		}
	})
	st := until(t, observed, "shaped", func(st Status) bool { return st.Shaped == 1 && len(st.Unshaped) == 1 })
	if st.Unshaped[0].Reason != HostNetwork || st.Unshaped[0].Pod.Name != host.name {
		t.Errorf("%+v", st.Unshaped)
	}
	st = until(t, observed, "told of the one without interface", func(st Status) bool { return len(st.Unshaped) == 2 })
	if st.Unshaped[0].Reason != NoInterface || st.Unshaped[0].Pod.Name != lost.name || st.Failed > 0 {
		t.Errorf("%+v", st)
	}
	s.working.Lock()
	s.options.Find = table(p, lost)
	s.working.Unlock()
	s.Look()
	until(t, observed, "found", func(st Status) bool { return st.Shaped == 2 && len(st.Unshaped) == 1 })
	if got := rates(t, lost); got != "5M unlimited" {
		t.Error(got)
	}
}

// TestSamples compares what is counted with what was sent.
func TestSamples(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p, mac := addPod(t, 1), addMacvlan(t)
	s, observed := newShaper(t, Options{}, p, mac)
	start(t, s)
	set(s, limited("10M", "20M"), p, mac)
	until(t, observed, "shaped", shaped(2))
	socks := newSockets(t, p, false)
	read := func() map[string]Sample {
		samples, err := s.Samples()
		if err != nil {
			t.Fatal(err)
		}
		found := make(map[string]Sample)
		for _, x := range samples {
			found[x.Pod.Name+" "+x.Direction.String()] = x
		}
		return found
	}
	before := read()
	if len(before) != 4 {
		t.Fatalf("%+v", before)
	}
	const n, size = 10, 158 // 200 bytes each with the headers
	for _, toPod := range []bool{true, false} {
		socks.send(t, toPod, n, size)
		socks.receive(t, toPod, n)
	}
	after := read()
	for _, d := range shaping.Directions() {
		a, b := after[p.name+" "+d.String()], before[p.name+" "+d.String()]
		packets, bytes := a.Counters.Packets-b.Counters.Packets, a.Counters.Bytes-b.Counters.Bytes
		// The kernel's own neighbour discovery may be among them.
		if packets < n || packets > n+5 || bytes < n*200 || bytes > n*200+500 || a.Counters.Drops != 0 {
			t.Errorf("%s: %d packets, %d bytes: %+v", d, packets, bytes, a)
		}
	}
	if r := after["pod1 ingress"].Rate; r != 10*m {
		t.Errorf("rate %s", r)
	}
	if r := after["mac egress"].Rate; r != 20*m {
		t.Errorf("rate %s", r)
	}
	// Whoever is connected to a namespace keeps it alive.
	isolate.Sh(t, "ip netns del mac")
	eventually(t, "the end of the namespace", func() bool { return !strings.Contains(isolate.Sh(t, "ip -br link"), "alive") })
	if n := len(read()); n != 2 {
		t.Errorf("%d samples", n)
	}
	remove(s, mac)
	until(t, observed, "gone", shaped(1))
}

// TestMany shapes 250 pods at once, changes them all, and has them go.
func TestMany(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	const n = 250
	var pods []pod
	var script strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&script, "link add veth%d type veth peer name peer%d\nlink set veth%d up\n", i, i, i)
	}
	file := t.TempDir() + "/batch"
	if err := os.WriteFile(file, []byte(script.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	isolate.Sh(t, "ip -batch "+file)
	for i := 1; i <= n; i++ {
		name := fmt.Sprintf("pod%d", i)
		pods = append(pods, pod{name: name, addr: netip.AddrFrom4([4]byte{10, 1, byte(i / 256), byte(i % 256)}), at: interfaceNamed(t, fmt.Sprintf("veth%d", i))})
	}
	s, observed := newShaper(t, Options{}, pods...)
	start(t, s)
	began := time.Now()
	took := func(what string) {
		t.Logf("%s: %v", what, time.Since(began).Round(time.Millisecond))
		began = time.Now()
	}
	set(s, limited("10M", "20M"), pods...)
	until(t, observed, "shaped", shaped(n))
	took("shaped")
	for _, p := range []pod{pods[0], pods[100], pods[n-1]} {
		if got := rates(t, p); got != "10M 20M" {
			t.Errorf("%s: %s", p.name, got)
		}
	}
	began = time.Now()
	set(s, limited("11M", "21M"), pods...)
	eventually(t, "another rate", func() bool { return rates(t, pods[n-1]) == "11M 21M" })
	took("changed")
	if _, err := s.Samples(); err != nil {
		t.Error(err)
	}
	took("counted")
	remove(s, pods...)
	until(t, observed, "gone", shaped(0))
	took("removed")
	eventually(t, "the end of the IFBs", func() bool { return ifbs(t) == "" })
}
