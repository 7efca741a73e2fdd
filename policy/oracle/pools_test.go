package oracle_test

import (
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
)

// withPools is cluster with pools. The pods of node a are in pool near, those of node b
// in far, which masquerades on nodes of zone x: on a, and not on b. Pool calico overlaps
// far, and so has nothing. Pool late is as old as node b and the Services whose addresses
// it holds; pool early is older than node a.
func withPools() policy.Snapshot {
	s := cluster()
	pool := func(name string, created int64, cidrs ...string) *policy.Pool {
		p := &policy.Pool{Meta: policy.Meta{Name: name}, Created: created}
		for _, c := range cidrs {
			p.CIDRs = append(p.CIDRs, netip.MustParsePrefix(c))
		}
		s.Pools = append(s.Pools, p)
		return p
	}
	pool("near", 1, "10.1.0.0/24").NATOutgoing = true
	far := pool("far", 4, "10.2.0.0/28", "10.5.0.0/24", "fd00:5::/64")
	far.NATOutgoing, far.Disabled, far.Nodes = true, true, labels.SelectorFromSet(labels.Set{"zone": "x"})
	pool("calico", 1, "10.2.0.0/16").Origin = policy.OriginCalico
	pool("late", 3, "192.168.0.0/24", "10.96.0.0/16", "10.6.0.0/16").NATOutgoing = true
	pool("early", 1, "192.168.1.0/24").NATOutgoing = true
	s.Nodes[0].Created, s.Nodes[0].Labels = 2, policy.NewLabels(map[string]string{"zone": "x"})
	s.Nodes[0].Addrs = []netip.Addr{netip.MustParseAddr("192.168.1.1")}
	s.Nodes[1].Created, s.Nodes[1].Addrs = 3, []netip.Addr{netip.MustParseAddr("192.168.0.2"), netip.MustParseAddr("fd00:ff::2")}
	s.Services = []*policy.ServiceCIDR{{Meta: policy.Meta{Name: "kubernetes"}, Created: 3, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/24")}}}
	return s
}

// TestMasqueraded are statements of docs/pools.md, one by one.
func TestMasqueraded(t *testing.T) {
	const world, world6 = "203.0.113.9", "2001:db8::9"
	tests := []struct {
		name, node, src, dst string
		want                 bool
	}{
		{"out of the pools", "a", "10.1.0.2", world, true},
		{"an address that no pod has", "a", "10.1.0.77", world, true},
		{"out of no pool", "a", "10.7.0.2", world, false},
		{"to another pool", "a", "10.1.0.2", "10.5.0.2", false},
		{"to its own pool", "a", "10.1.0.2", "10.1.0.3", false},
		{"by labels of the node", "a", "10.5.0.2", world, true},
		{"not by those of another", "b", "10.5.0.2", world, false},
		{"of a node that is not known", "c", "10.5.0.2", world, false},
		{"on every node", "c", "10.1.0.2", world, true},
		{"IPv6", "a", "fd00:5::2", world6, true},
		{"to a node of IPv6", "a", "fd00:5::2", "fd00:ff::2", false},
		{"to a node", "a", "10.1.0.2", "192.168.0.2", false},
		{"beside a node", "a", "10.1.0.2", "192.168.0.3", true},
		{"to a node's podCIDR that is in no pool", "a", "10.1.0.2", "10.2.0.200", false},
		{"to a Service", "a", "10.1.0.2", "10.96.0.1", false},
		{"beside the Services", "a", "10.1.0.2", "10.96.1.1", true},
		{"to a group", "a", "10.1.0.2", "224.0.0.251", false},
		{"to a group of IPv6", "a", "fd00:5::2", "ff02::fb", false},
		{"where the configuration says", "a", "10.1.0.2", "198.51.100.1", false},
		{"a pool without it", "a", "10.2.0.200", world, false},
		{"a block with a node of the same second", "a", "192.168.0.9", world, false},
		{"a block with Services of the same second", "a", "10.96.9.9", world, false},
		{"another block of that pool", "a", "10.6.0.2", world, true},
		{"a block that is older than the node", "a", "192.168.1.9", world, true},
	}
	for _, tt := range tests {
		p := oracle.Packet{Src: netip.MustParseAddr(tt.src), Dst: netip.MustParseAddr(tt.dst), Protocol: policy.TCP, Port: 80}
		if got := oracle.Masqueraded(withPools(), tt.node, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, p); got != tt.want {
			t.Errorf("%s: %s on %s: masqueraded %v", tt.name, p, tt.node, got)
		}
	}
}

// TestAllowedByPool: the pool of a pod is a label that it has.
func TestAllowedByPool(t *testing.T) {
	const db, web, client, liar, host = "10.1.0.2", "10.1.0.3", "10.2.0.2", "10.7.0.2", "192.168.0.2"
	const (
		fromFar = `{ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {selvage.dev/pool: far}}}]}]}`
		notNear = `{ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: selvage.dev/pool, operator: NotIn, values: [near]}]}}]}]}`
		inAny   = `{ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: selvage.dev/pool, operator: Exists}]}}]}]}`
		inNone  = `{ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: selvage.dev/pool, operator: DoesNotExist}]}}]}]}`
		near    = `{podSelector: {matchLabels: {selvage.dev/pool: near}}}`
		notIn   = `{podSelector: {matchExpressions: [{key: selvage.dev/pool, operator: DoesNotExist}]}}`
	)
	tests := []struct {
		name, spec, src, dst string
		implicit             bool
		want                 bool
	}{
		{"a peer's pool", fromFar, client, db, false, true},
		{"another pool", fromFar, web, db, false, false},
		{"what is only a label", fromFar, liar, db, false, false},
		{"not in: another pool", notNear, client, db, false, true},
		{"not in: none", notNear, liar, db, false, true},
		{"not in: that pool", notNear, web, db, false, false},
		{"exists", inAny, client, db, false, true},
		{"exists: only a label", inAny, liar, db, false, false},
		{"exists: on the node's network", inAny, host, db, false, false},
		{"does not exist", inNone, liar, db, false, true},
		{"does not exist: in a pool", inNone, web, db, false, false},
		{"the nodes' podCIDRs do not count", inAny, client, db, true, false},
		{"the pods that are selected", near, client, db, false, false},
		{"and those that are not", notIn, client, db, false, true},
		{"selected for having none", notIn, client, db, true, false},
	}
	for _, tt := range tests {
		s := withPools()
		if tt.implicit {
			s.Pools = nil
		}
		s.Pods = append(s.Pods, pod("default", "liar", "b", liar, 1, map[string]string{policy.PoolLabel: "far"}))
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "np"}}
		if err := yaml.UnmarshalStrict([]byte(tt.spec), &np.Spec); err != nil {
			t.Fatal(err)
		}
		s.Policies = append(s.Policies, np)
		p := oracle.Packet{Src: netip.MustParseAddr(tt.src), Dst: netip.MustParseAddr(tt.dst), Protocol: policy.TCP, Port: 80}
		if got := oracle.Allowed(s, "a", p); got != tt.want {
			t.Errorf("%s: %s: allowed %v", tt.name, p, got)
		}
	}
}
