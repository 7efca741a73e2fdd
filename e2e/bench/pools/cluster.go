package pools

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/policy"
)

// Cluster describes pools and nodes; see README.md.
type Cluster struct {
	// Pools have natOutgoing, all of them. The first one has the pods.
	Pools int `json:"pools"`
	// Nodes have podCIDRs in the first pool and an address, of each family.
	Nodes int `json:"nodes"`
}

// String names the cluster in tables.
func (c Cluster) String() string {
	return fmt.Sprintf("%s, %s", count(c.Pools, "pool"), count(c.Nodes, "node"))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// What the figures are about, by family: the pool that has the pods, the blocks of one
// node in it, two pods of two nodes, and a place that is in no pool.
var (
	podPool  = [...]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00:10::/32")}
	podBlock = [...]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00:10::/64")}
	pod      = [...]netip.Addr{netip.MustParseAddr("10.0.0.10"), netip.MustParseAddr("fd00:10::10")}
	otherPod = [...]netip.Addr{netip.MustParseAddr("10.255.0.10"), netip.MustParseAddr("fd00:10:0:ffff::10")}
	outside  = [...]netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:ffff::10")}
)

// node returns a node. The first is the one that is measured; their addresses do not
// touch, so that each is an interval of its own.
func node(i int) *policy.Node {
	name := fmt.Sprintf("node-%d", i)
	if i == 0 {
		name = bench.Node
	}
	return &policy.Node{
		Meta: policy.Meta{Name: name},
		PodCIDRs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 256), byte(i), 0}), 24),
			netip.PrefixFrom(v6([...]uint16{0xfd00, 0x10, 0, uint16(i)}, 0), 64),
		},
		Addrs: []netip.Addr{
			netip.AddrFrom4([4]byte{172, 16 + byte(i/32768), byte(i / 128), byte(2 * i)}),
			v6([...]uint16{0x2001, 0xdb8, 1, 0}, uint16(2*i)),
		},
	}
}

func v6(network [4]uint16, host uint16) netip.Addr {
	var b [16]byte
	for i, n := range network {
		b[2*i], b[2*i+1] = byte(n>>8), byte(n)
	}
	b[14], b[15] = byte(host>>8), byte(host)
	return netip.AddrFrom16(b)
}

// pool returns a pool. Only the first one has pods.
func pool(i int) *policy.Pool {
	p := &policy.Pool{Meta: policy.Meta{Name: fmt.Sprintf("pool-%d", i)}, NATOutgoing: true, CIDRs: podPool[:]}
	if i > 0 {
		p.CIDRs = []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64 + byte(i/256), byte(i), 0}), 25),
			netip.PrefixFrom(v6([...]uint16{0xfd00, 0x11, 0, uint16(2 * i)}, 0), 64),
		}
	}
	return p
}

// compiler returns a compiler that knows the cluster.
func (c Cluster) compiler() *policy.Compiler {
	out := policy.NewCompiler(policy.DefaultConfig(bench.Node))
	for i := range c.Pools {
		out.Update(policy.Delta{Object: pool(i)})
	}
	for i := range c.Nodes {
		out.Update(policy.Delta{Object: node(i)})
	}
	return out
}

// masquerade is the part of a ruleset that masquerades: chains of type nat, and what
// they lead to. The rest is policy's, whose cost has a benchmark of its own.
func masquerade(r *policy.Ruleset) *policy.Ruleset {
	var out policy.Ruleset
	for _, f := range policy.Families {
		from, to := &r.Tables[f], &out.Tables[f]
		to.Family = f
		used := make(map[string]bool)
		// Those that a chain leads to come before it, by their names.
		for _, c := range slices.Backward(from.Chains) {
			if !used[c.Name] && (c.Hook == nil || !c.Hook.NAT) {
				continue
			}
			to.Chains = append(to.Chains, c)
			for _, r := range c.Rules {
				used[r.Verdict.Chain] = true
				for _, m := range r.Match {
					used[m.Name] = true
				}
			}
		}
		slices.Reverse(to.Chains)
		for _, s := range from.Sets {
			if used[s.Name] {
				to.Sets = append(to.Sets, s)
			}
		}
	}
	return &out
}

// change is what brings a cluster's masquerade into force where there is nothing.
func (c Cluster) change() *policy.Change {
	return policy.Diff(&policy.Ruleset{}, masquerade(c.compiler().Ruleset()))
}
