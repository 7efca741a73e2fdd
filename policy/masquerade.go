package policy

import (
	"net/netip"
	"slices"

	"go4.org/netipx"
)

// natPriority is where the chain stands that masquerades. kube-proxy, flannel and the
// other base CNIs do that at 100 (NF_IP_PRI_NAT_SRC): they go first. The source of a
// flow is translated once only, and so what they masquerade does not come here.
const natPriority = 110

// chainPostrouting masquerades. It and chainLeaving are there only if something is to be
// masqueraded.
//
// A look into an interval set takes as long as ten comparisons with a constant, even if
// there is little in it. So what is most of a cluster's traffic is decided by constants:
// what goes to the pool of this node's own pods stays as it is; what goes to an address
// that is not private, nor near to one of a pool or a node, leaves. Only the rest is
// looked up, in chainLeaving. The constants are wide, so that pools and nodes that come
// and go hardly ever change them.
const (
	chainPostrouting = "postrouting"
	chainLeaving     = "leaving"
)

// The sets that chainPostrouting looks at, without their families' suffixes.
const (
	setMasquerade = "masquerade"
	setPools      = "pools"
	setKept       = "kept"
)

// multicast are the groups of each family, in which may be pods and anybody else.
var multicast = [len(Families)]netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}

// isBlocks tells whether a set is one of those.
func isBlocks(set string) bool {
	for _, f := range Families {
		for _, name := range []string{setMasquerade, setPools, setKept} {
			if set == name+f.Suffix() {
				return true
			}
		}
	}
	return false
}

// renderMasquerade brings what masquerades up to date with the pools in force, the
// nodes and the ranges of Services. It is no business of the generation's: what is
// allowed stays allowed, and a flow keeps the source that it began with.
func (c *Compiler) renderMasquerade() {
	masquerade, pools := c.poolBlocks()
	for _, t := range c.tables {
		f := t.family
		if len(masquerade[f]) == 0 {
			if t.chains[chainPostrouting] != nil {
				t.releaseChain(chainPostrouting)
				t.releaseChain(chainLeaving)
			}
			continue
		}
		kept := c.kept(f)
		from := Match{Field: FieldSaddr, Op: OpIn, Name: t.fillBlocks(setMasquerade, "pools with natOutgoing on this node", masquerade[f])}
		to := t.fillBlocks(setPools, "all pools", pools[f])
		others := t.fillBlocks(setKept, "nodes, Services and others that see the pods' own addresses", kept)
		c.keepChain(t, chainLeaving, nil, []Rule{{
			Match: []Match{
				from,
				{Field: FieldDaddr, Op: OpNotIn, Name: to},
				{Field: FieldDaddr, Op: OpNotIn, Name: others},
			},
			Counter: true,
			Verdict: Verdict{Kind: VerdictMasquerade},
		}})
		c.keepChain(t, chainPostrouting, &Hook{Name: chainPostrouting, Priority: natPriority, NAT: true},
			c.postroutingRules(f, masquerade[f], slices.Concat(pools[f], kept)))
	}
}

// postroutingRules decide by constants what they can. inside are all blocks to which
// packets keep their source.
func (c *Compiler) postroutingRules(f Family, masquerade, inside []netip.Prefix) []Rule {
	var rules []Rule
	var own []netip.Prefix
	if n := c.nodes[c.cfg.NodeName]; n != nil {
		for _, b := range n.PodCIDRs {
			if FamilyOf(b.Addr()) == f {
				own = append(own, b)
			}
		}
	}
	holder := func(of []netip.Prefix, b netip.Prefix) int {
		return slices.IndexFunc(of, func(o netip.Prefix) bool { return o.Bits() <= b.Bits() && o.Overlaps(b) })
	}
	for _, b := range own {
		if i := holder(inside, b); i >= 0 {
			rules = append(rules, Rule{
				Match:   []Match{{Field: FieldDaddr, Op: OpPrefix, Prefix: inside[i]}},
				Verdict: Verdict{Kind: VerdictAccept}, Comment: "where the pods of this node are",
			})
		}
	}
	for _, b := range around(f, inside) {
		rules = append(rules, Rule{
			Match:   []Match{{Field: FieldDaddr, Op: OpPrefix, Prefix: b}},
			Verdict: Verdict{Kind: VerdictGoto, Chain: chainLeaving},
		})
	}
	for _, b := range own {
		if holder(masquerade, b) >= 0 {
			rules = append(rules, Rule{
				Match:   []Match{{Field: FieldSaddr, Op: OpPrefix, Prefix: b}},
				Counter: true, Verdict: Verdict{Kind: VerdictMasquerade}, Comment: "pods of this node",
			})
		}
	}
	return append(rules, Rule{Verdict: Verdict{Kind: VerdictGoto, Chain: chainLeaving}})
}

// private are ranges where clusters have their addresses: those of RFC 1918 and RFC
// 6598 (shared), and what is not unicast; in IPv6 those of RFC 4193, link-local ones and
// multicast.
func private(f Family) []netip.Prefix {
	if f == IPv6 {
		return []netip.Prefix{netip.MustParsePrefix("fc00::/6")}
	}
	return []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("224.0.0.0/3"),
	}
}

// maxAround is how many blocks there are around what is in no private range.
const maxAround = 3

// around returns a few blocks, sorted, that hold all of the given ones: the private
// ranges, and for the rest what these have in common.
func around(f Family, blocks []netip.Prefix) []netip.Prefix {
	ranges := private(f)
	var rest []netip.Prefix
	for _, b := range blocks {
		if !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Bits() <= b.Bits() && r.Overlaps(b) }) {
			rest = append(rest, b)
		}
	}
	rest = maximal(rest)
	for len(rest) > maxAround {
		// Those two become one that differ latest. They are neighbours.
		best, bits := 0, -1
		for i := range rest[1:] {
			if n := common(rest[i], rest[i+1]).Bits(); n > bits {
				best, bits = i, n
			}
		}
		rest[best] = common(rest[best], rest[best+1])
		rest = slices.Delete(rest, best+1, best+2)
	}
	return maximal(slices.Concat(ranges, rest))
}

// common returns the smallest block that holds two.
func common(a, b netip.Prefix) netip.Prefix {
	bits := min(a.Bits(), b.Bits())
	for {
		p := netip.PrefixFrom(a.Addr(), bits).Masked()
		if p.Contains(b.Addr()) {
			return p
		}
		bits--
	}
}

// poolBlocks returns the blocks that are masqueraded on this node, and those of all
// pools in force. Neither of the two holds blocks that overlap.
func (c *Compiler) poolBlocks() (masquerade, pools [len(Families)][]netip.Prefix) {
	var labels Labels
	if n := c.nodes[c.cfg.NodeName]; n != nil {
		labels = n.Labels
	}
	for _, p := range c.resolved.All {
		outgoing := c.cfg.Masquerade && p.NATOutgoing && p.On(labels)
		for _, b := range p.CIDRs {
			f := FamilyOf(b.Addr())
			pools[f] = append(pools[f], b)
			if outgoing {
				masquerade[f] = append(masquerade[f], b)
			}
		}
	}
	return masquerade, pools
}

// kept returns the blocks of a family to which packets keep their source.
func (c *Compiler) kept(f Family) []netip.Prefix {
	blocks := []netip.Prefix{multicast[f]}
	add := func(more []netip.Prefix) {
		for _, b := range more {
			if FamilyOf(b.Addr()) == f {
				blocks = append(blocks, b)
			}
		}
	}
	add(c.cfg.NoMasquerade)
	add(c.cfg.ServiceCIDRs)
	for _, s := range c.services {
		add(s.CIDRs)
	}
	for _, n := range c.nodes {
		add(n.PodCIDRs)
		for _, a := range n.Addrs {
			if FamilyOf(a) == f {
				blocks = append(blocks, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	return maximal(blocks)
}

// maximal sorts blocks, and leaves out those that others hold.
func maximal(blocks []netip.Prefix) []netip.Prefix {
	slices.SortFunc(blocks, comparePrefix)
	out := blocks[:0]
	for _, b := range blocks {
		// Blocks are nested or have nothing in common, and the largest comes first.
		if len(out) == 0 || !out[len(out)-1].Overlaps(b) {
			out = append(out, b)
		}
	}
	return out
}

// fillBlocks makes a set hold just these blocks, which do not overlap, and returns
// its name.
func (t *liveTable) fillBlocks(name, about string, blocks []netip.Prefix) string {
	set := t.addSet(Set{Name: name + t.family.Suffix(), Key: [2]Type{TypeAddr}, Interval: true, Comment: about}, roleBlocks)
	want := make(map[string]struct{}, len(blocks))
	for _, b := range blocks {
		want[AddrKey(b.Addr())+AddrKey(netipx.PrefixLastIP(b))] = struct{}{}
	}
	for key := range set.elem {
		if _, ok := want[key]; !ok {
			t.setElem(set, key, false, Verdict{})
		}
	}
	for key := range want {
		t.setElem(set, key, true, Verdict{})
	}
	return set.Name
}
