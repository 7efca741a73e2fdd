package nft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/conntrack"
)

// ledger is a Reclaimer that remembers what was asked of it, and what was in
// force then.
type ledger struct {
	mu    sync.Mutex
	calls []uint32
	fail  int
	// enter, if not nil, is called at the beginning of each call.
	enter func()
}

var errLedger = errors.New("conntrack is not in the mood")

func (l *ledger) Reclaim(mark policy.Mark) (int, error) {
	if l.enter != nil {
		l.enter()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail > 0 {
		l.fail--
		return 0, errLedger
	}
	l.calls = append(l.calls, policy.MarkMask(mark.Mask).Generation(mark.Value))
	return 1, nil
}

func (l *ledger) reclaimed() []uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.calls)
}

func with(r Reclaimer) func(*EnforcerOptions) {
	return func(o *EnforcerOptions) {
		o.Reclaimer, o.RetryReclaim = r, time.Millisecond
		o.Config.MarkMask = 0x3
	}
}

// tighten returns a policy that isolates more the greater n is.
func tighten(n int) policy.Delta {
	return policy.Delta{Object: allow("api", "api", "web", intstr.FromInt32(int32(1000+n)))}
}

// TestReclaimBeforeUse: with two bits there are three generations, so that each
// is used again soon. None may be put in force before it was reclaimed since it
// was last in force.
func TestReclaimBeforeUse(t *testing.T) {
	ns := newNamespace(t)
	l := &ledger{}
	e := newEnforcer(t, ns.open(t), with(l))
	c := newCluster()
	var inForce []uint32
	mustSync(t, e, story(c)[0]...)
	for n := range 10 {
		// How many were reclaimed when this one came into force?
		r := mustSync(t, e, tighten(n))
		inForce = append(inForce, r.Generation)
		calls := l.reclaimed()
		last := -1
		for i, g := range calls {
			if g == r.Generation {
				last = i
			}
		}
		if last < 0 {
			t.Fatalf("generation %d is in force and was not reclaimed: %v", r.Generation, calls)
		}
		// Two of three generations were reclaimed since the last one in force.
		if n > 0 && !slices.Contains(calls[max(0, len(calls)-3):], r.Generation) {
			t.Errorf("generation %d was reclaimed too long ago: %v", r.Generation, calls)
		}
	}
	if !slices.Equal(inForce[:4], []uint32{2, 3, 1, 2}) {
		t.Errorf("generations in force: %v", inForce)
	}
	e.Close()
	if n := e.ReclaimErrors(); n != 0 {
		t.Errorf("%d errors", n)
	}
}

// TestReclaimFails: a policy comes into force although its generation could not
// be reclaimed, and that is made up for.
func TestReclaimFails(t *testing.T) {
	ns := newNamespace(t)
	l := &ledger{}
	e := newEnforcer(t, ns.open(t), with(l))
	c := newCluster()
	mustSync(t, e, story(c)[0]...)
	l.mu.Lock()
	l.fail = 5
	l.mu.Unlock()
	mustSync(t, e, tighten(1))
	r := mustSync(t, e, tighten(2))
	if r.Generation != 3 {
		t.Fatalf("%+v", r)
	}
	// Generation 3 came into force unclean, and is made up for after 1 is ready.
	for !slices.Contains(l.reclaimed(), 3) || !slices.Contains(l.reclaimed()[1:], 1) {
		time.Sleep(time.Millisecond)
	}
	e.Close()
	if n := e.ReclaimErrors(); n != 5 {
		t.Errorf("%d errors", n)
	}
}

// TestReclaimIsAwaited: a bump waits for the reclaiming of its generation, and
// ends with the context.
func TestReclaimIsAwaited(t *testing.T) {
	ns := newNamespace(t)
	gate := make(chan struct{})
	l := &ledger{enter: func() { <-gate }}
	e := newEnforcer(t, ns.open(t), with(l))
	c := newCluster()
	go func() { gate <- struct{}{} }() // the first generation
	mustSync(t, e, story(c)[0]...)
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error)
	go func() {
		_, err := e.Sync(ctx, []policy.Delta{tighten(1)})
		failed <- err
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Fatalf("a bump did not wait for its generation: %v", err)
	}
	if e.InSync() {
		t.Error("in sync after a change that was not made")
	}
	close(gate)
	if r := mustSync(t, e); r.Generation != 2 || !r.Resynced {
		t.Errorf("%+v", r)
	}
	if calls := l.reclaimed(); len(calls) < 2 || calls[0] != 1 || calls[1] != 2 {
		t.Errorf("reclaimed %v", calls)
	}
}

// TestIdleFlowIsCutAfterAWrap lets a flow between two pods be judged once and
// then idle until its generation is used again, under a policy that denies it.
// With nothing to take generations back the flow would live, which shows that
// the test can tell.
func TestIdleFlowIsCutAfterAWrap(t *testing.T) {
	for name, tc := range map[string]struct {
		reclaim bool
		lives   bool
	}{"reclaimed": {true, false}, "not reclaimed": {false, true}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			opts := []func(*EnforcerOptions){with(nil)}
			if tc.reclaim {
				opts = append(opts, with(conntrack.Table{NetNS: int(w.node.handle)}))
			}
			e := newEnforcer(t, w.node.open(t), opts...)
			server, client := pod("api-0", testNode, "api", 2), pod("web-0", testNode, "web", 3)
			mustSync(t, e, policy.Delta{Object: node()}, policy.Delta{Object: shop()}, policy.Delta{Object: server}, policy.Delta{Object: client})
			first := e.Generation()
			if !w.echoes(t, patient) {
				t.Fatal("the flow does not work before any policy")
			}
			// The flow is idle from here on.
			for n := range 3 {
				mustSync(t, e, policy.Delta{Object: allow("api", "api", "nobody", intstr.FromInt32(int32(1000+n)))})
			}
			if e.Generation() != first {
				t.Fatalf("generation %d, which is not the first, %d, again", e.Generation(), first)
			}
			tries := impatient
			if tc.lives {
				tries = patient
			}
			if lives := w.echoes(t, tries); lives != tc.lives {
				t.Errorf("the flow lives: %t", lives)
			}
		})
	}
}

// world is a node with two pods behind routed veth pairs, and a UDP flow.
type world struct {
	node, server, client *namespace
	listener             *net.UDPConn
	flow                 *net.UDPConn
	sent                 int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{node: newNamespace(t), server: newNamespace(t), client: newNamespace(t)}
	w.node.run(t, "", "sysctl", "-qw", "net.ipv4.ip_forward=1")
	w.attach(t, w.server, "server", "10.1.0.2")
	w.attach(t, w.client, "client", "10.1.0.3")
	var err error
	w.server.do(t, func() { w.listener, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 7}) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.listener.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := w.listener.ReadFromUDP(b)
			if err != nil {
				return
			}
			if _, err := w.listener.WriteToUDP(b[:n], from); err != nil {
				return
			}
		}
	}()
	w.client.do(t, func() { w.flow, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 1, 0, 2), Port: 7}) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.flow.Close() })
	return w
}

// attach connects a pod to the node.
func (w *world) attach(t *testing.T, pod *namespace, name, addr string) {
	t.Helper()
	h := w.node.netlink(t)
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod.handle),
	}
	gateway := netip.MustParseAddr("169.254.1.1")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(h.LinkAdd(link))
	must(h.LinkSetUp(link))
	must(h.AddrAdd(link, &netlink.Addr{IPNet: netlink.NewIPNet(gateway.AsSlice())}))
	must(h.RouteAdd(&netlink.Route{LinkIndex: link.Index, Scope: netlink.SCOPE_LINK, Dst: netlink.NewIPNet(net.ParseIP(addr).To4())}))
	p := pod.netlink(t)
	eth0, err := p.LinkByName("eth0")
	must(err)
	must(p.LinkSetUp(eth0))
	must(p.AddrAdd(eth0, &netlink.Addr{IPNet: netlink.NewIPNet(net.ParseIP(addr).To4())}))
	must(p.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: netlink.NewIPNet(gateway.AsSlice())}))
	must(p.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gateway.AsSlice()}))
}

func (n *namespace) netlink(t *testing.T) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(n.handle)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// How often the flow is tried: where an answer must come, for as long as it
// may take a busy machine; where none may come, a few times.
const (
	patient   = 100
	impatient = 5
)

// echoes sends on the flow and tells whether an answer comes.
func (w *world) echoes(t *testing.T, tries int) bool {
	t.Helper()
	b := make([]byte, 64)
	for range tries {
		w.sent++
		want := fmt.Sprint(w.sent)
		if _, err := w.flow.Write([]byte(want)); err != nil {
			t.Fatal(err)
		}
		if err := w.flow.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		for {
			n, err := w.flow.Read(b)
			if err != nil {
				break
			}
			if string(b[:n]) == want {
				return true
			}
		}
	}
	return false
}
