package policytest

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
)

// The nodes of every world. NodeA is the one that is judged.
const (
	NodeA = "node-a"
	NodeB = "node-b"
)

// World is a cluster as NodeA sees it, and packets to try on it.
type World struct {
	Snapshot policy.Snapshot
	Packets  []oracle.Packet
}

// Options say which worlds to make.
type Options struct {
	// Physical leaves out what cannot be built of network namespaces: addresses
	// that several running pods share, that lie outside the podCIDRs of their
	// pod's node, or that the node itself needs.
	Physical bool
	// Valid leaves out policies that the API server would refuse.
	Valid bool
	// Pools adds pools and ranges of Services, and policies that select pods by their
	// pools. None of the pools masquerades if Physical is set.
	Pools bool
	// Packets is how many packets to draw. 0 means 20.
	Packets int
}

// Example returns the world of a seed, always the same.
func Example(o Options, seed int) World { return Worlds(o).Example(seed) }

// Worlds makes worlds.
func Worlds(o Options) *rapid.Generator[World] {
	if o.Packets == 0 {
		o.Packets = 20
	}
	return rapid.Custom(func(t *rapid.T) World {
		w := World{Snapshot: Snapshots(o).Draw(t, "snapshot")}
		w.Packets = rapid.SliceOfN(Packets(w.Snapshot), o.Packets, o.Packets).Draw(t, "packets")
		return w
	})
}

// Snapshots makes clusters without packets.
func Snapshots(o Options) *rapid.Generator[policy.Snapshot] {
	return rapid.Custom(func(t *rapid.T) policy.Snapshot {
		d := drawer{t, o}
		var s policy.Snapshot
		for _, name := range namespaces {
			if d.likely() {
				s.Namespaces = append(s.Namespaces, d.namespace(name))
			}
		}
		for _, name := range []string{NodeA, NodeB} {
			if name == NodeA && o.Physical || d.likely() {
				s.Nodes = append(s.Nodes, d.node(name))
			}
		}
		if d.maybe() {
			s.Bridges = append(s.Bridges, d.bridge())
		}
		// rapid prefers small numbers; sums make worlds that are full more often.
		for i := range min(8, d.upTo(8)+d.upTo(4)+d.upTo(4)) {
			s.Pods = append(s.Pods, d.pod(s, i))
		}
		if o.Pools {
			d.pools(&s)
		}
		for i := range min(5, d.upTo(5)+d.upTo(3)) {
			s.Policies = append(s.Policies, d.policy(s, i))
		}
		return s
	})
}

var (
	namespaces = []string{"red", "green", "blue"}
	podKeys    = []string{"app", "tier"}
	labelVals  = []string{"x", "y"}
	portNames  = []string{"http", "dns"}
	portNums   = []int{53, 80, 81, 443, 8080}
	protocols  = []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP}
)

// drawer draws the parts of a world.
type drawer struct {
	t *rapid.T
	o Options
}

func pick[T any](d drawer, from ...T) T { return rapid.SampledFrom(from).Draw(d.t, "pick") }

func (d drawer) upTo(n int) int { return rapid.IntRange(0, n).Draw(d.t, "n") }
func (d drawer) maybe() bool    { return d.upTo(1) == 1 }
func (d drawer) likely() bool   { return d.upTo(5) != 0 }
func (d drawer) rarely() bool   { return d.upTo(11) == 11 }

// invalid decides whether to draw something that the API server would refuse.
func (d drawer) invalid() bool { return !d.o.Valid && d.upTo(24) == 24 }

func (d drawer) labels(keys []string) map[string]string {
	m := map[string]string{}
	for _, k := range keys {
		if d.upTo(2) != 0 {
			m[k] = pick(d, labelVals...)
		}
	}
	return m
}

// ns draws the namespace of an object: most are in one, so that they meet.
func (d drawer) ns() string { return pick(d, "red", "red", "red", "green", "green", "blue") }

func (d drawer) namespace(name string) *policy.Namespace {
	m := d.labels(d.namespaceKeys())
	m[corev1.LabelMetadataName] = name
	return &policy.Namespace{Meta: policy.Meta{Name: name, UID: types.UID("ns-" + name)}, Labels: policy.NewLabels(m)}
}

func (d drawer) bridge() *policy.Bridge {
	return &policy.Bridge{Meta: policy.Meta{Name: pick(d, "cni0", "cbr0")}}
}

// The ranges of the nodes. They are small so that blocks often cut them.
func nodeCIDRs(name string) (v4, v6 netip.Prefix) {
	if name == NodeA {
		return netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")
	}
	return netip.MustParsePrefix("10.2.0.0/24"), netip.MustParsePrefix("fd00:2::/64")
}

func (d drawer) node(name string) *policy.Node {
	n := &policy.Node{Meta: policy.Meta{Name: name, UID: types.UID("node-" + name)}}
	v4, v6 := nodeCIDRs(name)
	if d.o.Physical || d.likely() {
		n.PodCIDRs = append(n.PodCIDRs, v4)
	}
	if d.o.Physical || d.likely() {
		n.PodCIDRs = append(n.PodCIDRs, v6)
	}
	if !d.o.Physical && d.rarely() {
		// A second block: one that pods are in which no block held before, one
		// within the first, or one that holds it.
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(pick(d, "10.9.0.0/24", "10.1.0.0/29", "10.0.0.0/8", "fd00:9::/64", "fd00:1::/127", "fd00::/16")))
	}
	if d.o.Pools {
		d.address(n)
	}
	return n
}

// pod draws a pod and gives it an identity that no other pod of s has.
func (d drawer) pod(s policy.Snapshot, i int) *policy.Pod {
	p := &policy.Pod{
		Meta:        policy.Meta{Namespace: d.ns(), Name: fmt.Sprintf("pod-%d", i), UID: uid(i, 0)},
		Node:        pick(d, NodeA, NodeA, NodeA, NodeB, NodeB),
		Labels:      policy.NewLabels(d.podLabels()),
		Ports:       d.namedPorts(),
		Created:     int64(1000 + d.upTo(3)),
		HostNetwork: d.rarely(),
		Finished:    d.rarely(),
	}
	if !d.o.Physical && d.rarely() {
		p.Node = pick(d, "", "node-c")
	}
	p.Addrs = d.addrs(s, p)
	return p
}

// uid is that of the pod number i in its nth life.
func uid(i, life int) types.UID { return types.UID(fmt.Sprintf("pod-%d-%d", i, life)) }

func (d drawer) namedPorts() []policy.NamedPort {
	var ports []policy.NamedPort
	for range d.upTo(3) {
		ports = append(ports, policy.NamedPort{
			Name: pick(d, portNames...), Protocol: pick(d, protocols...), Port: uint16(pick(d, portNums...)),
		})
	}
	return ports
}

// addrs draws the addresses of a pod: one of a family, the other, both or none.
func (d drawer) addrs(s policy.Snapshot, p *policy.Pod) []netip.Addr {
	if p.HostNetwork {
		return nodeAddrs(p.Node)
	}
	var addrs []netip.Addr
	families := pick(d, 3, 3, 3, 1, 2, 0)
	v4, v6 := nodeCIDRs(p.Node)
	if !d.o.Physical && d.rarely() {
		v4, v6 = nodeCIDRs(NodeA)
	}
	if families&1 != 0 {
		addrs = d.addr(addrs, s, v4, netip.MustParseAddr("10.9.0.2"))
	}
	if families&2 != 0 {
		addrs = d.addr(addrs, s, v6, netip.MustParseAddr("fd00:9::2"))
	}
	return addrs
}

func (d drawer) addr(addrs []netip.Addr, s policy.Snapshot, cidr netip.Prefix, outside netip.Addr) []netip.Addr {
	if !d.o.Physical && d.rarely() {
		return append(addrs, outside)
	}
	a := cidr.Addr().Next().Next()
	if d.o.Physical || d.maybe() {
		// The first that is free, so that addresses of gone pods come back.
		for oracle.Owner(s, a) != nil {
			a = a.Next()
		}
		return append(addrs, a)
	}
	for range d.upTo(8) {
		a = a.Next()
	}
	return append(addrs, a)
}

func nodeAddrs(node string) []netip.Addr {
	if node == NodeA {
		return []netip.Addr{netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("fd00:ff::1")}
	}
	return []netip.Addr{netip.MustParseAddr("192.168.0.2"), netip.MustParseAddr("fd00:ff::2")}
}

// GoString renders the world for a failure report.
func (w World) GoString() string { return Text(w.Snapshot) }

// Text renders a snapshot for people.
func Text(s policy.Snapshot) string {
	var b strings.Builder
	b.WriteByte('\n')
	for _, n := range s.Nodes {
		fmt.Fprintf(&b, "node %s %v addrs %v labels %v created %d\n", n.Name, n.PodCIDRs, n.Addrs, n.Labels, n.Created)
	}
	for _, p := range s.Pools {
		b.WriteString(poolText(p))
	}
	for _, v := range s.Services {
		fmt.Fprintf(&b, "services %s %v created %d\n", v.Name, v.CIDRs, v.Created)
	}
	for _, br := range s.Bridges {
		fmt.Fprintf(&b, "bridge %s\n", br.Name)
	}
	for _, n := range s.Namespaces {
		fmt.Fprintf(&b, "namespace %s %v\n", n.Name, n.Labels)
	}
	for _, p := range s.Pods {
		fmt.Fprintf(&b, "pod %s/%s %s on %q labels %v addrs %v ports %v created %d", p.Namespace, p.Name, p.UID, p.Node, p.Labels, p.Addrs, p.Ports, p.Created)
		if p.HostNetwork {
			b.WriteString(" hostNetwork")
		}
		if p.Finished {
			b.WriteString(" finished")
		}
		b.WriteByte('\n')
	}
	for _, np := range s.Policies {
		b.WriteString(policyText(np))
	}
	return b.String()
}

func policyText(np *networkingv1.NetworkPolicy) string {
	spec, err := json.Marshal(np.Spec)
	if err != nil {
		spec = []byte(err.Error())
	}
	return fmt.Sprintf("policy %s/%s %s ingress nil: %v egress nil: %v\n", np.Namespace, np.Name, spec, np.Spec.Ingress == nil, np.Spec.Egress == nil)
}
