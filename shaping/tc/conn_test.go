package tc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/informer/link/isolate"
	"github.com/selvage-net/selvage/shaping"
)

func contextOf(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

// TestReadBack has tc read what was set, from the least rate to the largest, and has
// ours read it, too: then nothing is left to do.
func TestReadBack(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	c := connect(t, shaping.Interface{})
	o := options(t, c)
	p := addPod(t, 1)
	for _, rate := range []shaping.Rate{shaping.MinRate, 64 * k, m, 10 * m, 100 * m, g, 5 * g, math.MaxUint32 * 8, 40 * g, 1000 * g, shaping.MaxRate} {
		for _, frame := range []int{1514, 9014} {
			p.at.Frame = frame
			limits := shaping.Limits{{Rate: rate}, {Rate: rate, Burst: 500_000}}
			bring(t, c, p, limits, o, false)
			bring(t, c, p, limits, o, false) // a lesser burst takes a second look
			if again, _ := bring(t, c, p, limits, o, false); len(again) > 0 {
				t.Errorf("%s, frames of %d: again %v", rate, frame, again)
			}
			plan := shaping.NewPlan(p.shaped(), limits, p.at, o)
			for i, device := range []string{p.at.Name, p.ifb(shaping.Egress)} {
				want, got := plan.Shaped[i].Queue, rootShown(t, "", device)
				// tc computes the burst from ticks, in whole microseconds, and lacks the upper
				// bits of a long time as the kernel does.
				burst := float64(got.Options.Burst)
				slack := 2e-6*float64(want.Bucket.Rate) + float64(want.Bucket.Burst)/1e4 + 2
				if got.Kind != "tbf" || got.Handle != "5e1a:" || uint64(got.Options.Rate) != want.Bucket.Rate ||
					math.Abs(burst-float64(want.Bucket.Burst)) > slack && rate > m && rate < shaping.MaxRate {
					t.Errorf("%s, frames of %d: %+v on %s, want %+v", rate, frame, got, device, want.Bucket)
				}
				checkLeaf(t, device, want.Leaf)
			}
		}
	}
}

// checkLeaf compares fq_codel, where there is to be one, with what tc says.
func checkLeaf(t *testing.T, device string, want shaping.Leaf) {
	t.Helper()
	i := slices.IndexFunc(tcShow(t, "", device), func(q shown) bool { return q.Handle == "5e1b:" })
	if (i >= 0) != want.FQCodel {
		t.Errorf("%s: leaf at %d, want %+v", device, i, want)
	}
	if i < 0 {
		return
	}
	got := tcShow(t, "", device)[i]
	near := func(a int64, b uint32) bool { return a-int64(b) <= 2 && int64(b)-a <= 2 }
	if got.Kind != "fq_codel" || got.Parent != "5e1a:1" || !near(got.Options.Target, want.Target) || !near(got.Options.Interval, want.Interval) ||
		got.Options.MemoryLimit != int64(want.Memory) || got.Options.Quantum != int64(want.Quantum) || got.Options.Flows != int64(want.Flows) ||
		got.Options.Limit != int64(want.Packets) || !got.Options.ECN {
		t.Errorf("%s: %+v, want %+v", device, got, want)
	}
}

// TestFQCodel compares the probe with what tc can make.
func TestFQCodel(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	before := isolate.Sh(t, "tc qdisc show dev lo")
	has := options(t, connect(t, shaping.Interface{})).FQCodel
	if after := isolate.Sh(t, "tc qdisc show dev lo"); after != before {
		t.Errorf("the probe changed the loopback: %s", after)
	}
	isolate.Sh(t, "ip link add left type veth peer name right")
	can := strings.Contains(isolate.Sh(t, "tc qdisc add dev left root fq_codel 2>&1 || true; tc qdisc show dev left"), "qdisc fq_codel")
	if has != can {
		t.Errorf("the probe says %v, tc %v", has, can)
	}
}

// TestChangeLosesNothing changes the rate of a queue that is full of packets, to and
// from a pod: all of them come.
func TestChangeLosesNothing(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	c := connect(t, shaping.Interface{})
	o := options(t, c)
	p := addPod(t, 1)
	s := newSockets(t, p, false)
	bring(t, c, p, shaping.Limits{{Rate: 200 * k}, {Rate: 200 * k}}, o, false)
	for direction, device := range map[bool]string{true: p.at.Name, false: p.ifb(shaping.Egress)} {
		const packets, size = 12, 450 // within what may wait
		s.send(t, direction, packets, size)
		before := rootShown(t, "", device)
		if before.Backlog == 0 {
			t.Fatalf("%s: nothing waits: %+v", device, before)
		}
		for _, rate := range []shaping.Rate{220 * k, 180 * k, 240 * k} {
			steps, _ := bring(t, c, p, shaping.Limits{{Rate: rate}, {Rate: rate}}, o, false)
			if len(steps) != 2 || steps[0].Op != shaping.SetQueue || steps[0].Fresh || steps[1].Fresh {
				t.Errorf("steps %v", steps)
			}
		}
		bring(t, c, p, shaping.Limits{{Rate: 50 * m}, {Rate: 50 * m}}, o, false)
		s.receive(t, direction, packets)
		if after := rootShown(t, "", device); after.Drops != before.Drops {
			t.Errorf("%s: %d packets were dropped", device, after.Drops-before.Drops)
		}
		bring(t, c, p, shaping.Limits{}, o, false)
		bring(t, c, p, shaping.Limits{{Rate: 200 * k}, {Rate: 200 * k}}, o, false)
	}
}

// TestRemovalLosesNothing removes queues that are full of packets.
func TestRemovalLosesNothing(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	c := connect(t, shaping.Interface{})
	p := addPod(t, 1)
	s := newSockets(t, p, false)
	before := isolate.Sh(t, "tc qdisc show; ip -br link")
	const packets, size = 12, 450
	for _, direction := range []bool{true, false} {
		bring(t, c, p, shaping.Limits{{Rate: m}, {Rate: m}}, options(t, c), false)
		s.send(t, direction, packets, size)
		bring(t, c, p, shaping.Limits{}, options(t, c), false)
		s.receive(t, direction, packets)
		if err := c.removeDoomed(); err != nil {
			t.Fatal(err)
		}
		if after := isolate.Sh(t, "tc qdisc show; ip -br link"); after != before {
			t.Errorf("there is now\n%s\nand was\n%s", after, before)
		}
	}
}

// TestForeign meets what others have put at the interface.
func TestForeign(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	c := connect(t, shaping.Interface{})
	o := options(t, c)
	both, none := shaping.Limits{{Rate: m}, {Rate: m}}, shaping.Limits{}
	for i, tt := range []struct {
		name     string
		before   string
		takeOver bool
		refused  string
		after    []string // what tc shows then
		restored bool     // what was there is there again after removal
	}{
		{name: "htb at the root", before: "tc qdisc add dev VETH root handle 1: htb", takeOver: true, refused: "[{ingress htb}]", after: []string{"qdisc htb 1: root", "clsact"}, restored: true},
		{name: "the bandwidth plugin", before: "tc qdisc add dev VETH root tbf rate 1mbit burst 10000 limit 50000; tc qdisc add dev VETH ingress",
			refused: "[{ingress tbf} {egress ingress}]", after: []string{"qdisc tbf 8", "qdisc ingress"}, restored: true},
		{name: "the bandwidth plugin, taken over", before: "tc qdisc add dev VETH root tbf rate 1mbit burst 10000 limit 50000; tc qdisc add dev VETH ingress",
			takeOver: true, refused: "[]", after: []string{"qdisc tbf 5e1a: root", "qdisc clsact"}},
		{name: "a clsact with a filter", refused: "[]", restored: true, after: []string{"qdisc tbf 5e1a: root", "qdisc clsact", "pref 7 u32", "pref 24082 u32"},
			before: "tc qdisc add dev VETH clsact; tc filter add dev VETH ingress pref 7 u32 match ip dst 192.0.2.1 flowid 1:1; tc filter add dev VETH egress pref 8 u32 match ip dst 192.0.2.1 flowid 1:1"},
		{name: "an empty clsact", before: "tc qdisc add dev VETH clsact", refused: "[]", after: []string{"qdisc tbf 5e1a: root", "qdisc clsact"}, restored: true},
	} {
		p := addPod(t, i+1)
		isolate.Sh(t, strings.ReplaceAll(tt.before, "VETH", p.at.Name))
		show := fmt.Sprintf("tc qdisc show dev %[1]s; tc filter show dev %[1]s ingress; tc filter show dev %[1]s egress", p.at.Name)
		before := withoutCounters(isolate.Sh(t, show))
		for range 2 {
			if _, refused := bring(t, c, p, both, o, tt.takeOver); fmt.Sprint(refused) != tt.refused {
				t.Errorf("%s: refused %v, want %s", tt.name, refused, tt.refused)
			}
		}
		now := isolate.Sh(t, show)
		for _, want := range tt.after {
			if !strings.Contains(now, want) {
				t.Errorf("%s: there is no %q in\n%s", tt.name, want, now)
			}
		}
		bring(t, c, p, none, o, tt.takeOver)
		if after := withoutCounters(isolate.Sh(t, show)); (after == before) != tt.restored {
			t.Errorf("%s: restored is %v, want %v:\n%swas\n%s", tt.name, after == before, tt.restored, after, before)
		}
	}
}

// withoutCounters takes out what htb counts among its options.
func withoutCounters(s string) string {
	return regexp.MustCompile(`direct_packets_stat \d+`).ReplaceAllString(s, "")
}

// TestHookOfOthers leaves a clsact that we made to those who use it by now.
func TestHookOfOthers(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	c := connect(t, shaping.Interface{})
	p := addPod(t, 1)
	bring(t, c, p, shaping.Limits{shaping.Egress: {Rate: m}}, shaping.Options{}, false)
	isolate.Sh(t, "tc filter add dev veth1 egress pref 8 u32 match ip dst 192.0.2.1 flowid 1:1")
	bring(t, c, p, shaping.Limits{}, shaping.Options{}, false)
	if show := isolate.Sh(t, "tc qdisc show dev veth1; tc filter show dev veth1 egress; tc filter show dev veth1 ingress"); !strings.Contains(show, "clsact") || !strings.Contains(show, "pref 8 u32") || strings.Contains(show, "mirred") {
		t.Error(show)
	}
}

// TestExclude sends packets that are left out, and others, in both directions and
// families. What is left out never sees the queue, though no token is there.
func TestExclude(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	c := connect(t, shaping.Interface{})
	p := addPod(t, 1)
	v4, v6 := newSockets(t, p, false), newSockets(t, p, true)
	counted := func(d shaping.Direction) int64 { return rootShown(t, "", p.ifb(d)).Packets }
	for name, exclude := range map[string]struct {
		blocks string
		v4, v6 bool // whether they are shaped
	}{
		"others":     {"192.0.2.0/24 2001:db8::/32", true, true},
		"IPv4":       {"10.1.255.0/24", false, true},
		"IPv6":       {"fd01::/64", true, false},
		"one each":   {"10.1.255.254/32 fd01::ffff/128", false, false},
		"everything": {"0.0.0.0/0 ::/0", false, false},
		"odd masks":  {"10.0.0.0/13 fd01::8000/113", false, false},
	} {
		var o shaping.Options
		for text := range strings.FieldsSeq(exclude.blocks) {
			o.Exclude = append(o.Exclude, netip.MustParsePrefix(text))
		}
		limits := shaping.Limits{{Rate: 10 * m}, {Rate: 10 * m}}
		bring(t, c, p, limits, o, false)
		if again, _ := bring(t, c, p, limits, o, false); len(again) > 0 {
			t.Errorf("%s: again %v\n%s", name, again, isolate.Sh(t, "tc filter show dev veth1 ingress; tc filter show dev veth1 egress"))
		}
		for s, shaped := range map[*sockets]bool{&v4: exclude.v4, &v6: exclude.v6} {
			for _, d := range shaping.Directions() {
				before, toPod := counted(d), d == shaping.Ingress
				s.send(t, toPod, 5, 100)
				s.receive(t, toPod, 5)
				if got := counted(d) - before; (got >= 5) != shaped { // the kernel's own neighbour discovery may be among them
					t.Errorf("%s: %s of %v: %d packets were counted, shaped should be %v", name, d, s.toPod, got, shaped)
				}
			}
		}
	}
	bring(t, c, p, shaping.Limits{}, shaping.Options{}, false)
	if show := isolate.Sh(t, "tc qdisc show dev veth1; tc filter show dev veth1 ingress; tc filter show dev veth1 egress"); strings.Contains(show, "clsact") || strings.Contains(show, "u32") {
		t.Errorf("left: %s", show)
	}
}

// TestInPod shapes an interface that has no end on the node, in the pod's namespace.
func TestInPod(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p := addMacvlan(t)
	c := connect(t, p.at)
	o := options(t, c)
	limits := shaping.Limits{{Rate: 10 * m}, {Rate: 20 * m}}
	bring(t, c, p, limits, o, false)
	if again, _ := bring(t, c, p, limits, o, false); len(again) > 0 {
		t.Errorf("again %v", again)
	}
	const in = "ip netns exec mac"
	if q := rootShown(t, in, "eth0"); q.Kind != "tbf" || q.Options.Rate != 2_500_000 {
		t.Errorf("from the pod: %+v", q)
	}
	if q := rootShown(t, in, p.ifb(shaping.Ingress)); q.Kind != "tbf" || q.Options.Rate != 1_250_000 {
		t.Errorf("to the pod: %+v", q)
	}
	if q := rootShown(t, "", "uplink"); q.Kind == "tbf" {
		t.Errorf("the uplink is shaped: %+v", q)
	}
	bring(t, c, p, shaping.Limits{}, o, false)
	if err := c.removeDoomed(); err != nil {
		t.Fatal(err)
	}
	if show := isolate.Sh(t, in+" tc qdisc show dev eth0; "+in+" ip -br link show type ifb"); strings.Contains(show, "tbf") || strings.Contains(show, "selv") || strings.Contains(show, "clsact") {
		t.Errorf("left: %s", show)
	}
}

// TestExcludeInPod leaves out peers of a pod that is shaped in its own namespace, where
// they are the source of what arrives.
func TestExcludeInPod(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	p := addMacvlan(t)
	isolate.Sh(t, `ip link add peer link uplink type macvlan mode bridge; ip link set peer up
		ip addr add 10.1.0.1/24 dev peer; ip addr add 10.1.0.2/24 dev peer; ip -n mac addr add 10.1.0.99/24 dev eth0`)
	c := connect(t, p.at)
	o := shaping.Options{Exclude: []netip.Prefix{netip.MustParsePrefix("10.1.0.1/32")}}
	bring(t, c, p, shaping.Limits{{Rate: 10 * m}, {Rate: 10 * m}}, o, false)
	if again, _ := bring(t, c, p, shaping.Limits{{Rate: 10 * m}, {Rate: 10 * m}}, o, false); len(again) > 0 {
		t.Errorf("again %v", again)
	}
	counted := func() (n [2]int64) {
		for _, d := range shaping.Directions() {
			n[d] = rootShown(t, "ip netns exec mac", p.ifb(d)).Packets
		}
		return n
	}
	for addr, shaped := range map[string]bool{"10.1.0.1": false, "10.1.0.2": true} {
		s := socketsBetween(t, addr, p, p.addr)
		before := counted()
		for _, toPod := range []bool{true, false} {
			s.send(t, toPod, 5, 100)
			s.receive(t, toPod, 5)
		}
		after := counted()
		for _, d := range shaping.Directions() {
			if got := after[d] - before[d]; (got >= 5) != shaped {
				t.Errorf("%s of %s: %d packets were counted, shaped should be %v", d, addr, got, shaped)
			}
		}
	}
}

// TestErrors is what callers can tell apart.
func TestErrors(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, "ip netns add another")
	for name, at := range map[string]shaping.Interface{"not there": {NetNS: "/run/netns/none"}, "another one": {NetNS: "/run/netns/another", NetNSInode: 1}} {
		if _, err := OpenAt(at); !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for errno, want := range map[unix.Errno]error{unix.EPERM: ErrPermission, unix.EACCES: ErrPermission, unix.ENOENT: unix.ENOENT} {
		if err := wrap("try", fmt.Errorf("kernel: %w", errno)); !errors.Is(err, want) || !errors.Is(err, errno) {
			t.Errorf("%v becomes %v", errno, err)
		}
	}
	c := connect(t, shaping.Interface{})
	p := addPod(t, 1)
	plan := shaping.NewPlan(p.shaped(), shaping.Limits{{Rate: m}, {Rate: m}}, p.at, shaping.Options{})
	steps, _ := shaping.Diff(plan, shaping.State{}, false)
	isolate.Sh(t, "ip link del veth1")
	failed := 0
	for _, s := range steps {
		if err := c.Do(plan, s); errors.Is(err, ErrGone) {
			failed++
		} else if err != nil {
			t.Errorf("%v: %v", s, err)
		}
	}
	if failed != 3 { // at the root, the hook, the redirection; the IFB is another device
		t.Errorf("%d of %v failed", failed, steps)
	}
	if err := c.Do(plan, shaping.Step{Op: "dance"}); err == nil {
		t.Error("did what it does not know")
	}
	isolate.Sh(t, "ip link add selve-stranger1 type veth peer name other")
	if _, err := c.ifb("selve-stranger1"); err == nil {
		t.Error("took somebody's interface for ours")
	}
}

// TestDoomedStrangers removes IFBs that are to go, and nobody else's interface that is
// in the same group.
func TestDoomedStrangers(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	c := connect(t, shaping.Interface{})
	p := addPod(t, 1)
	isolate.Sh(t, fmt.Sprintf("ip link add stranger group %d type ifb", doomedGroup))
	bring(t, c, p, shaping.Limits{{Rate: m}, {Rate: m}}, shaping.Options{}, false)
	if n, err := c.Cleanup(); err != nil || n != 3 {
		t.Errorf("removed %d: %v", n, err)
	}
	if got := ifbs(t); got != "stranger" {
		t.Errorf("IFBs: %s", got)
	}
	if n, err := c.Cleanup(); err != nil || n != 0 {
		t.Errorf("removed %d more: %v", n, err)
	}
}

// TestKeys turns blocks into keys of u32 and back.
func TestKeys(t *testing.T) {
	for _, text := range []string{"0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32", "128.0.0.0/1", "::/0", "fd00::/8", "2001:db8::/33", "2001:db8::1/128", "fe80::/64"} {
		block := netip.MustParsePrefix(text)
		family := 4
		if block.Addr().Is6() {
			family = 6
		}
		for _, destination := range []bool{true, false} {
			keys := keysOf(block, destination)
			if got, ok := prefixOf(keys, family, destination); !ok || got != block {
				t.Errorf("%s becomes %v and then %s, %v", block, keys, got, ok)
			}
			if _, ok := prefixOf(keys, family, !destination); ok && block.Bits() > 0 && family == 6 {
				t.Errorf("%s is taken for the other address", block)
			}
		}
	}
	if _, ok := prefixOf([]key{{offset: 100}}, 4, true); ok {
		t.Error("keys of somebody else's are taken for a block")
	}
}
