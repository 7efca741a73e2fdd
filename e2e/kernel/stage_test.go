package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/conntrack"
	"github.com/selvage-net/selvage/policy/nft"
	"github.com/selvage-net/selvage/policy/policytest"
)

// requireRoot skips a test that needs privileges, or fails it where a skip
// would hide that it never ran.
func requireRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
		tb.Fatal("NOT RUN: network namespaces need root")
	}
	tb.Skip("SKIPPED, NOT TESTED: network namespaces need root")
}

// envInt reads a number from the environment.
func envInt(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// The nodes' ranges and addresses, as package policytest has them.
var (
	cidrs = map[string][]netip.Prefix{
		policytest.NodeA: {netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")},
		policytest.NodeB: {netip.MustParsePrefix("10.2.0.0/24"), netip.MustParsePrefix("fd00:2::/64")},
	}
	nodeAddrs = map[string][]netip.Addr{
		policytest.NodeA: {netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("fd00:ff::1")},
		policytest.NodeB: {netip.MustParseAddr("192.168.0.2"), netip.MustParseAddr("fd00:ff::2")},
		"outside":        {netip.MustParseAddr("192.168.0.3"), netip.MustParseAddr("fd00:ff::3")},
	}
)

// bridges are those of each node.
var bridges = []*policy.Bridge{{Meta: policy.Meta{Name: world.Bridge}}}

// stage is a cluster of two nodes and a host outside of it, which is the
// nodes' way to the rest of the world.
type stage struct {
	*world.World
	a, b    *enforced
	outside *world.Node
}

// enforced is a node whose rules follow a snapshot.
type enforced struct {
	*world.Node
	enforcer *nft.Enforcer
	snapshot policy.Snapshot
}

func newStage(t *testing.T, filtering world.BridgeFiltering) *stage {
	t.Helper()
	requireRoot(t)
	w, err := world.New()
	must(t, err)
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	s := &stage{World: w}
	s.outside, err = w.AddNode(world.NodeOptions{Name: "outside", Addrs: nodeAddrs["outside"]})
	must(t, err)
	for _, n := range []struct {
		name string
		at   **enforced
	}{{policytest.NodeA, &s.a}, {policytest.NodeB, &s.b}} {
		node, err := w.AddNode(world.NodeOptions{Name: n.name, PodCIDRs: cidrs[n.name], Addrs: nodeAddrs[n.name], Filtering: filtering})
		must(t, err)
		for _, everywhere := range []string{"0.0.0.0/0", "::/0"} {
			must(t, node.RouteVia(netip.MustParsePrefix(everywhere), s.outside))
		}
		*n.at = enforce(t, node, policy.DefaultConfig(n.name))
	}
	return s
}

// enforce gives a node its enforcer, with nothing in the kernel yet.
func enforce(t *testing.T, n *world.Node, cfg policy.Config) *enforced {
	t.Helper()
	e := nft.NewEnforcer(nft.EnforcerOptions{Conn: openConn(t, n), Config: cfg, Reclaimer: conntrack.Table{NetNS: n.FD()}})
	t.Cleanup(func() { _ = e.Close() })
	return &enforced{Node: n, enforcer: e}
}

// openConn opens what reads and writes a node's tables.
func openConn(t *testing.T, n *world.Node) *nft.Conn {
	t.Helper()
	c, err := nft.Open(nft.Options{NetNS: n.FD()})
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// set makes the node follow another snapshot, in one sync.
func (e *enforced) set(tb fataler, s policy.Snapshot) nft.Result {
	tb.Helper()
	r, err := e.enforcer.Sync(context.Background(), between(e.snapshot, s))
	if err != nil {
		tb.Fatalf("sync %s: %v", e.Name, err)
	}
	e.snapshot = s
	return r
}

// set makes both nodes follow a snapshot, and know of their bridge.
func (s *stage) set(tb fataler, snapshot policy.Snapshot) {
	tb.Helper()
	snapshot.Bridges = bridges
	s.a.set(tb, snapshot)
	s.b.set(tb, snapshot)
}

// between returns deltas that lead from one snapshot to another.
func between(before, after policy.Snapshot) []policy.Delta {
	var deltas []policy.Delta
	now := objects(after)
	stays := map[string]policy.Object{}
	for _, o := range now {
		stays[identity(o)] = o
	}
	for _, o := range objects(before) {
		if _, ok := stays[identity(o)]; !ok {
			deltas = append(deltas, policy.Delta{Object: o, Deleted: true})
		} else if stays[identity(o)] == o {
			delete(stays, identity(o))
		}
	}
	for _, o := range now {
		if _, ok := stays[identity(o)]; ok {
			deltas = append(deltas, policy.Delta{Object: o})
		}
	}
	return deltas
}

func objects(s policy.Snapshot) []policy.Object {
	var all []policy.Object
	for _, o := range s.Bridges {
		all = append(all, o)
	}
	for _, o := range s.Nodes {
		all = append(all, o)
	}
	for _, o := range s.Namespaces {
		all = append(all, o)
	}
	for _, o := range s.Pods {
		all = append(all, o)
	}
	for _, o := range s.Policies {
		all = append(all, o)
	}
	return all
}

func identity(o policy.Object) string {
	m := o.GetObjectMeta()
	return fmt.Sprintf("%T %s/%s", o, m.GetNamespace(), m.GetName())
}

// addPod adds a pod with the i-th address of each of the node's ranges.
func (e *enforced) addPod(t *testing.T, name string, i int, attachment world.Attachment) *world.Pod {
	t.Helper()
	p, err := e.AddPod(world.PodOptions{Name: name, Addrs: addrsOf(e.Name, i), Attachment: attachment})
	must(t, err)
	return p
}

// addrsOf are the i-th addresses of a node's ranges.
func addrsOf(node string, i int) []netip.Addr {
	var addrs []netip.Addr
	for _, c := range cidrs[node] {
		b := c.Addr().AsSlice()
		b[len(b)-1] = byte(i)
		a, _ := netip.AddrFromSlice(b)
		addrs = append(addrs, a)
	}
	return addrs
}

// fataler is a test of any kind.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func must(tb fataler, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatalf("%v", err)
	}
}

// sends is a probe and what it is called in a failure.
type sends struct {
	world.Probe
	name string
}

// expect sends all probes and reports those that did not end as they should.
func (s *stage) expect(t *testing.T, all ...sends) {
	t.Helper()
	probes := make([]world.Probe, len(all))
	for i := range all {
		probes[i] = all[i].Probe
	}
	for i, r := range s.Probe(t.Context(), probes...) {
		if r.Outcome != all[i].Want {
			t.Errorf("%s: %s port %s: %v, want %v (%v)", all[i].name, all[i].Protocol, all[i].To, r.Outcome, all[i].Want, r.Err)
		}
	}
}

// both are probes of a port over both families.
func both(name string, from *world.Namespace, to []netip.Addr, proto policy.Protocol, port uint16, want world.Outcome) []sends {
	var all []sends
	for _, a := range to {
		all = append(all, sends{world.Probe{From: from, To: netip.AddrPortFrom(a, port), Protocol: proto, Want: want}, name})
	}
	return all
}

func contains(addrs []netip.Addr, a netip.Addr) bool { return slices.Contains(addrs, a) }
