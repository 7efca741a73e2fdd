package policy_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go4.org/netipx"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

func blocks(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func pool(name string, created int64, cidrs ...string) *policy.Pool {
	return &policy.Pool{Meta: policy.Meta{Name: name}, Created: created, CIDRs: blocks(cidrs...)}
}

func calicoPool(name string, created int64, cidrs ...string) *policy.Pool {
	p := pool(name, created, cidrs...)
	p.Origin = policy.OriginCalico
	return p
}

// poolNode is a node with an address.
func poolNode(name string, created int64, addr string) *policy.Node {
	return &policy.Node{Meta: policy.Meta{Name: name}, Created: created, Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
}

func services(name string, created int64, cidrs ...string) *policy.ServiceCIDR {
	return &policy.ServiceCIDR{Meta: policy.Meta{Name: name}, Created: created, CIDRs: blocks(cidrs...)}
}

// poolsText says all there is to say about pools: a line for each pool and its blocks
// in force, then one for each problem.
func poolsText(p *policy.Pools) string {
	var b strings.Builder
	for _, pool := range p.All {
		fmt.Fprintf(&b, "%s %s %v\n", pool.Origin, pool.Name, pool.CIDRs)
	}
	for _, pr := range p.Problems {
		fmt.Fprintf(&b, "! %s %s %s %s %s in force %v\n", pr.Pool.Origin, pr.Pool.Name, pr.Reason, pr.CIDR, pr.With, pr.InForce)
	}
	return b.String()
}

func TestResolve(t *testing.T) {
	spoilt := pool("spoilt", 1, "10.1.0.0/24")
	spoilt.Err = errors.New("spec.bandwidth: no number")
	tests := []struct {
		name     string
		pools    []*policy.Pool
		nodes    []*policy.Node
		services []*policy.ServiceCIDR
		want     string
	}{
		{name: "nothing"},
		{
			name: "implicit",
			nodes: []*policy.Node{
				{Meta: policy.Meta{Name: "b"}, Created: 1, PodCIDRs: blocks("10.2.0.0/24", "fd00:2::/64"), Addrs: []netip.Addr{netip.MustParseAddr("10.2.0.1")}},
				{Meta: policy.Meta{Name: "a"}, Created: 1, PodCIDRs: blocks("10.1.0.0/24")},
				{Meta: policy.Meta{Name: "younger"}, Created: 2, PodCIDRs: blocks("10.1.0.0/16", "10.3.0.0/24")},
				{Meta: policy.Meta{Name: "none"}, Created: 1},
			},
			services: []*policy.ServiceCIDR{services("s", 1, "10.0.0.0/8")},
			want:     "node a [10.1.0.0/24]\nnode b [10.2.0.0/24 fd00:2::/64]\nnode younger [10.3.0.0/24]\n",
		},
		{
			name:  "explicit ones end the implicit ones",
			pools: []*policy.Pool{pool("p", 5, "10.9.0.0/24")},
			nodes: []*policy.Node{{Meta: policy.Meta{Name: "a"}, PodCIDRs: blocks("10.1.0.0/24")}},
			want:  "selvage p [10.9.0.0/24]\n",
		},
		{
			name:  "the order of blocks is the pool's",
			pools: []*policy.Pool{pool("p", 1, "fd00:2::/64", "10.2.0.0/24", "10.1.0.0/24", "fd00:1::/64")},
			want:  "selvage p [fd00:2::/64 10.2.0.0/24 10.1.0.0/24 fd00:1::/64]\n",
		},
		{
			name:  "the older stays",
			pools: []*policy.Pool{pool("a", 2, "10.1.0.0/16", "10.2.0.0/24"), pool("b", 1, "10.1.3.0/24")},
			want:  "selvage b [10.1.3.0/24]\nselvage a [10.2.0.0/24]\n! selvage a overlap 10.1.0.0/16 b in force false\n",
		},
		{
			name:  "of the same second the first by name",
			pools: []*policy.Pool{pool("b", 1, "10.1.0.0/16"), pool("a", 1, "10.1.0.0/16")},
			want:  "selvage a [10.1.0.0/16]\nselvage b []\n! selvage b overlap 10.1.0.0/16 a in force false\n",
		},
		{
			name:  "ours before Calico's, whatever their age, and though the name is the same",
			pools: []*policy.Pool{calicoPool("a", 1, "10.1.0.0/24", "10.2.0.0/24"), pool("a", 2, "10.1.0.0/24")},
			want:  "selvage a [10.1.0.0/24]\ncalico a [10.2.0.0/24]\n! calico a overlap 10.1.0.0/24 a in force false\n",
		},
		{
			name:  "two origins of one name, nothing in common",
			pools: []*policy.Pool{calicoPool("a", 1, "10.1.0.0/24"), pool("a", 1, "10.2.0.0/24")},
			want:  "selvage a [10.2.0.0/24]\ncalico a [10.1.0.0/24]\n",
		},
		{
			name:  "blocks of one pool that overlap: the largest",
			pools: []*policy.Pool{pool("a", 1, "10.1.0.0/24", "10.1.0.0/16", "10.1.7.0/24", "10.1.0.0/16")},
			want: "selvage a [10.1.0.0/16]\n! selvage a overlap 10.1.0.0/16 a in force false\n" +
				"! selvage a overlap 10.1.0.0/24 a in force false\n! selvage a overlap 10.1.7.0/24 a in force false\n",
		},
		{
			name:  "what is not in force is in nobody's way",
			pools: []*policy.Pool{pool("a", 1, "10.1.0.0/24"), pool("b", 2, "10.0.0.0/8"), pool("c", 3, "10.2.0.0/24")},
			want:  "selvage a [10.1.0.0/24]\nselvage b []\nselvage c [10.2.0.0/24]\n! selvage b overlap 10.0.0.0/8 a in force false\n",
		},
		{
			name:  "everything, of one family",
			pools: []*policy.Pool{pool("a", 1, "0.0.0.0/0"), pool("b", 2, "::/0"), pool("c", 3, "255.255.255.255/32", "::/128", "ffff::/16")},
			want: "selvage a [0.0.0.0/0]\nselvage b [::/0]\nselvage c []\n! selvage c overlap 255.255.255.255/32 a in force false\n" +
				"! selvage c overlap ::/128 b in force false\n! selvage c overlap ffff::/16 b in force false\n",
		},
		{
			name:  "single addresses side by side",
			pools: []*policy.Pool{pool("a", 1, "10.0.0.1/32", "10.0.0.3/32", "fd00::1/128"), pool("b", 2, "10.0.0.2/32", "10.0.0.3/32", "fd00::/128", "fd00::2/127")},
			want: "selvage a [10.0.0.1/32 10.0.0.3/32 fd00::1/128]\nselvage b [10.0.0.2/32 fd00::/128 fd00::2/127]\n" +
				"! selvage b overlap 10.0.0.3/32 a in force false\n",
		},
		{
			name:  "nodes older, younger and of the same second",
			pools: []*policy.Pool{pool("p", 2, "192.168.1.0/24", "192.168.2.0/24", "192.168.3.0/24", "10.1.0.0/24")},
			nodes: []*policy.Node{poolNode("older", 1, "192.168.1.1"), poolNode("same", 2, "192.168.2.0"), poolNode("younger", 3, "192.168.3.255"), poolNode("out", 1, "192.168.4.0")},
			want: "selvage p [192.168.3.0/24 10.1.0.0/24]\n! selvage p node-address 192.168.1.0/24 older in force false\n" +
				"! selvage p node-address 192.168.2.0/24 same in force false\n! selvage p node-address 192.168.3.0/24 younger in force true\n",
		},
		{
			name:  "the oldest node is named",
			pools: []*policy.Pool{pool("p", 2, "10.0.0.0/8")},
			nodes: []*policy.Node{poolNode("b", 3, "10.0.0.1"), poolNode("c", 1, "10.0.0.2"), poolNode("a", 1, "10.0.0.2"), poolNode("d", 1, "10.0.0.3")},
			want:  "selvage p []\n! selvage p node-address 10.0.0.0/8 a in force false\n",
		},
		{
			name:     "ranges of Services, and a younger node besides",
			pools:    []*policy.Pool{pool("p", 2, "10.96.0.0/24", "10.97.0.0/16", "fd00::/8", "10.98.0.0/24")},
			nodes:    []*policy.Node{poolNode("younger", 3, "10.96.0.1")},
			services: []*policy.ServiceCIDR{services("new", 3, "10.97.1.0/24"), services("b", 1, "10.96.0.0/16"), services("a", 1, "10.99.0.0/24", "10.96.0.0/24", "fd00:96::/112")},
			want: "selvage p [10.97.0.0/16 10.98.0.0/24]\n! selvage p node-address 10.96.0.0/24 younger in force false\n! selvage p service-addresses 10.96.0.0/24 a in force false\n" +
				"! selvage p service-addresses 10.97.0.0/16 new in force true\n! selvage p service-addresses fd00::/8 a in force false\n",
		},
		{
			name:  "a block that holds a node leaves room for another pool's",
			pools: []*policy.Pool{pool("a", 1, "10.0.0.0/8"), pool("b", 2, "10.1.0.0/24")},
			nodes: []*policy.Node{poolNode("n", 1, "10.0.0.1")},
			want:  "selvage a []\nselvage b [10.1.0.0/24]\n! selvage a node-address 10.0.0.0/8 n in force false\n",
		},
		{
			name:  "the rest of what cannot be understood",
			pools: []*policy.Pool{spoilt},
			want:  "selvage spoilt [10.1.0.0/24]\n! selvage spoilt invalid invalid Prefix  in force false\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := policy.Resolve(tt.pools, tt.nodes, tt.services)
			if text := poolsText(got); text != tt.want {
				t.Errorf("got\n%swant\n%s", text, tt.want)
			}
			if got.Implicit != (len(tt.pools) == 0) {
				t.Errorf("implicit: %v", got.Implicit)
			}
			for _, p := range tt.pools {
				if slices.Contains(got.All, p) {
					t.Errorf("%s is not a copy: what came in would be changed", p.Name)
				}
			}
		})
	}
}

// TestResolveSays: the one who reads of a problem needs nothing else.
func TestResolveSays(t *testing.T) {
	got := policy.Resolve(
		[]*policy.Pool{pool("a", 2, "10.1.0.0/24", "10.0.0.0/8"), calicoPool("b", 1, "10.1.0.0/16", "192.168.0.0/16", "10.96.0.0/16")},
		[]*policy.Node{poolNode("n", 2, "192.168.0.1")}, []*policy.ServiceCIDR{services("kubernetes", 1, "10.96.0.0/24")})
	want := []string{
		"10.0.0.0/8 overlaps 10.96.0.0/24, where Services have their addresses: leave those out of the pools",
		"10.1.0.0/16 overlaps 10.1.0.0/24 of the pool a (selvage), which goes first and stays: give each pool addresses of its own",
		"10.96.0.0/16 overlaps 10.96.0.0/24, where Services have their addresses: leave those out of the pools",
		"192.168.0.0/16 holds the address 192.168.0.1 of the node n: leave the nodes' addresses out of the pools; the block was there first and stays in force",
	}
	var says []string
	for _, p := range got.Problems {
		says = append(says, p.Err.Error())
	}
	if !slices.Equal(says, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(says, "\n"), strings.Join(want, "\n"))
	}
}

// drawPools draws what pools follow from: blocks of few addresses, so that they meet.
func drawPools(t *rapid.T) (pools []*policy.Pool, nodes []*policy.Node, ranges []*policy.ServiceCIDR) {
	upTo := func(n int) int { return rapid.IntRange(0, n).Draw(t, "n") }
	addr := func() netip.Addr {
		low := byte(upTo(15)) << 4
		return rapid.SampledFrom([]netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, low}), netip.AddrFrom4([4]byte{255, 255, 255, low + 15}), netip.AddrFrom16([16]byte{0xfd, 15: low})}).Draw(t, "addr")
	}
	cidrs := func(most int) (out []netip.Prefix) {
		for range 1 + upTo(most-1) {
			a := addr()
			bits := a.BitLen() - rapid.SampledFrom([]int{0, 4, 4, 5, 6, 7, 8, a.BitLen()}).Draw(t, "host bits")
			out = append(out, netip.PrefixFrom(a, bits).Masked())
		}
		return out
	}
	for i := range upTo(7) {
		p := &policy.Pool{Meta: policy.Meta{Name: fmt.Sprint(i / 2)}, Origin: policy.Origin(i % 2), Created: int64(upTo(3)), CIDRs: cidrs(4)}
		pools = append(pools, p)
	}
	for i := range upTo(3) {
		n := &policy.Node{Meta: policy.Meta{Name: fmt.Sprint(i)}, Created: int64(upTo(4)), PodCIDRs: cidrs(2)}
		for range upTo(2) {
			n.Addrs = append(n.Addrs, addr())
		}
		nodes = append(nodes, n)
	}
	for i := range upTo(2) {
		ranges = append(ranges, &policy.ServiceCIDR{Meta: policy.Meta{Name: fmt.Sprint(i)}, Created: int64(upTo(4)), CIDRs: cidrs(2)})
	}
	return pools, nodes, ranges
}

// TestResolveProperties: no two blocks in force overlap; what is not in force has a
// reason, and what is in force has none against it; the order of the objects does not
// matter; and a look-up finds what a search finds.
func TestResolveProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pools, nodes, ranges := drawPools(t)
		got := policy.Resolve(pools, nodes, ranges)
		again := policy.Resolve(rapid.Permutation(pools).Draw(t, "pools"), rapid.Permutation(nodes).Draw(t, "nodes"), rapid.Permutation(ranges).Draw(t, "ranges"))
		if a, b := poolsText(got), poolsText(again); a != b {
			t.Fatalf("in another order:\n%s\ninstead of\n%s", b, a)
		}
		if got.Implicit {
			nodes, ranges = nil, nil
		}
		seen := map[netip.Prefix]*policy.Pool{}
		for _, p := range got.All {
			for _, c := range p.CIDRs {
				for o := range seen {
					if o.Overlaps(c) {
						t.Fatalf("%s and %s are both in force:\n%s", o, c, poolsText(got))
					}
				}
				seen[c] = p
			}
		}
		for _, p := range pools {
			for _, c := range p.CIDRs {
				at := seen[c]
				inForce := at != nil && at.Name == p.Name && at.Origin == p.Origin
				if against := against(p, c, seen, nodes, ranges); inForce != (against == "") {
					t.Fatalf("%s of %s (%s) is in force: %v, and against it is %q:\n%s", c, p.Name, p.Origin, inForce, against, poolsText(got))
				}
			}
		}
		lookUp(t, got)
	})
}

// against says what speaks against a block of p, given those in force.
func against(p *policy.Pool, c netip.Prefix, inForce map[netip.Prefix]*policy.Pool, nodes []*policy.Node, ranges []*policy.ServiceCIDR) string {
	for o, other := range inForce {
		same := other.Name == p.Name && other.Origin == p.Origin
		if o.Overlaps(c) && (same && o.Bits() < c.Bits() || !same && other.Compare(p) < 0) {
			return other.Name
		}
	}
	for _, n := range nodes {
		if n.Created <= p.Created && slices.ContainsFunc(n.Addrs, c.Contains) {
			return n.Name
		}
	}
	for _, s := range ranges {
		if s.Created <= p.Created && slices.ContainsFunc(s.CIDRs, c.Overlaps) {
			return s.Name
		}
	}
	return ""
}

// lookUp compares Of with a search, at the ends of all blocks and beside them.
func lookUp(t interface{ Fatalf(string, ...any) }, p *policy.Pools) {
	for _, around := range p.All {
		for _, c := range around.CIDRs {
			r := netipx.RangeOfPrefix(c)
			for _, a := range []netip.Addr{r.From(), r.To(), r.From().Prev(), r.To().Next()} {
				if !a.IsValid() {
					continue
				}
				var want *policy.Pool
				for _, pool := range p.All {
					if pool.Contains(a) {
						want = pool
					}
				}
				if got := p.Of(a); got != want {
					t.Fatalf("%s is in %+v, want %+v", a, got, want)
				}
			}
		}
	}
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("fd00::1%eth0")} {
		if got := p.Of(a); got != nil {
			t.Fatalf("%s is in %+v", a, got)
		}
	}
}

// manyPools are as many as there could be, of 16 blocks each, older than a pool of
// everything, and the last of them twice.
func manyPools(n int) []*policy.Pool {
	pools := []*policy.Pool{pool("everything", 3, "10.0.0.0/8")}
	for i := range n {
		p := pool(fmt.Sprintf("pool-%04d", i), 1)
		for j := range 16 {
			p.CIDRs = append(p.CIDRs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 4), byte(i<<4 | j), 0}), 24))
		}
		pools = append(pools, p)
	}
	again := *pools[n]
	again.Name, again.Created = "again", 2
	return append(pools, &again)
}

func TestManyPools(t *testing.T) {
	got := policy.Resolve(manyPools(1000), nil, nil)
	inForce := 0
	for _, p := range got.All {
		inForce += len(p.CIDRs)
	}
	if inForce != 16000 || len(got.Problems) != 17 {
		t.Errorf("%d blocks are in force, and there are %d problems", inForce, len(got.Problems))
	}
	lookUp(t, got)
	if p := got.Of(netip.MustParseAddr("10.62.127.255")); p == nil || p.Name != "pool-0999" {
		t.Errorf("the last address is in %+v", p)
	}
}

func BenchmarkResolve(b *testing.B) {
	pools := manyPools(1000)
	for b.Loop() {
		policy.Resolve(pools, nil, nil)
	}
}

// TestOfPod: IPv4 goes first, however the addresses stand; and who has no address of
// his own is in no pool.
func TestOfPod(t *testing.T) {
	got := policy.Resolve([]*policy.Pool{pool("four", 1, "10.1.0.0/24"), pool("six", 1, "fd00:1::/64")}, nil, nil)
	tests := []struct {
		name  string
		addrs []string
		host  bool
		done  bool
		want  string
	}{
		{name: "both", addrs: []string{"10.1.0.2", "fd00:1::2"}, want: "four"},
		{name: "both, IPv6 first", addrs: []string{"fd00:1::2", "10.1.0.2"}, want: "four"},
		{name: "IPv4 elsewhere", addrs: []string{"10.2.0.2", "fd00:1::2"}, want: "six"},
		{name: "elsewhere", addrs: []string{"10.2.0.2"}},
		{name: "not yet"},
		{name: "on the node's network", addrs: []string{"10.1.0.2"}, host: true},
		{name: "finished", addrs: []string{"10.1.0.2"}, done: true},
	}
	for _, tt := range tests {
		pod := somePod("p", policytest.NodeA, "")
		pod.HostNetwork, pod.Finished = tt.host, tt.done
		for _, a := range tt.addrs {
			pod.Addrs = append(pod.Addrs, netip.MustParseAddr(a))
		}
		name := ""
		if p := got.OfPod(pod); p != nil {
			name = p.Name
		}
		if name != tt.want {
			t.Errorf("%s: in %q, want %q", tt.name, name, tt.want)
		}
	}
}
