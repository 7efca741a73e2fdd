package tc

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/informer/link/isolate"
	"github.com/selvage-net/selvage/shaping"
)

// quiet lets a Shaper settle, and counts the rounds that do something afterwards.
func quiet(t *testing.T, observed <-chan Status) (rounds int, last Status) {
	t.Helper()
	drain := func() (n int) {
		for {
			select {
			case last = <-observed:
				n++
			default:
				return n
			}
		}
	}
	time.Sleep(300 * time.Millisecond)
	drain()
	time.Sleep(time.Second)
	return drain(), last
}

// TestReusedAddress has an address that two pods claim: it is the newer one's, whatever
// the other one's annotations say.
func TestReusedAddress(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p := addPod(t, 1)
	s, observed := newShaper(t, Options{}, p)
	start(t, s)
	claim := func(uid string, created int64, a annotations) {
		s.Change(func(model *shaping.Model) {
			sp := p.shaped()
			sp.Name, sp.UID, sp.Created, sp.Annotations = uid, uid, created, a
			model.SetPod(sp)
		})
	}
	rate := func(want string) {
		t.Helper()
		eventually(t, want, func() bool { return shaping.Rate(rootShown(t, "", "veth1").Options.Rate*8).String() == want })
	}
	claim("old", 1, limited("1M", "2M"))
	rate("1M")
	claim("new", 2, limited("3M", "4M"))
	rate("3M")
	if n, last := quiet(t, observed); n > 2 || last.Shaped != 1 || last.Repaired > 0 {
		t.Errorf("%d rounds, %+v", n, last)
	}
	claim("new", 2, nil)
	rate("unlimited")
	s.Change(func(model *shaping.Model) { model.RemovePod(shaping.Key{Namespace: "test", Name: "new"}) })
	rate("1M")
	claim("new", 2, nil)
	rate("unlimited")
}

// TestGoneWhileNarrowing has a pod's interface go away while its queue waits for being
// empty: it is looked for with pauses.
func TestGoneWhileNarrowing(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p := addPod(t, 1)
	var mu sync.Mutex
	gone := false
	s, observed := newShaper(t, Options{Find: func([]netip.Addr) (shaping.Interface, error) {
		mu.Lock()
		defer mu.Unlock()
		if gone {
			return shaping.Interface{}, os.ErrNotExist
		}
		return p.at, nil
	}})
	start(t, s)
	socks := newSockets(t, p, false)
	a := limited("200k", "")
	a[shaping.Ingress.BurstAnnotation()] = "1M"
	set(s, a, p)
	until(t, observed, "shaped", shaped(1))
	socks.send(t, true, 150, 1400)
	set(s, limited("100k", ""), p)
	eventually(t, "another rate", func() bool { return rootShown(t, "", "veth1").Options.Rate == 12_500 })
	mu.Lock()
	gone = true
	mu.Unlock()
	isolate.Sh(t, "ip link del veth1")
	s.Suspect(Change{Index: p.at.Index})
	if n, last := quiet(t, observed); n > 5 {
		t.Errorf("%d rounds in a second, %+v", n, last)
	}
}

// TestNoLimitNoProblem forgets that a pod could not be shaped once nobody wants it.
func TestNoLimitNoProblem(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p := addPod(t, 1)
	s, observed := newShaper(t, Options{Lasting: 50 * time.Millisecond})
	start(t, s)
	set(s, limited("1M", ""), p)
	until(t, observed, "told", func(s Status) bool { return len(s.Unshaped) == 1 })
	set(s, nil, p)
	until(t, observed, "forgotten", func(s Status) bool { return len(s.Unshaped) == 0 })
	if n, last := quiet(t, observed); n > 0 {
		t.Errorf("%d rounds, %+v", n, last)
	}
}

// TestForeignComes has somebody else take the root of a pod that is shaped there only.
func TestForeignComes(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p := addPod(t, 1)
	s, observed := newShaper(t, Options{}, p)
	start(t, s)
	set(s, limited("1M", ""), p)
	until(t, observed, "shaped", shaped(1))
	isolate.Sh(t, "tc qdisc replace dev veth1 root handle 9: pfifo limit 10")
	until(t, observed, "told", func(s Status) bool { return len(s.Unshaped) == 1 && s.Shaped == 0 })
}

// TestListingThatLacks asks for what a listing does not have.
func TestListingThatLacks(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p := addPod(t, 1)
	c := connect(t, p.at)
	look, err := c.listing()
	if err != nil {
		t.Fatal(err)
	}
	bring(t, c, p, shaping.Limits{{Rate: m}, {Rate: m}}, shaping.Options{}, false)
	for parent, want := range map[uint32]string{parentRoot: "tbf", parentHook: "clsact"} {
		// What there was at the time of the listing is the kernel's default.
		if q, err := look(p.at.Index, 0, parent); parent == parentHook && q.kind != want || err != nil {
			t.Errorf("%#x: %+v, %v", parent, q, err)
		}
	}
	l, err := c.ifb(p.ifb(shaping.Egress))
	if err != nil {
		t.Fatal(err)
	}
	if q, err := look(l.index, 0, parentRoot); q.kind != "tbf" || err != nil {
		t.Errorf("%+v, %v", q, err)
	}
	samples, err := c.sample(map[int]counted{l.index: {}, p.at.Index: {}, 99_999: {}})
	if err != nil || len(samples) != 2 {
		t.Errorf("%+v, %v", samples, err)
	}
}

// TestHookComes has somebody else make a clsact after it was looked for: it is not
// taken for ours.
func TestHookComes(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p := addPod(t, 1)
	c := connect(t, p.at)
	limits := shaping.Limits{shaping.Egress: {Rate: 10 * m}}
	plan := shaping.NewPlan(p.shaped(), limits, p.at, shaping.Options{})
	state, err := c.Read(plan)
	if err != nil {
		t.Fatal(err)
	}
	isolate.Sh(t, "tc qdisc add dev veth1 clsact")
	steps, _ := shaping.Diff(plan, state, false)
	for _, step := range steps {
		if err = c.Do(plan, step); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.EEXIST) {
		t.Fatalf("took it for ours: %v", err)
	}
	bring(t, c, p, limits, shaping.Options{}, false)
	bring(t, c, p, shaping.Limits{}, shaping.Options{}, false)
	if show := isolate.Sh(t, "tc qdisc show dev veth1; tc filter show dev veth1 ingress"); !strings.Contains(show, "clsact") || strings.Contains(show, "u32") {
		t.Error(show)
	}
}

// TestDrainsWait has a limit end for many pods at once, under load: a pod that starts
// does not wait for all of them.
func TestDrainsWait(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	var pods []pod
	for i := 1; i <= 12; i++ {
		pods = append(pods, addPod(t, i))
	}
	s, observed := newShaper(t, Options{}, pods...)
	start(t, s)
	old, young := pods[:11], pods[11]
	set(s, limited("100k", ""), old...)
	until(t, observed, "shaped", shaped(11))
	for _, p := range old { // at 100 kbit/s, each of these takes a tenth of a second
		newSockets(t, p, false).send(t, true, 6, 1300)
	}
	set(s, nil, old...)
	time.Sleep(20 * time.Millisecond)
	set(s, limited("5M", ""), young)
	eventually(t, "the young pod", func() bool { return rates(t, young) == "5M unlimited" })
	waiting := 0
	for _, p := range old {
		if rootShown(t, "", p.at.Name).Kind == "tbf" {
			waiting++
		}
	}
	t.Logf("%d pods were waiting", waiting)
	until(t, observed, "the others", shaped(1))
	eventually(t, "the end of the queues", func() bool { return strings.Count(isolate.Sh(t, "tc qdisc show"), "tbf") == 1 })
}

// TestAdoptLater has a pod found only some time after an agent has started, whose
// annotation cannot be used: what is in force stays in force.
func TestAdoptLater(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p := addPod(t, 1)
	s, observed := newShaper(t, Options{}, p)
	stop := start(t, s)
	set(s, limited("7M", "8M"), p)
	until(t, observed, "shaped", shaped(1))
	stop()
	s, observed = newShaper(t, Options{})
	start(t, s)
	set(s, limited("fast", "faster"), p)
	until(t, observed, "in doubt", func(s Status) bool { return len(s.Problems) == 2 })
	if got := rates(t, p); got != "7M 8M" {
		t.Errorf("while it is not found: %s", got)
	}
	s.working.Lock()
	s.options.Find = table(p)
	s.working.Unlock()
	s.Look()
	until(t, observed, "found", shaped(1))
	if got := rates(t, p); got != "7M 8M" {
		t.Errorf("once it is found: %s", got)
	}
}
