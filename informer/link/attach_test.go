package link

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/selvage-net/selvage/informer/link/isolate"
)

// newTestAttachments believes at once, and writes down what it observes.
func newTestAttachments(t testing.TB, lasting time.Duration, observe func([]Unseen)) *Attachments {
	t.Helper()
	a, err := NewAttachments(AttachmentsOptions{Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Lasting: lasting, Interval: lasting, Observe: observe})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// look looks once at what was unseen for a while.
func (a *Attachments) lookLater(t testing.TB, pods ...string) string {
	t.Helper()
	var text []string
	for _, at := range []time.Time{time.Now(), time.Now().Add(time.Hour)} {
		found, err := a.look(addresses(pods...), at)
		if err != nil {
			t.Fatal(err)
		}
		text = nil
		for _, u := range found {
			text = append(text, fmt.Sprintf("%s %s(%s)", u.Addr, u.Device, u.Kind))
		}
	}
	return strings.Join(text, ", ")
}

// TestAttachments has pods attached in all the ways that this kernel offers.
func TestAttachments(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, globalOff+`
		ip link add uplink type veth peer name uplink-peer
		ip addr add 192.168.1.10/24 dev uplink; ip addr add 2001:db8::10/64 dev uplink nodad
		ip link set uplink up; ip link set uplink-peer up
		ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0; ip addr add fd00:1::1/64 dev cni0 nodad; ip link set cni0 up
		ip link add vlan-bridge type bridge; ip link set vlan-bridge up
		ip link add link vlan-bridge name vlan-top type macvlan; ip addr add 10.6.0.1/24 dev vlan-top; ip link set vlan-top up
		ip netns add routed
		ip link add vrouted type veth peer name eth0 netns routed; ip link set vrouted up
		ip route add 10.7.0.7/32 dev vrouted; ip -6 route add fd00:7::7/128 dev vrouted
		ip route add 10.8.0.0/24 dev vrouted
		ip tuntap add tap0 mode tap; ip link set tap0 up; ip route add 10.7.0.8/32 dev tap0
		ip link add shim link uplink type macvlan mode bridge; ip link set shim up; ip route add 192.168.1.77/32 dev shim
		ip link add antrea-gw0 type ifb; ip addr add 10.5.0.1/24 dev antrea-gw0; ip link set antrea-gw0 up
		ip netns add mac; ip link add eth0 link uplink netns mac type macvlan mode bridge; ip -n mac addr add 192.168.1.50/24 dev eth0; ip -n mac link set eth0 up
		ip route add 10.99.0.0/24 via 192.168.1.1
		ip route add unreachable 10.98.0.1/32`)
	a := newTestAttachments(t, time.Minute, nil)
	for _, tt := range []struct{ name, addr, want string }{
		{"bridge", "10.244.1.5", ""},
		{"bridge, IPv6", "fd00:1::5", ""},
		{"VLAN on a bridge", "10.6.0.5", ""},
		{"routed veth", "10.7.0.7", ""},
		{"routed veth, IPv6", "fd00:7::7", ""},
		{"routed tap", "10.7.0.8", ""},
		{"macvlan", "192.168.1.50", "192.168.1.50 uplink(veth)"},
		{"underlay, IPv6", "2001:db8::50", "2001:db8::50 uplink(veth)"},
		{"macvlan with a shim on the host", "192.168.1.77", "192.168.1.77 shim(macvlan)"},
		{"somebody's switch", "10.5.0.5", "10.5.0.5 antrea-gw0(ifb)"},
		{"a veth that leads to many", "10.8.0.8", "10.8.0.8 vrouted(veth)"},
		{"elsewhere", "10.99.0.9", "10.99.0.9 uplink(veth)"},
		{"the node's own", "192.168.1.10", "192.168.1.10 uplink(veth)"},
		{"no route", "10.97.0.1", "10.97.0.1 ()"},
		{"no route, IPv6", "2001:db9::1", "2001:db9::1 ()"},
		{"unreachable", "10.98.0.1", "10.98.0.1 ()"},
	} {
		if got := a.lookLater(t, tt.addr); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestAttachmentsLast believes what lasts, and forgets it when it is over.
func TestAttachmentsLast(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, `ip link add pod type veth peer name peer; ip link set pod up; ip link set peer up`)
	observed := make(chan []Unseen, 1000)
	a := newTestAttachments(t, 400*time.Millisecond, func(u []Unseen) { observed <- u })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	until := func(what string, ok func([]Unseen) bool) {
		t.Helper()
		for deadline := time.After(time.Minute); ; {
			select {
			case u := <-observed:
				if ok(u) {
					return
				}
			case <-deadline:
				t.Fatalf("never %s", what)
			}
		}
	}
	none := func(u []Unseen) bool { return len(u) == 0 }
	one := func(u []Unseen) bool { return len(u) == 1 && u[0].Addr == netip.MustParseAddr("10.1.0.1") }
	began := time.Now()
	a.Want(addresses("10.1.0.1"))
	until("looked at", none)
	until("unseen", one)
	if took := time.Since(began); took < 400*absentFactor*time.Millisecond {
		t.Errorf("believed that there is no route after %v", took)
	}
	isolate.Sh(t, "ip route add 10.1.0.1/32 dev pod")
	until("seen", none)
	isolate.Sh(t, "ip route add 10.1.0.0/24 dev pod; ip route del 10.1.0.1/32")
	began = time.Now()
	until("not seen by a device that leads to many", one)
	if took := time.Since(began); took < 400*time.Millisecond {
		t.Errorf("believed after %v", took)
	}
	isolate.Sh(t, "ip link del pod")
	a.Want(addresses("10.1.0.1", "10.1.0.2"))
	until("unseen again", func(u []Unseen) bool { return len(u) == 2 })
	a.Want(nil)
	until("gone", none)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(a.since) != 0 || len(a.devices) != 0 {
		t.Errorf("kept %v and %v", a.since, a.devices)
	}
}

func TestExists(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, "ip link add cilium_host type bridge")
	for name, want := range map[string]bool{"cilium_host": true, "antrea-gw0": false, "lo": true} {
		if got, err := Exists(name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// BenchmarkAttachments is one look at 250 pods. It works in the network namespace
// that it is run in, and changes nothing there.
func BenchmarkAttachments(b *testing.B) {
	a := newTestAttachments(b, time.Minute, nil)
	var pods []netip.Addr
	for i := range 250 {
		pods = append(pods, netip.AddrFrom4([4]byte{127, 1, 0, byte(i)}))
	}
	slices.SortFunc(pods, netip.Addr.Compare)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.look(pods, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}
