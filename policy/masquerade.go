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

// chainPostrouting masquerades. It is there only if something is to be masqueraded.
const chainPostrouting = "postrouting"

// The sets that chainPostrouting looks at, without their families' suffixes.
const (
	setMasquerade = "masquerade"
	setPools      = "pools"
	setKept       = "kept"
)

// multicast are the groups of each family: nobody there could answer a node.
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
			}
			continue
		}
		from := t.fillBlocks(setMasquerade, "pools with natOutgoing on this node", masquerade[f])
		to := t.fillBlocks(setPools, "all pools", pools[f])
		kept := t.fillBlocks(setKept, "nodes, Services and others that see the pods' own addresses", c.kept(f))
		c.keepChain(t, chainPostrouting, &Hook{Name: chainPostrouting, Priority: natPriority, NAT: true}, []Rule{{
			Match: []Match{
				{Field: FieldSaddr, Op: OpIn, Name: from},
				{Field: FieldDaddr, Op: OpNotIn, Name: to},
				{Field: FieldDaddr, Op: OpNotIn, Name: kept},
			},
			Counter: true,
			Verdict: Verdict{Kind: VerdictMasquerade},
		}})
	}
}

// poolBlocks returns the blocks that are masqueraded on this node, and those of all
// pools in force. Neither overlap.
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

// kept returns the blocks of a family that packets to which keep their source.
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
