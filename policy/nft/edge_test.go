package nft

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"

	"github.com/selvage-net/selvage/policy"
)

// edge is a pod, the router that is its node, and a host outside, which has addresses
// in several blocks and tells everybody from which address it is asked.
type edge struct {
	pod, router, outside *namespace
	// dialled counts the flows. Each has a port of its own, since one that is used
	// again soon belongs to the flow that was.
	dialled atomic.Uint32
}

// place is where something is in both families.
type place [len(policy.Families)]netip.Addr

func at(v4, v6 string) place { return place{netip.MustParseAddr(v4), netip.MustParseAddr(v6)} }

// The addresses of an edge.
var (
	edgePod    = at("10.1.0.2", "fd00:1::2")
	edgeRouter = at("192.0.2.1", "2001:db8::1")
	// edgeWorld is outside of all blocks, edgePeer in a pool, edgeKept in a block
	// that sees the pod's own address.
	edgeWorld = at("192.0.2.2", "2001:db8::2")
	edgePeer  = at("10.9.0.9", "fd00:9::9")
	edgeKept  = at("198.51.100.9", "2001:db8:51::9")
)

func newEdge(t *testing.T) *edge {
	t.Helper()
	e := &edge{pod: newNamespace(t), router: newNamespace(t), outside: newNamespace(t)}
	for _, ns := range []*namespace{e.pod, e.router, e.outside} {
		// Nobody waits to find that an address is nobody else's.
		ns.run(t, "", "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
	}
	h := e.router.netlink(t)
	for name, peer := range map[string]*namespace{"pod0": e.pod, "up0": e.outside} {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(peer.handle)}
		if err := h.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
	}
	e.address(t)
	for _, p := range []place{edgeWorld, edgePeer, edgeKept} {
		for _, a := range p {
			e.serve(t, a)
		}
	}
	// The neighbours find each other: that takes IPv6 some tries.
	for _, a := range edgeWorld {
		for try := 1; ; try++ {
			_, err := ask(e.dial(t, a)[0], 100*time.Millisecond)
			if err == nil {
				break
			}
			if try == patient {
				t.Fatal(err)
			}
		}
	}
	return e
}

// address gives everybody addresses and routes.
func (e *edge) address(t *testing.T) {
	t.Helper()
	for ns, script := range map[*namespace]string{
		e.pod: `
			ip address add 10.1.0.2/24 dev eth0
			ip address add fd00:1::2/64 dev eth0 nodad
			ip link set eth0 up
			ip route add default via 10.1.0.1
			ip route add default via fd00:1::1`,
		e.router: `
			sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
			ip address add 10.1.0.1/24 dev pod0
			ip address add fd00:1::1/64 dev pod0 nodad
			ip address add 192.0.2.1/24 dev up0
			ip address add 2001:db8::1/64 dev up0 nodad
			ip link set pod0 up
			ip link set up0 up
			ip route add default via 192.0.2.2
			ip route add default via 2001:db8::2`,
		e.outside: `
			ip link set lo up
			ip address add 192.0.2.2/24 dev eth0
			ip address add 2001:db8::2/64 dev eth0 nodad
			for a in 10.9.0.9/32 198.51.100.9/32; do ip address add $a dev lo; done
			for a in fd00:9::9/128 2001:db8:51::9/128; do ip address add $a dev lo nodad; done
			ip link set eth0 up
			ip route add 10.1.0.0/24 via 192.0.2.1
			ip route add fd00:1::/64 via 2001:db8::1`,
	} {
		ns.run(t, script, "sh", "-e")
	}
}

const (
	// edgePort is where the host outside answers.
	edgePort = 7
	// firstPort is the first from which the pod asks.
	firstPort = 10_000
)

// serve tells who asks at an address from where it asks.
func (e *edge) serve(t *testing.T, a netip.Addr) {
	t.Helper()
	var c *net.UDPConn
	var err error
	e.outside.do(t, func() { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, edgePort))) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		var b [64]byte
		for {
			_, from, err := c.ReadFromUDPAddrPort(b[:])
			if err != nil {
				return
			}
			if _, err := c.WriteToUDPAddrPort([]byte(from.Addr().Unmap().String()), from); err != nil {
				return
			}
		}
	}()
}

// dial returns a socket of the pod for a new flow to each of some addresses.
func (e *edge) dial(t *testing.T, to ...netip.Addr) []*net.UDPConn {
	t.Helper()
	var flows []*net.UDPConn
	var err error
	e.pod.do(t, func() {
		for _, a := range to {
			from := netip.AddrPortFrom(edgePod[policy.FamilyOf(a)], uint16(firstPort+e.dialled.Add(1)))
			var c *net.UDPConn
			if c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, edgePort))); err != nil {
				return
			}
			flows = append(flows, c)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return flows
}

// ask returns the address from which a flow comes to those outside, and closes it.
func ask(flow *net.UDPConn, patience time.Duration) (netip.Addr, error) {
	defer flow.Close()
	if err := flow.SetDeadline(time.Now().Add(patience)); err != nil {
		return netip.Addr{}, err
	}
	if _, err := flow.Write([]byte("?")); err != nil {
		return netip.Addr{}, err
	}
	var b [64]byte
	n, err := flow.Read(b[:])
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(string(b[:n]))
}

// forever is how long an answer is waited for that must come. No packet is lost on
// veth: who waits that long has a machine that has no time.
const forever = time.Minute

// mustAsk fails the test if those outside do not see want.
func (e *edge) mustAsk(t *testing.T, what string, to, want netip.Addr) {
	t.Helper()
	got, err := ask(e.dial(t, to)[0], forever)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("%s: a flow to %s comes from %s, want %s", what, to, got, want)
	}
}

// counted is how many flows our rule has masqueraded.
func (e *edge) counted(t *testing.T, f policy.Family) int {
	t.Helper()
	list := e.router.run(t, "", "nft", "list", "chain", f.String(), policy.TableName, hookPostrouting)
	_, after, ok := strings.Cut(list, "counter packets ")
	var n int
	if _, err := fmt.Sscan(after, &n); !ok || err != nil {
		t.Fatalf("no counter in\n%s", list)
	}
	return n
}

// natTables is a ruleset that masquerades what leaves some blocks for a place that is
// in none of the pools and is not kept.
func natTables(masquerade, pools, kept []netip.Prefix) *policy.Ruleset {
	r := &policy.Ruleset{}
	for _, f := range policy.Families {
		from, to, keep := blocks("masquerade", f, masquerade), blocks("pools", f, pools), blocks("kept", f, kept)
		r.Tables[f] = policy.Table{
			Family: f,
			Sets:   []policy.Set{keep, from, to},
			Chains: []policy.Chain{{
				Name: hookPostrouting, Hook: &policy.Hook{Name: hookPostrouting, Priority: 110, NAT: true},
				Rules: []policy.Rule{{
					Match: []policy.Match{
						{Field: policy.FieldSaddr, Op: policy.OpIn, Name: from.Name},
						{Field: policy.FieldDaddr, Op: policy.OpNotIn, Name: to.Name},
						{Field: policy.FieldDaddr, Op: policy.OpNotIn, Name: keep.Name},
					},
					Counter: true, Verdict: policy.Verdict{Kind: policy.VerdictMasquerade},
				}},
			}},
		}
	}
	return r
}

// blocks is the set of the blocks that are of a family.
func blocks(name string, f policy.Family, prefixes []netip.Prefix) policy.Set {
	s := policy.Set{Name: name + f.Suffix(), Key: [2]policy.Type{policy.TypeAddr}, Interval: true}
	for _, p := range prefixes {
		if policy.FamilyOf(p.Addr()) == f {
			s.Elements = append(s.Elements, policy.Element{Key: policy.AddrKey(p.Addr()), To: policy.AddrKey(netipx.PrefixLastIP(p))})
		}
	}
	slices.SortFunc(s.Elements, func(a, b policy.Element) int { return strings.Compare(a.Key, b.Key) })
	return s
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}
