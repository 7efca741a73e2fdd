package tc

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/selvage-net/selvage/informer/link/isolate"
	"github.com/selvage-net/selvage/shaping"
)

// stream has one end of the pod send to the other as fast as it goes, in packets as
// large as the kernel makes them, until the test ends. It returns how many bytes have
// arrived so far.
func stream(t *testing.T, p pod, toPod bool) *atomic.Int64 {
	t.Helper()
	var l net.Listener
	var from net.Conn
	listen := func(addr string) (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(addr, "0"))
		return err
	}
	dial := func() (err error) {
		from, err = net.Dial("tcp", l.Addr().String())
		return err
	}
	if toPod {
		p.within(t, func() error { return listen(p.addr.String()) })
	} else if err := listen("10.1.255.254"); err != nil {
		t.Fatal(err)
	}
	if !toPod {
		p.within(t, dial)
	} else if err := dial(); err != nil {
		t.Fatal(err)
	}
	to, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = from.Close(); _ = to.Close(); _ = l.Close() })
	arrived := new(atomic.Int64)
	go func() {
		for data := make([]byte, 1<<20); ; {
			if _, err := from.Write(data); err != nil {
				return
			}
		}
	}()
	go func() {
		for data := make([]byte, 1<<20); ; {
			n, err := to.Read(data)
			arrived.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	return arrived
}

// TestLowerUnderLoad lowers the limit of a stream again and again, in both directions.
// What waits is larger than what the new bucket takes, and must not wait for ever; in
// the end there is the bucket that was asked for.
func TestLowerUnderLoad(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	for i, toPod := range []bool{true, false} {
		p := addPod(t, i+1)
		s, observed := newShaper(t, Options{}, p)
		stop := start(t, s)
		arrived := stream(t, p, toPod)
		for round, rate := range []string{"200M", "20M", "100M", "5M", "50M", "20M", "2M"} {
			if set(s, limited(rate, rate), p); round == 0 {
				until(t, observed, "shaped", shaped(1))
			}
			want, err := shaping.ParseRate(rate)
			if err != nil {
				t.Fatal(err)
			}
			device := map[bool]string{true: p.at.Name, false: p.ifb(shaping.Egress)}[toPod]
			eventually(t, rate, func() bool {
				got := rootShown(t, "", device)
				return shaping.Rate(got.Options.Rate*8) == want
			})
			for range 3 { // what was on its way, and then some
				before := arrived.Load()
				eventually(t, "bytes at "+rate, func() bool { return arrived.Load() > before })
				time.Sleep(20 * time.Millisecond)
			}
		}
		plan := shaping.NewPlan(p.shaped(), shaping.Limits{{Rate: 2 * m}, {Rate: 2 * m}}, p.at, options(t, connect(t, p.at)))
		set(s, nil, p) // and the stream comes to an end
		until(t, observed, "unshaped", shaped(0))
		set(s, limited("2M", "2M"), p)
		until(t, observed, "shaped", shaped(1))
		state, err := connect(t, p.at).Read(plan)
		if err != nil {
			t.Fatal(err)
		}
		if steps, _ := shaping.Diff(plan, state, false); len(steps) > 0 {
			t.Errorf("left to do: %v", steps)
		}
		stop()
	}
}

// TestNarrowingEnds has a queue reach its last parameters when it has become empty.
func TestNarrowingEnds(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p := addPod(t, 1)
	s, observed := newShaper(t, Options{}, p)
	start(t, s)
	set(s, limited("1G", ""), p)
	until(t, observed, "shaped", shaped(1))
	c := connect(t, p.at)
	read := func() shaping.Queue {
		state, err := c.Read(shaping.Plan{Pod: p.shaped(), Interface: p.at})
		if err != nil || state.Root.Queue == nil {
			t.Fatalf("%+v: %v", state, err)
		}
		return *state.Root.Queue
	}
	set(s, limited("10M", ""), p)
	eventually(t, "the rate", func() bool { return read().Bucket.Rate == 1_250_000 })
	if q := read(); q.Bucket.Largest != 8_000 || q.Bucket.Burst < 120_000 {
		t.Errorf("in between: %+v", q)
	}
	eventually(t, "the burst", func() bool { q := read(); return q.Bucket.Largest == 0 && q.Bucket.Burst <= 8_000 })
	last := until(t, observed, "told", func(Status) bool { return true })
	for drained := false; !drained; {
		select {
		case last = <-observed:
		default:
			drained = true
		}
	}
	if last.Repaired > 0 || last.Failed > 0 {
		t.Errorf("%+v", last)
	}
}

// TestStuck looks at queues that send nothing.
func TestStuck(t *testing.T) {
	at := time.Now()
	queue := func(sent uint64, empty bool) shaping.State {
		return shaping.State{Root: shaping.Root{Queue: &shaping.Queue{
			Bucket: shaping.Bucket{Rate: 125_000, Burst: 125_000, Largest: 6000}, Sent: sent, Empty: empty, // 1 s
		}}}
	}
	var n narrowing
	for i, step := range []struct {
		after time.Duration
		sent  uint64
		empty bool
		stuck bool
	}{
		{0, 10, false, false}, {500 * time.Millisecond, 20, false, false}, {2900 * time.Millisecond, 20, false, false},
		{700 * time.Millisecond, 20, false, true}, {time.Second, 21, false, false}, {10 * time.Second, 21, true, false},
	} {
		at = at.Add(step.after)
		s := queue(step.sent, step.empty)
		n.check(s, at)
		if s.Root.Queue.Stuck != step.stuck {
			t.Errorf("step %d: stuck is %v", i, s.Root.Queue.Stuck)
		}
		n.set(s, at)
	}
	if n.set(shaping.State{}, at); n.on {
		t.Error("it goes on without any such queue")
	}
}
