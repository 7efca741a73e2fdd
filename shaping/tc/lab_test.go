package tc

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/informer/link/isolate"
	"github.com/selvage-net/selvage/shaping"
)

// Rates.
const (
	k = shaping.Rate(1_000)
	m = 1_000 * k
	g = 1_000 * m
)

// pod is a network namespace with eth0, the other end of a veth on the node.
type pod struct {
	name  string
	at    shaping.Interface
	addr  netip.Addr
	addr6 netip.Addr
}

// addPod makes pod number n, with the addresses 10.1.n/256.n%256 and fd01::n. The
// node is 10.1.255.254 and fd01::ffff to it.
func addPod(t testing.TB, n int) pod {
	t.Helper()
	p := pod{
		name: fmt.Sprintf("pod%d", n), addr: netip.AddrFrom4([4]byte{10, 1, byte(n / 256), byte(n % 256)}),
		addr6: netip.AddrFrom16([16]byte{0: 0xfd, 1: 1, 14: byte(n / 256), 15: byte(n % 256)}),
	}
	isolate.Sh(t, strings.NewReplacer("POD", p.name, "VETH", "veth"+fmt.Sprint(n), "A4", p.addr.String(), "A6", p.addr6.String()).Replace(`
		ip netns add POD
		ip link add VETH type veth peer name eth0 netns POD
		ip addr add 10.1.255.254/32 dev VETH; ip addr add fd01::ffff/128 dev VETH nodad
		ip link set VETH up; ip route add A4/32 dev VETH src 10.1.255.254; ip -6 route add A6/128 dev VETH
		ip -n POD link set lo up; ip -n POD link set eth0 up
		ip -n POD addr add A4/16 dev eth0; ip -n POD addr add A6/64 dev eth0 nodad`))
	p.at = interfaceNamed(t, "veth"+fmt.Sprint(n))
	return p
}

// addMacvlan makes a pod whose interface has no end on the node. It has a veth besides
// whose end on the node, "alive", is there as long as the pod's namespace.
func addMacvlan(t testing.TB) pod {
	t.Helper()
	isolate.Sh(t, `ip link add uplink type veth peer name other; ip link set uplink up; ip link set other up
		ip netns add mac; ip link add eth0 link uplink netns mac type macvlan mode bridge; ip -n mac link set eth0 up
		ip link add alive type veth peer name alive netns mac`)
	p := pod{name: "mac", addr: netip.MustParseAddr("10.1.0.99")}
	p.within(t, func() error { p.at = interfaceNamed(t, "eth0"); return nil })
	var stat unix.Stat_t
	p.at.NetNS = "/run/netns/mac"
	if err := unix.Stat(p.at.NetNS, &stat); err != nil {
		t.Fatal(err)
	}
	p.at.NetNSInode = stat.Ino
	return p
}

// interfaceNamed returns an interface of the node.
func interfaceNamed(t testing.TB, name string) shaping.Interface {
	t.Helper()
	i, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return shaping.Interface{Index: i.Index, Name: name, Frame: i.MTU + shaping.EthernetHeader}
}

func (p pod) shaped() shaping.Pod {
	return shaping.Pod{Key: shaping.Key{Namespace: "test", Name: p.name}, UID: "uid-" + p.name, Addrs: []netip.Addr{p.addr, p.addr6}}
}

func (p pod) ifb(d shaping.Direction) string { return shaping.IFBName(p.shaped(), d) }

// within runs f on a thread in the pod's namespace. Sockets that it opens stay there.
func (p pod) within(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err == nil {
			defer home.Close()
			err = p.enter(f)
			// Should that fail, the thread stays locked, and ends with the goroutine.
			if back := netns.Set(home); back == nil {
				runtime.UnlockOSThread()
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("in %s: %v", p.name, err)
	}
}

// enter moves the thread into the pod's namespace, and calls f there.
func (p pod) enter(f func() error) error {
	ns, err := netns.GetFromName(p.name)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return err
	}
	return f()
}

// connect opens a connection that ends with the test.
func connect(t testing.TB, at shaping.Interface) *Conn {
	t.Helper()
	c, err := OpenAt(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// bring has limits in force for a pod, and returns what was done and refused.
func bring(t testing.TB, c *Conn, p pod, l shaping.Limits, o shaping.Options, takeOver bool) ([]shaping.Step, []shaping.Refusal) {
	t.Helper()
	plan := shaping.NewPlan(p.shaped(), l, p.at, o)
	state, err := c.Read(plan)
	if err != nil {
		t.Fatal(err)
	}
	steps, refused := shaping.Diff(plan, state, takeOver)
	for _, s := range steps {
		if err := c.Do(plan, s); err != nil {
			t.Fatal(err)
		}
	}
	return steps, refused
}

// options are those of the kernel that the test runs on.
func options(t testing.TB, c *Conn) shaping.Options {
	t.Helper()
	has, err := c.HasFQCodel()
	if err != nil {
		t.Fatal(err)
	}
	return shaping.Options{FQCodel: has}
}

// shown is a queueing discipline as tc shows it.
type shown struct {
	Kind, Handle, Parent string
	Root                 bool
	Options              struct {
		Rate, Burst, Limit, Lat int64
		Target, Interval        int64
		Flows                   int64
		MemoryLimit             int64 `json:"memory_limit"`
		Quantum                 int64
		ECN                     bool
	}
	Bytes, Packets, Drops, Overlimits, Backlog, Qlen int64
}

// tcShow returns what tc says of an interface. prefix is as in `ip netns exec pod1`.
func tcShow(t testing.TB, prefix, device string) []shown {
	t.Helper()
	var all []shown
	text := isolate.Sh(t, prefix+" tc -s -j qdisc show dev "+device)
	for strings.Contains(text, "Dump was interrupted") { // by what the Shaper does meanwhile
		text = isolate.Sh(t, prefix+" tc -s -j qdisc show dev "+device)
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return all
}

// root returns the queueing discipline at the root of an interface.
func rootShown(t testing.TB, prefix, device string) shown {
	t.Helper()
	for _, q := range tcShow(t, prefix, device) {
		if q.Root {
			return q
		}
	}
	return shown{}
}

// sockets are two ends for datagrams: of the node, and of the pod.
type sockets struct {
	node, pod net.PacketConn
	toPod     net.Addr
	toNode    net.Addr
}

// newSockets opens them for IPv4, or IPv6.
func newSockets(t testing.TB, p pod, v6 bool) sockets {
	t.Helper()
	if v6 {
		return socketsBetween(t, "fd01::ffff", p, p.addr6)
	}
	return socketsBetween(t, "10.1.255.254", p, p.addr)
}

func socketsBetween(t testing.TB, node string, p pod, addr netip.Addr) sockets {
	t.Helper()
	var s sockets
	var err error
	if s.node, err = net.ListenPacket("udp", net.JoinHostPort(node, "0")); err != nil {
		t.Fatal(err)
	}
	p.within(t, func() error {
		s.pod, err = net.ListenPacket("udp", net.JoinHostPort(addr.String(), "0"))
		return err
	})
	s.toPod, s.toNode = s.pod.LocalAddr(), s.node.LocalAddr()
	t.Cleanup(func() { _ = s.node.Close(); _ = s.pod.Close() })
	// Neighbours are known before anything is counted.
	s.send(t, true, 1, 10)
	s.receive(t, true, 1)
	s.send(t, false, 1, 10)
	s.receive(t, false, 1)
	return s
}

// send sends datagrams to the pod, or from it.
func (s sockets) send(t testing.TB, toPod bool, n, size int) {
	t.Helper()
	from, to := s.node, s.toPod
	if !toPod {
		from, to = s.pod, s.toNode
	}
	for range n {
		if _, err := from.WriteTo(make([]byte, size), to); err != nil {
			t.Fatal(err)
		}
	}
}

// receive waits for datagrams at the other end.
func (s sockets) receive(t testing.TB, toPod bool, n int) {
	t.Helper()
	at := s.pod
	if !toPod {
		at = s.node
	}
	if err := at.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, _, err := at.ReadFrom(make([]byte, 2000)); err != nil {
			t.Fatalf("after %d of %d datagrams: %v", i, n, err)
		}
	}
}

// newShaper returns a Shaper that finds the pods by a table, and what it observes.
func newShaper(t testing.TB, o Options, pods ...pod) (*Shaper, <-chan Status) {
	t.Helper()
	observed := make(chan Status, 10_000)
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	o.Observe = func(s Status) { observed <- s }
	if o.Find == nil {
		o.Find = table(pods...)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s, observed
}

// table finds interfaces, whether they are there or not.
func table(pods ...pod) func([]netip.Addr) (shaping.Interface, error) {
	return func(addrs []netip.Addr) (shaping.Interface, error) {
		for _, p := range pods {
			if slices.Contains(addrs, p.addr) {
				return p.at, nil
			}
		}
		return shaping.Interface{}, os.ErrNotExist
	}
}

// start runs a Shaper until the test, or the function that is returned, ends it.
func start(t testing.TB, s *Shaper) (stop func()) {
	t.Helper()
	ctx, cancel := contextOf(t)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// until waits for a Status.
func until(t testing.TB, observed <-chan Status, what string, ok func(Status) bool) Status {
	t.Helper()
	var last Status
	for deadline := time.After(20 * time.Second); ; {
		select {
		case last = <-observed:
			if ok(last) {
				return last
			}
		case <-deadline:
			t.Fatalf("never %s; last %+v", what, last)
		}
	}
}

// eventually waits for what cannot be waited for otherwise.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// annotations are a map as annotations.
type annotations map[string]string

// Lookup implements shaping.Annotations.
func (a annotations) Lookup(key string) (string, bool) { v, ok := a[key]; return v, ok }

// limited are the annotations for two rates, either of which may be empty.
func limited(in, out string) annotations {
	a := annotations{}
	for d, v := range map[shaping.Direction]string{shaping.Ingress: in, shaping.Egress: out} {
		if v != "" {
			a[d.BandwidthAnnotation()] = v
		}
	}
	return a
}

// set says how pods are now.
func set(s *Shaper, a annotations, pods ...pod) {
	s.Change(func(model *shaping.Model) {
		for _, p := range pods {
			sp := p.shaped()
			sp.Annotations = a
			model.SetPod(sp)
		}
	})
}

func remove(s *Shaper, pods ...pod) {
	s.Change(func(model *shaping.Model) {
		for _, p := range pods {
			model.RemovePod(p.shaped().Key)
		}
	})
}

// ifbs returns the names of all IFBs.
func ifbs(t testing.TB) string {
	t.Helper()
	return strings.TrimSpace(isolate.Sh(t, "ip -br link show type ifb | cut -d' ' -f1 | sort | tr '\\n' ' '"))
}
