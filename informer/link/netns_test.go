package link

import (
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/selvage-net/selvage/informer/link/isolate"
)

// addPod makes a pod: a namespace whose eth0 is a port of the bridge.
func addPod(t *testing.T, name, bridge string, addrs ...string) {
	t.Helper()
	r := strings.NewReplacer("POD", name, "BRIDGE", bridge)
	isolate.Sh(t, r.Replace(`ip netns add POD
		ip link add vPOD type veth peer name eth0 netns POD
		ip link set vPOD master BRIDGE up
		ip -n POD link set lo up
		ip -n POD link set eth0 up`))
	for _, a := range addrs {
		isolate.Sh(t, "ip -n "+name+" addr add "+a+" dev eth0 nodad")
	}
}

// inNetNS calls f on a thread inside the namespace.
func inNetNS(t *testing.T, name string, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromName(name)
		if err == nil {
			defer ns.Close()
			if err = netns.Set(ns); err == nil {
				err = f()
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("in %s: %v", name, err)
	}
}

// probe can send packets from one pod to another.
type probe struct {
	from net.Conn
	to   net.PacketConn
}

func newProbe(t *testing.T, from, to, addr string) probe {
	t.Helper()
	var p probe
	inNetNS(t, to, func() (err error) {
		p.to, err = net.ListenPacket("udp", net.JoinHostPort(addr, "7"))
		return err
	})
	inNetNS(t, from, func() (err error) {
		p.from, err = net.Dial("udp", net.JoinHostPort(addr, "7"))
		return err
	})
	t.Cleanup(func() { p.from.Close(); p.to.Close() })
	return p
}

// send sends until a packet arrives or until dropped tells that one was
// dropped, and returns whether one arrived.
func (p probe) send(t *testing.T, dropped func() bool) bool {
	t.Helper()
	buf := make([]byte, 16)
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if _, err := p.from.Write([]byte("selvage")); err != nil {
			t.Fatal(err)
		}
		if err := p.to.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := p.to.ReadFrom(buf); err == nil {
			return true
		}
		if dropped() {
			return false
		}
	}
	t.Fatal("a packet neither arrived nor was dropped")
	return false
}

// dropUDP has the forward hook count and drop UDP to the addresses, and returns
// a function that tells whether it ever did so to one of them.
func dropUDP(t *testing.T, addrs ...string) func(addr string) func() bool {
	t.Helper()
	rules := "add table inet test; add chain inet test forward { type filter hook forward priority 0; }\n"
	for _, a := range addrs {
		family := "ip"
		if netip.MustParseAddr(a).Is6() {
			family = "ip6"
		}
		rules += "add rule inet test forward " + family + " daddr " + a + " udp dport 7 counter drop\n"
	}
	isolate.Sh(t, "nft -f - <<'END'\n"+rules+"END")
	return func(addr string) func() bool {
		return func() bool {
			for line := range strings.Lines(isolate.Sh(t, "nft list chain inet test forward")) {
				if strings.Contains(line, " "+addr+" ") {
					return !strings.Contains(line, "packets 0 ")
				}
			}
			t.Fatalf("no rule for %s", addr)
			return false
		}
	}
}
