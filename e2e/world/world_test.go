package world_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

var (
	cidrsA = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd44:1::/64")}
	cidrsB = []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("fd44:2::/64")}
	serves = []world.Port{{Protocol: policy.TCP, Number: 80}, {Protocol: policy.UDP, Number: 53}, {Protocol: policy.SCTP}}
	// portless protocols have one flow for each pair of addresses, whoever
	// opens it.
	portless = []world.Port{{Protocol: world.GRE}, {Protocol: world.Nameless}}
)

// requireRoot skips a test that needs privileges, or fails it where a skip
// would hide that it never ran.
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

type cluster struct {
	*world.World
	a, b                          *world.Node
	outside                       *world.Node
	bridged, neighbour, routed, x *world.Pod
}

func pair(v4, v6 string) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
}

func newCluster(t *testing.T, filtering world.BridgeFiltering) *cluster {
	t.Helper()
	requireRoot(t)
	w, err := world.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	c := &cluster{World: w}
	var errs [8]error
	c.a, errs[0] = w.AddNode(world.NodeOptions{Name: "a", PodCIDRs: cidrsA, Filtering: filtering})
	c.b, errs[1] = w.AddNode(world.NodeOptions{Name: "b", PodCIDRs: cidrsB, Filtering: filtering})
	c.outside, errs[2] = w.AddNode(world.NodeOptions{Name: "outside"})
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	c.bridged, errs[3] = c.a.AddPod(world.PodOptions{Name: "bridged", Addrs: pair("10.244.1.2", "fd44:1::2")})
	c.neighbour, errs[4] = c.a.AddPod(world.PodOptions{Name: "neighbour", Addrs: pair("10.244.1.3", "fd44:1::3")})
	c.routed, errs[5] = c.a.AddPod(world.PodOptions{Name: "routed", Addrs: pair("10.244.1.4", "fd44:1::4"), Attachment: world.Routed})
	c.x, errs[6] = c.b.AddPod(world.PodOptions{Name: "x", Addrs: pair("10.244.2.2", "fd44:2::2")})
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*world.Pod{c.bridged, c.neighbour, c.routed, c.x} {
		if err := p.Serve(slices.Concat(serves, portless)...); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range w.Nodes() {
		if err := n.Serve(serves...); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// everyPair probes from every place to every pod, in both families.
func (c *cluster) everyPair(ports []world.Port, want func(from *world.Namespace, to *world.Pod) world.Outcome) (probes []world.Probe, names []string) {
	pods := []*world.Pod{c.bridged, c.neighbour, c.routed, c.x}
	from := []*world.Namespace{c.a.Namespace, c.b.Namespace, c.outside.Namespace}
	for _, p := range pods {
		from = append(from, p.Namespace)
	}
	for _, src := range from {
		for _, dst := range pods {
			for _, addr := range dst.Addrs() {
				echo := world.ICMP
				if addr.Is6() {
					echo = world.ICMPv6
				}
				for _, p := range append(slices.Clone(ports), world.Port{Protocol: echo}) {
					probes = append(probes, world.Probe{From: src, To: netip.AddrPortFrom(addr, p.Number), Protocol: p.Protocol, Want: want(src, dst)})
					names = append(names, fmt.Sprintf("%s to %s %s port %d", src.ID, addr, p.Protocol, p.Number))
				}
			}
		}
	}
	return probes, names
}

func (c *cluster) check(t *testing.T, probes []world.Probe, names []string) {
	t.Helper()
	for i, r := range c.Probe(t.Context(), probes...) {
		if r.Outcome != probes[i].Want {
			t.Errorf("%s: %v, want %v (%v)", names[i], r.Outcome, probes[i].Want, r.Err)
		}
	}
}

func TestEveryoneReachesEveryone(t *testing.T) {
	c := newCluster(t, world.FilterNamespace)
	probes, names := c.everyPair(slices.Concat(serves, portless), func(*world.Namespace, *world.Pod) world.Outcome { return world.Allowed })
	c.check(t, probes, names)
}

// TestProbesSeeDrops drops in forward what goes to one pod, and so validates
// what every other test relies on: that bridged traffic passes there in each
// setting that says so.
func TestProbesSeeDrops(t *testing.T) {
	for name, filtering := range map[string]world.BridgeFiltering{"namespace": world.FilterNamespace, "bridge": world.FilterBridge} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, filtering)
			for _, to := range []*world.Pod{c.bridged, c.routed} {
				script := "table inet t\ndelete table inet t\ntable inet t { chain forward { type filter hook forward priority 0; "
				for _, a := range to.Addrs() {
					script += fmt.Sprintf("ct original %s daddr %s drop; ", policy.FamilyOf(a), a)
				}
				if err := c.a.NFT(t.Context(), script+"}; }"); err != nil {
					t.Fatal(err)
				}
				probes, names := c.everyPair(serves, func(from *world.Namespace, dst *world.Pod) world.Outcome {
					// A node's own packets, and a pod's to itself, are not forwarded.
					if dst == to && from != c.a.Namespace && from != to.Namespace {
						return world.Dropped
					}
					return world.Allowed
				})
				c.check(t, probes, names)
			}
		})
	}
}

func TestBridgeFilteringOff(t *testing.T) {
	c := newCluster(t, world.FilterOff)
	if err := c.a.NFT(t.Context(), "table inet t { chain forward { type filter hook forward priority 0; policy drop; }; }"); err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(c.neighbour.Addr(policy.IPv4), 80)
	c.check(t, []world.Probe{
		{From: c.bridged.Namespace, To: to, Protocol: policy.TCP, Want: world.Allowed},
		{From: c.routed.Namespace, To: to, Protocol: policy.TCP, Want: world.Dropped},
	}, []string{"over the bridge", "through the node"})
}

func TestRefused(t *testing.T) {
	c := newCluster(t, world.FilterNamespace)
	err := c.a.NFT(t.Context(), `table inet t { chain forward { type filter hook forward priority 0;
		meta l4proto tcp reject with tcp reset; meta l4proto udp reject with icmpx admin-prohibited; }; }`)
	if err != nil {
		t.Fatal(err)
	}
	var probes []world.Probe
	var names []string
	for _, a := range c.bridged.Addrs() {
		for _, p := range serves[:2] {
			probes = append(probes, world.Probe{From: c.routed.Namespace, To: netip.AddrPortFrom(a, p.Number), Protocol: p.Protocol, Want: world.Refused})
			names = append(names, fmt.Sprintf("%s %s", p.Protocol, a))
		}
	}
	c.check(t, probes, names)
}

func TestUnanswered(t *testing.T) {
	c := newCluster(t, world.FilterNamespace)
	err := c.a.NFT(t.Context(), "table inet t { chain forward { type filter hook forward priority 0; ct direction reply drop; }; }")
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(c.neighbour.Addr(policy.IPv6), 53)
	r := c.Probe(t.Context(), world.Probe{From: c.bridged.Namespace, To: to, Protocol: policy.UDP, Want: world.Dropped})
	if r[0].Outcome != world.Unanswered {
		t.Errorf("a request whose answer is dropped: %v, want unanswered", r[0].Outcome)
	}
}

func TestService(t *testing.T) {
	for name, filtering := range map[string]world.BridgeFiltering{"namespace": world.FilterNamespace, "bridge": world.FilterBridge} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, filtering)
			vips := pair("10.96.0.10", "fd96::10")
			for _, backend := range []*world.Pod{c.bridged, c.routed, c.x} {
				svc := world.Service{Name: "web", Addrs: vips, Protocol: policy.TCP, Port: 8080}
				for _, a := range backend.Addrs() {
					svc.Backends = append(svc.Backends, netip.AddrPortFrom(a, 80))
				}
				for _, n := range []*world.Node{c.a, c.b} {
					if err := n.SetServices(t.Context(), svc); err != nil {
						t.Fatal(err)
					}
				}
				for _, from := range []*world.Namespace{c.bridged.Namespace, c.neighbour.Namespace, c.routed.Namespace, c.x.Namespace, c.a.Namespace} {
					for _, vip := range vips {
						r := c.Probe(t.Context(), world.Probe{From: from, To: netip.AddrPortFrom(vip, 8080), Protocol: policy.TCP, Want: world.Allowed})
						if r[0].Outcome != world.Allowed || r[0].By != backend.ID {
							t.Errorf("%s to %s served by %s: %v by %q (%v)", from.ID, vip, backend.Name, r[0].Outcome, r[0].By, r[0].Err)
						}
					}
				}
			}
		})
	}
}

func TestSetAddrs(t *testing.T) {
	c := newCluster(t, world.FilterNamespace)
	for _, p := range []*world.Pod{c.neighbour, c.routed} {
		old := p.Addrs()
		next := pair("10.244.1.77", "fd44:1::77")
		p.StopServing()
		if err := p.SetAddrs(next...); err != nil {
			t.Fatal(err)
		}
		if err := p.Serve(serves...); err != nil {
			t.Fatal(err)
		}
		for _, a := range next {
			r := c.Probe(t.Context(), world.Probe{From: c.x.Namespace, To: netip.AddrPortFrom(a, 53), Protocol: policy.UDP, Want: world.Allowed})
			if r[0].Outcome != world.Allowed {
				t.Errorf("%s at its new address %s: %v", p.Name, a, r[0].Outcome)
			}
		}
		r := c.Probe(t.Context(), world.Probe{From: c.x.Namespace, To: netip.AddrPortFrom(old[0], 80), Protocol: policy.TCP, Want: world.Dropped})
		if r[0].Outcome == world.Allowed {
			t.Errorf("%s still answers at %s", p.Name, old[0])
		}
		p.StopServing()
		if err := p.SetAddrs(old...); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNothingStays looks for the world's namespaces after Close, and for those
// of a process that is gone after Sweep.
func TestNothingStays(t *testing.T) {
	c := newCluster(t, world.FilterNamespace)
	dir, err := c.Dir()
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSuffix(c.a.ID, "-a")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob("/run/netns/" + id + "*")
	if err != nil || len(left) > 0 {
		t.Errorf("left after Close: %v (%v)", left, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory after Close: %v", err)
	}

	// Process 1 is alive, but did not start at tick 0.
	dead := filepath.Join(os.TempDir(), "selvage-1-0-1-sweep-test")
	if err := os.Mkdir(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	alive, err := world.New()
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	removed, err := world.Sweep()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Sweep removed %v, not %s", removed, dead)
	}
	if _, err := alive.AddNode(world.NodeOptions{Name: "later"}); err != nil {
		t.Errorf("world of a live process after Sweep: %v", err)
	}
}

func TestSegment(t *testing.T) {
	c := newCluster(t, world.FilterNamespace)
	for _, f := range policy.Families {
		from, to := c.x.Addr(f), c.bridged.Addr(f)
		sink, err := c.bridged.ListenRaw(policy.TCP, to)
		if err != nil {
			t.Fatal(err)
		}
		defer sink.Close()
		source, err := c.x.ListenRaw(policy.TCP, from)
		if err != nil {
			t.Fatal(err)
		}
		defer source.Close()
		s := world.Segment{Src: netip.AddrPortFrom(from, 1234), Dst: netip.AddrPortFrom(to, 80), Seq: 7, Flags: world.FlagSYN, Window: 1000, Payload: []byte("odd")}
		if _, err := source.WriteToIP(s.Marshal(), sink.LocalAddr().(*net.IPAddr)); err != nil {
			t.Fatal(err)
		}
		if err := sink.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, err := sink.Read(buf)
		if err != nil || !bytes.HasSuffix(buf[:n], s.Marshal()) {
			t.Errorf("%s: got % x (%v), want % x", f, buf[:n], err, s.Marshal())
		}
	}
}

func TestRulesetGeneration(t *testing.T) {
	c := newCluster(t, world.FilterNamespace)
	generation := func(n *world.Node) uint32 {
		g, err := n.RulesetGeneration()
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	before, other := generation(c.a), generation(c.b)
	if err := c.a.NFT(t.Context(), "table ip t"); err != nil {
		t.Fatal(err)
	}
	if after := generation(c.a); after != before+1 {
		t.Errorf("generation %d after one transaction, %d before", after, before)
	}
	if after := generation(c.b); after != other {
		t.Errorf("generation of another namespace %d, before %d", after, other)
	}
}

func TestWatch(t *testing.T) {
	c := newCluster(t, world.FilterNamespace)
	to := c.neighbour.Addr(policy.IPv4)
	w, err := c.a.Watch(t.Context(), "forward", 10, map[string]string{
		"requests": "ct direction original udp dport 53", "answers": "ct direction reply udp sport 53", "none": "udp dport 54",
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c.Probe(t.Context(), world.Probe{From: c.bridged.Namespace, To: netip.AddrPortFrom(to, 53), Protocol: policy.UDP, Want: world.Allowed})
	}
	got, err := w.Packets(t.Context())
	if want := (map[string]uint64{"requests": 3, "answers": 3, "none": 0}); err != nil || !maps.Equal(got, want) {
		t.Errorf("counted %v (%v), want %v", got, err, want)
	}
}

func TestForwarders(t *testing.T) {
	c := newCluster(t, world.FilterNamespace)
	outside := c.outside.Addr(policy.IPv4)
	for _, tc := range []struct {
		name     string
		src, dst netip.Addr
		want     []*world.Node
	}{
		{"same node", c.bridged.Addr(policy.IPv4), c.routed.Addr(policy.IPv4), []*world.Node{c.a}},
		{"across nodes", c.bridged.Addr(policy.IPv6), c.x.Addr(policy.IPv6), []*world.Node{c.a, c.b}},
		{"itself", c.bridged.Addr(policy.IPv4), c.bridged.Addr(policy.IPv4), nil},
		{"own node", c.bridged.Addr(policy.IPv4), c.a.Addr(policy.IPv4), nil},
		{"node to its pod", c.a.Addr(policy.IPv4), c.bridged.Addr(policy.IPv4), nil},
		{"node to another's pod", c.a.Addr(policy.IPv4), c.x.Addr(policy.IPv4), []*world.Node{c.b}},
		{"pod to another node", c.bridged.Addr(policy.IPv4), c.b.Addr(policy.IPv4), []*world.Node{c.a}},
		{"in", outside, c.x.Addr(policy.IPv4), []*world.Node{c.b}},
		{"out", c.x.Addr(policy.IPv4), outside, []*world.Node{c.b}},
	} {
		if got := c.Forwarders(tc.src, tc.dst); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
