package nflog

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/florianl/go-nflog/v2"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/informer/link/isolate"
)

// logAll makes rules of both families for what comes in, by lo.
func logAll(t *testing.T, rules ...string) {
	t.Helper()
	var b strings.Builder
	for _, family := range []string{"ip", "ip6"} {
		b.WriteString("table " + family + " test {\n chain input {\n type filter hook input priority 0\n")
		for _, r := range rules {
			b.WriteString("  " + r + "\n")
		}
		b.WriteString(" }\n}\n")
	}
	isolate.Sh(t, "nft -f - <<'END'\n"+b.String()+"END")
}

// listen opens a Reader and returns it, and what it takes.
func listen(t *testing.T, o Options) (*Reader, <-chan Packet) {
	t.Helper()
	taken := make(chan Packet, 1<<16)
	o.Take = func(p Packet) { taken <- p }
	o.Lost = func(n uint32) { t.Errorf("%d packets were lost", n) }
	r, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return r, taken
}

func dial(t *testing.T, network, address string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func send(t *testing.T, c net.Conn, n int) {
	t.Helper()
	for range n {
		// The first may have the second be told that nobody is there.
		if _, err := c.Write([]byte("selvage")); err != nil && !strings.Contains(err.Error(), "connection refused") {
			t.Fatal(err)
		}
	}
}

// TestReader reads what rules log, of both families.
func TestReader(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	logAll(t,
		`udp dport 53 log prefix "deny-egress-a" group 24090 snaplen 128 drop`,
		`tcp dport 80 log prefix "deny-egress-b" group 24090 snaplen 128 reject with tcp reset`,
		`tcp sport 81 log prefix "deny-ingress-c" group 24090 snaplen 128`,
		`udp dport 54 log prefix "short" group 24090 snaplen 22 drop`,
		`udp dport 55 log prefix "another's" group 24091 drop`)
	began := time.Now()
	r, taken := listen(t, Options{Group: 24090})
	for _, host := range []string{"127.0.0.1", "::1"} {
		addr := netip.MustParseAddr(host)
		is := func(what string, change func(p, want *Packet)) {
			t.Helper()
			p := <-taken
			want := Packet{Source: addr, Destination: addr, Interface: "lo", Time: p.Time, SourcePort: p.SourcePort, Length: p.Length}
			change(&p, &want)
			if p != want || p.Length == 0 || p.Time.Before(began.Add(-time.Second)) || p.Time.After(time.Now().Add(time.Second)) {
				t.Errorf("%s: %+v, want %+v", what, p, want)
			}
		}
		send(t, dial(t, "udp", net.JoinHostPort(host, "55")), 1)
		send(t, dial(t, "udp", net.JoinHostPort(host, "53")), 1)
		is("UDP", func(_, want *Packet) {
			want.Prefix, want.Protocol, want.DestinationPort = "deny-egress-a", unix.IPPROTO_UDP, 53
		})
		if _, err := net.Dial("tcp", net.JoinHostPort(host, "80")); err == nil {
			t.Error("a connection that is reset")
		}
		is("TCP", func(_, want *Packet) {
			want.Prefix, want.Protocol, want.DestinationPort, want.TCPFlags = "deny-egress-b", unix.IPPROTO_TCP, 80, SYN
		})
		if _, err := net.Dial("tcp", net.JoinHostPort(host, "81")); err == nil {
			t.Error("a connection where nobody listens")
		}
		is("an answer", func(p, want *Packet) {
			want.Prefix, want.Protocol, want.SourcePort, want.DestinationPort = "deny-ingress-c", unix.IPPROTO_TCP, 81, p.DestinationPort
			want.TCPFlags = RST | ACK
		})
		send(t, dial(t, "udp", net.JoinHostPort(host, "54")), 1)
		is("a packet of which too little is logged", func(p, want *Packet) {
			want.Prefix = "short"
			if addr.Is4() {
				want.Protocol = unix.IPPROTO_UDP
				return
			}
			want.Source, want.Destination, p.Length = netip.Addr{}, netip.Addr{}, 1
			want.Length = 1
		})
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-r.Done():
	default:
		t.Error("it is not done")
	}
}

// TestInterface names where a packet came in: the port of a bridge, before the bridge,
// and in another namespace what is there.
func TestInterface(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, strings.ReplaceAll(`
		ip netns add a
		ip netns add b
		ip link add br0 type bridge nf_call_iptables 1
		ip addr add 10.9.0.254/24 dev br0
		ip link set br0 up
		for n in a b; do
			ip link add port-$n type veth peer name eth0 netns $n
			ip link set port-$n master br0 up
			ip -n $n link set eth0 up
			ip -n $n link set lo up
		done
		ip -n a addr add 10.9.0.1/24 dev eth0
		ip -n b addr add 10.9.0.2/24 dev eth0
		cat >RULES <<'END'
		table ip test {
			chain forward { type filter hook forward priority 0; udp dport 53 log prefix "forward" group 7 drop; }
			chain input { type filter hook input priority 0; udp dport 53 log prefix "input" group 7 drop; }
		}
END
		nft -f RULES
		ip netns exec a nft -f RULES`, "RULES", filepath.Join(t.TempDir(), "rules")))
	r, taken := listen(t, Options{Group: 7})
	defer r.Close()
	a, err := os.Open("/run/netns/a")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	inside, takenInside := listen(t, Options{Group: 7, NetNS: int(a.Fd())})
	defer inside.Close()
	for _, tt := range []struct {
		to, prefix, in string
		taken          <-chan Packet
	}{
		{"10.9.0.2", "forward", "port-a", taken},
		{"10.9.0.254", "input", "port-a", taken},
		{"10.9.0.1", "input", "lo", takenInside},
	} {
		isolate.Sh(t, "ip netns exec a bash -c 'echo > /dev/udp/"+tt.to+"/53'")
		if p := <-tt.taken; p.Prefix != tt.prefix || p.Interface != tt.in || p.Source.String() != "10.9.0.1" {
			t.Errorf("to %s: %+v, want %s by %s", tt.to, p, tt.prefix, tt.in)
		}
	}
}

// TestLost counts what is not read: nothing goes on before all has been sent.
func TestLost(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	logAll(t, `udp dport 53 log prefix "a" group 24090 snaplen 128 drop`, `udp dport 54 log prefix "last" group 24090 drop`)
	const many = 20000
	start := make(chan struct{})
	taken, lost := 0, 0
	last := make(chan struct{}, 1)
	r, err := Open(Options{Group: 24090, Buffer: 64 << 10, Rate: 1 << 30, Lost: func(n uint32) { lost += int(n) }, Take: func(p Packet) {
		<-start
		taken++
		if p.Prefix == "last" {
			select {
			case last <- struct{}{}:
			default: // it was noticed
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	send(t, dial(t, "udp", "127.0.0.1:53"), many)
	close(start)
	// The last one may find the buffer full, still.
	for c := dial(t, "udp", "127.0.0.1:54"); ; {
		send(t, c, 1)
		select {
		case <-last:
		case <-time.After(50 * time.Millisecond):
			continue
		}
		break
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if taken+lost < many || taken+lost > many+1000 || lost < many/2 {
		t.Errorf("%d taken and %d lost, of %d", taken, lost, many)
	}
}

// TestGroupTaken says so, and what comes after can have the group.
func TestGroupTaken(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	r, _ := listen(t, Options{Group: 24090})
	if _, err := Open(Options{Group: 24090, Take: func(Packet) {}}); err == nil || !strings.Contains(err.Error(), "group 24090 of nflog, as one program at a time can") {
		t.Errorf("a second one: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	r, _ = listen(t, Options{Group: 24090})
	if err := r.socket.Con.Close(); err != nil {
		t.Fatal(err)
	}
	<-r.Done()
	if err := r.Close(); err == nil || !strings.Contains(err.Error(), "read nflog: ") {
		t.Errorf("the socket failed, and it says: %v", err)
	}
}

// TestRate takes no more than the limit in a second.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		taken := 0
		r := &Reader{take: func(Packet) { taken++ }, brake: brake{limit: 100}}
		takes := func(n int, want time.Duration) {
			t.Helper()
			began := time.Now()
			for range n {
				r.receive(nflog.Attribute{})
			}
			if took := time.Since(began); took != want {
				t.Errorf("%d at 100 in a second take %v, want %v", n, took, want)
			}
		}
		takes(350, 3*time.Second)
		time.Sleep(time.Minute)
		takes(99, 0)
		if taken != 350+99 {
			t.Errorf("%d were taken", taken)
		}
	})
}
