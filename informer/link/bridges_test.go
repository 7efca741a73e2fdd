package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/informer/link/isolate"
)

const globalOff = `
	echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables
	echo 0 > /proc/sys/net/bridge/bridge-nf-call-ip6tables
	echo 0 > /proc/sys/net/bridge/bridge-nf-call-arptables
`

// start runs a Bridges until the test's end and returns it with its statuses.
func start(t *testing.T, interval time.Duration) (*Bridges, <-chan Status) {
	t.Helper()
	statuses := make(chan Status, 1000)
	b, err := NewBridges(Options{Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Interval: interval,
		Observe: func(s Status) { statuses <- s }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return b, statuses
}

// await waits for a status that ok likes.
func await(t *testing.T, statuses <-chan Status, what string, ok func(Status) bool) Status {
	t.Helper()
	timeout := time.After(time.Minute)
	var last Status
	for {
		select {
		case last = <-statuses:
			if ok(last) {
				return last
			}
		case <-timeout:
			t.Fatalf("never %s; the last status is %+v", what, last)
		}
	}
}

// names are the bridges of a status that are covered.
func names(s Status) []string {
	var n []string
	for _, b := range s.Bridges {
		if b.Err == nil {
			n = append(n, b.Name)
		}
	}
	return n
}

func covers(want ...string) func(Status) bool {
	return func(s Status) bool { return s.Uncovered() == nil && slices.Equal(names(s), want) }
}

func prefixes(s ...string) (p []netip.Prefix) {
	for _, s := range s {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func addresses(s ...string) (a []netip.Addr) {
	for _, s := range s {
		a = append(a, netip.MustParseAddr(s))
	}
	return a
}

// switches returns the two switches of a bridge as ip(8) shows them.
func switches(t *testing.T, bridge string) string {
	t.Helper()
	return strings.TrimSpace(isolate.Sh(t, "ip -d link show "+bridge+" | grep -Eo 'nf_call_ip6?tables [01]' | paste -s -d ' '"))
}

const (
	on  = "nf_call_iptables 1 nf_call_ip6tables 1"
	off = "nf_call_iptables 0 nf_call_ip6tables 0"
)

// TestCover sends packets between two pods on the pods' bridge and between two
// machines on another one: the rules see those of the former, once it is
// covered, and never those of the latter.
func TestCover(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, globalOff+`
		ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0; ip addr add fd00:1::1/64 dev cni0 nodad; ip link set cni0 up
		ip link add br-vm type bridge; ip addr add 192.168.77.1/24 dev br-vm; ip link set br-vm up`)
	addPod(t, "a", "cni0", "10.244.1.2/24", "fd00:1::2/64")
	addPod(t, "b", "cni0", "10.244.1.3/24", "fd00:1::3/64")
	addPod(t, "x", "br-vm", "192.168.77.2/24")
	addPod(t, "y", "br-vm", "192.168.77.3/24")
	dropped := dropUDP(t, "10.244.1.3", "fd00:1::3", "192.168.77.3")
	probes := map[string]probe{
		"10.244.1.3":   newProbe(t, "a", "b", "10.244.1.3"),
		"fd00:1::3":    newProbe(t, "a", "b", "fd00:1::3"),
		"192.168.77.3": newProbe(t, "x", "y", "192.168.77.3"),
	}
	expect := func(when, addr string, want bool) {
		t.Helper()
		if got := probes[addr].send(t, dropped(addr)); got != want {
			t.Fatalf("%s: packet to %s passed: %v, want %v", when, addr, got, want)
		}
	}
	for addr := range probes {
		expect("uncovered", addr, true)
	}

	b, statuses := start(t, time.Hour)
	if err := b.Status().Uncovered(); err == nil {
		t.Error("covered before anything was looked at")
	}
	b.Want(prefixes("10.244.1.0/24", "fd00:1::/64"), nil)
	await(t, statuses, "covered", covers("cni0"))
	if got := switches(t, "cni0"); got != on {
		t.Errorf("cni0: %s", got)
	}
	expect("covered", "10.244.1.3", false)
	expect("covered", "fd00:1::3", false)
	expect("covered", "192.168.77.3", true)

	// Somebody turns it off: the kernel tells, and it is on again.
	isolate.Sh(t, "ip link set cni0 type bridge nf_call_ip6tables 0")
	await(t, statuses, "looked at again", covers("cni0"))
	for deadline := time.Now().Add(time.Minute); switches(t, "cni0") != on; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not repaired: %s", switches(t, "cni0"))
		}
	}

	// Nothing else was touched.
	if got := switches(t, "br-vm"); got != off {
		t.Errorf("br-vm: %s", got)
	}
	if got := isolate.Sh(t, "cat /proc/sys/net/bridge/bridge-nf-call-*"); got != "0\n0\n0\n" {
		t.Errorf("switches for all bridges: %q", got)
	}
}

// TestBridgesThatCarryPods has the bridge come late, as it does with flannel,
// and checks which of many are found.
func TestBridgesThatCarryPods(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, globalOff)
	b, statuses := start(t, time.Hour)
	b.Want(prefixes("10.244.1.0/24"), nil)
	await(t, statuses, "looked at", covers())

	isolate.Sh(t, "ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0")
	await(t, statuses, "a bridge with an address in the pod CIDR", covers("cni0"))

	isolate.Sh(t, `ip link add uplink type bridge; ip addr add 172.16.0.2/24 dev uplink; ip link set uplink up
		ip route add default via 172.16.0.1
		ip link add other type bridge; ip addr add 172.17.0.1/24 dev other; ip link set other up
		ip link add routed type veth peer name routed-peer; ip link set routed up; ip route add 10.9.0.9 dev routed
		ip link add flat type bridge; ip addr add 10.5.0.1/16 dev flat; ip link set flat up`)
	b.Want(prefixes("10.244.1.0/24"), addresses("10.9.0.9", "10.8.0.8", "10.244.1.7"))
	await(t, statuses, "routed and far pods need no bridge", covers("cni0"))
	b.Want(prefixes("10.244.1.0/24"), addresses("10.5.3.4", "10.9.0.9"))
	await(t, statuses, "a pod on a bridge outside the pod CIDR", covers("cni0", "flat"))

	isolate.Sh(t, "ip link del cni0; ip link del flat")
	await(t, statuses, "bridges gone", covers())
	for _, bridge := range []string{"uplink", "other"} {
		if got := switches(t, bridge); got != off {
			t.Errorf("%s: %s", bridge, got)
		}
	}
}

// TestBridgeBelow has the address on an interface on top of the bridge, as the
// bridge plugin does with its option vlan. (A macvlan stands in for the VLAN
// interface here: it is in more kernels.)
func TestBridgeBelow(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, globalOff+`ip link add cni0 type bridge; ip link set cni0 up
		ip link add link cni0 name top type macvlan; ip addr add 10.244.1.1/24 dev top; ip link set top up`)
	b, statuses := start(t, time.Hour)
	b.Want(prefixes("10.244.1.0/24"), nil)
	await(t, statuses, "covered", covers("cni0"))
	if got := switches(t, "cni0"); got != on {
		t.Errorf("cni0: %s", got)
	}
}

// TestNoFilter is a kernel without br_netfilter, until it is loaded.
func TestNoFilter(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, globalOff+"ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0")
	b, err := NewBridges(Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	b.sysctls = filepath.Join(t.TempDir(), "bridge")
	status := b.look(prefixes("10.244.1.0/24"), nil)
	if err := status.Uncovered(); !errors.Is(err, ErrNoFilter) || !strings.Contains(err.Error(), "bridge cni0") || !strings.Contains(err.Error(), "modprobe br_netfilter") {
		t.Errorf("uncovered: %v", err)
	}
	if status := b.look(prefixes("10.0.0.0/24"), nil); status.Uncovered() != nil {
		t.Errorf("without a bridge there is nothing to cover, and yet: %v", status.Uncovered())
	}
	if err := os.Mkdir(b.sysctls, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
		if err := os.WriteFile(filepath.Join(b.sysctls, name), []byte("0\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if status := b.look(prefixes("10.244.1.0/24"), nil); status.Uncovered() != nil {
		t.Errorf("loaded, and yet: %v", status.Uncovered())
	}
}

// TestCannotSet takes the privilege away: what cannot be set is not covered,
// unless the switches for all bridges are on anyway.
func TestCannotSet(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, globalOff+"ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0")
	look := func() Status {
		done := make(chan Status)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread, and its lack of privileges, ends with the goroutine
			b, err := NewBridges(Options{Logger: slog.New(slog.DiscardHandler)})
			var none [2]unix.CapUserData
			if err == nil {
				err = unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
			}
			if err != nil {
				done <- Status{Checked: true, Err: err}
				return
			}
			done <- b.look(prefixes("10.244.1.0/24"), nil)
		}()
		return <-done
	}
	if err := look().Uncovered(); !errors.Is(err, unix.EPERM) {
		t.Errorf("uncovered: %v, want EPERM", err)
	}
	isolate.Sh(t, "echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables")
	if err := look().Uncovered(); !errors.Is(err, unix.EPERM) {
		t.Errorf("uncovered with the switch of one family: %v, want EPERM", err)
	}
	isolate.Sh(t, "echo 1 > /proc/sys/net/bridge/bridge-nf-call-ip6tables")
	if status := look(); status.Uncovered() != nil || len(status.Bridges) != 1 {
		t.Errorf("with the switches for all bridges on: %+v", status)
	}
}

// TestReport says each thing once: when it appears, and when it goes away.
func TestReport(t *testing.T) {
	var log strings.Builder
	b := &Bridges{options: Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}}
	var before Status
	for i, step := range []struct {
		status Status
		want   string
	}{
		{Status{Checked: true, Bridges: []Bridge{{Name: "cni0", Index: 3, Err: ErrNoFilter}}}, "not covered"},
		{Status{Checked: true, Bridges: []Bridge{{Name: "cni0", Index: 3, Err: fmt.Errorf("%w", ErrNoFilter)}}}, ""},
		{Status{Checked: true, Bridges: []Bridge{{Name: "cni0", Index: 3}}}, "meet the rules"},
		{Status{Checked: true, Bridges: []Bridge{{Name: "cni0", Index: 3}}}, ""},
		{Status{Checked: true, Err: errors.New("boom")}, "boom"},
		{Status{Checked: true, Err: errors.New("boom")}, ""},
	} {
		log.Reset()
		b.report(before, step.status)
		before = step.status
		if got := log.String(); (got == "") != (step.want == "") || !strings.Contains(got, step.want) || strings.Count(got, "\n") > 1 {
			t.Errorf("step %d: logged %q, want one line with %q", i, got, step.want)
		}
	}
}
