package policytest

import (
	"fmt"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-net/selvage/policy"
)

// The blocks that pools are made of: the nodes' ranges and parts of them, what holds
// them, single pods, what is outside, the nodes' own addresses, and those of Services.
var (
	poolBlocks = prefixes(
		"10.1.0.0/24", "10.1.0.0/24", "10.1.0.0/29", "10.1.0.4/30", "10.1.0.128/25", "10.1.0.2/32", "10.1.0.3/32", "10.2.0.0/24", "10.2.0.0/24", "10.2.0.0/30",
		"10.0.0.0/8", "10.9.0.0/24", "192.168.0.0/24", "10.96.0.0/16", "203.0.113.0/24", "0.0.0.0/0",
		"fd00:1::/64", "fd00:1::/64", "fd00:1::/125", "fd00:1::2/128", "fd00:2::/64", "fd00:2::/64", "fd00::/16", "fd00:9::/64", "fd00:ff::/64", "fd00:96::/112", "::/0",
	)
	serviceBlocks = prefixes("10.96.0.0/16", "10.96.0.0/16", "10.96.0.0/24", "10.97.0.0/24", "10.1.0.192/26", "fd00:96::/112", "fd00:96::/112", "fd00:1::8000/113")
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

// podKeys are the labels that selectors of pods ask for. Pools have the names of
// values, so that a selector for one can be right, and so that a pod can pretend.
func (d drawer) podKeys() []string {
	if d.o.Pools {
		return append(slices.Clone(podKeys), policy.PoolLabel)
	}
	return podKeys
}

func (d drawer) podLabels() map[string]string {
	m := d.labels(podKeys)
	if d.o.Pools && d.upTo(3) == 3 {
		m[policy.PoolLabel] = pick(d, labelVals...)
	}
	return m
}

// namespaceKeys are the labels that selectors of namespaces ask for. A namespace has no
// pool, and so may have any label.
func (d drawer) namespaceKeys() []string {
	if d.o.Pools {
		return []string{"team", policy.PoolLabel}
	}
	return []string{"team"}
}

// pools draws some pools, or none, and ranges of Services.
func (d drawer) pools(s *policy.Snapshot) {
	for range d.upTo(4) {
		d.addPool(s)
	}
	for range d.upTo(2) {
		d.addServices(s)
	}
}

func (d drawer) addPool(s *policy.Snapshot) {
	p := d.pool(pick(d, append(labelVals, "z")...), pick(d, policy.OriginSelvage, policy.OriginSelvage, policy.OriginCalico))
	if !slices.ContainsFunc(s.Pools, func(o *policy.Pool) bool { return o.Name == p.Name && o.Origin == p.Origin }) {
		s.Pools = append(s.Pools, p)
	}
}

func (d drawer) pool(name string, origin policy.Origin) *policy.Pool {
	p := &policy.Pool{
		Meta:   policy.Meta{Name: name, UID: types.UID(fmt.Sprintf("pool-%s-%s", origin, name))},
		Origin: origin, Created: d.created(),
		// Flows without ports, of which there can be only one between two addresses,
		// would have the same source.
		NATOutgoing: d.maybe() && !d.o.Physical,
		Disabled:    d.rarely(),
		Nodes:       pick(d, nil, nil, zone("x"), zone("y")),
	}
	for range 1 + d.upTo(2) {
		p.CIDRs = append(p.CIDRs, pick(d, poolBlocks...))
	}
	return p
}

// created draws a time such that pools, nodes and Services are often of one second.
func (d drawer) created() int64 { return int64(1000 + d.upTo(3)) }

// zone selects nodes.
func zone(value string) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchLabels: map[string]string{"zone": value}})
	if err != nil {
		panic(err)
	}
	return sel
}

func (d drawer) addServices(s *policy.Snapshot) {
	v := d.services(pick(d, "kubernetes", "more"))
	if !slices.ContainsFunc(s.Services, func(o *policy.ServiceCIDR) bool { return o.Name == v.Name }) {
		s.Services = append(s.Services, v)
	}
}

func (d drawer) services(name string) *policy.ServiceCIDR {
	v := &policy.ServiceCIDR{Meta: policy.Meta{Name: name, UID: types.UID("services-" + name)}, Created: d.created()}
	for range 1 + d.upTo(1) {
		v.CIDRs = append(v.CIDRs, pick(d, serviceBlocks...))
	}
	return v
}

// address gives a node what pools need to know of it.
func (d drawer) address(n *policy.Node) {
	n.Created = d.created()
	n.Labels = policy.NewLabels(d.labels([]string{"zone"}))
	if d.likely() {
		n.Addrs = nodeAddrs(n.Name)
	}
	if !d.o.Physical && d.rarely() {
		n.Addrs = append(n.Addrs, netip.MustParseAddr(pick(d, "10.1.0.3", "10.2.0.1", "203.0.113.9", "fd00:1::1", "2001:db8::9")))
		slices.SortFunc(n.Addrs, netip.Addr.Compare)
	}
}

// changePools changes a pool or a range of Services.
func (d drawer) changePools(s *policy.Snapshot) {
	switch n := d.upTo(7); {
	case n == 0:
		d.addServices(s)
	case n == 1 && len(s.Services) > 0:
		i := d.upTo(len(s.Services) - 1)
		s.Services = slices.Delete(s.Services, i, i+1)
	case n == 2 && len(s.Services) > 0:
		i := d.upTo(len(s.Services) - 1)
		s.Services[i] = d.services(s.Services[i].Name)
	case n <= 4 || len(s.Pools) == 0:
		d.addPool(s)
	case n == 5:
		i := d.upTo(len(s.Pools) - 1)
		s.Pools = slices.Delete(s.Pools, i, i+1)
	default:
		i := d.upTo(len(s.Pools) - 1)
		s.Pools[i] = d.otherPool(s.Pools[i])
	}
}

// otherPool changes one thing about a pool, or makes another one of that name.
func (d drawer) otherPool(old *policy.Pool) *policy.Pool {
	fresh := d.pool(old.Name, old.Origin)
	p := *old
	switch d.upTo(3) {
	case 0:
		p.NATOutgoing = fresh.NATOutgoing
	case 1:
		p.Nodes = fresh.Nodes
	case 2:
		p.Disabled = !p.Disabled
	default:
		return fresh
	}
	return &p
}

// poolPlaces are addresses that it matters for whether they are masqueraded.
func poolPlaces(s policy.Snapshot) []netip.Addr {
	if len(s.Pools)+len(s.Services) == 0 {
		return nil
	}
	var out []netip.Addr
	for _, text := range []string{
		"10.96.0.1", "10.96.255.1", "10.97.0.1", "10.1.0.200", "10.9.0.2", "10.255.0.1", "224.0.0.251", "198.51.100.7",
		"fd00:96::1", "fd00:1::8001", "fd00:9::2", "fd00:ff::1", "fd00:ff::2", "ff02::fb", "2001:db8:7::1",
	} {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

func poolText(p *policy.Pool) string {
	nodes := "all"
	if p.Nodes != nil {
		nodes = p.Nodes.String()
	}
	return fmt.Sprintf("pool %s (%s) %v created %d natOutgoing %v disabled %v nodes %s\n", p.Name, p.Origin, p.CIDRs, p.Created, p.NATOutgoing, p.Disabled, nodes)
}
