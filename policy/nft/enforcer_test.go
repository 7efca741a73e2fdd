package nft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-net/selvage/policy"
)

const testNode = "node-a"

// cluster is a snapshot under construction. Its methods return deltas.
type cluster struct {
	objects map[string]policy.Object
}

func newCluster() *cluster { return &cluster{objects: map[string]policy.Object{}} }

func (c *cluster) set(kind string, o policy.Object) policy.Delta {
	m := o.GetObjectMeta()
	c.objects[kind+"/"+m.GetNamespace()+"/"+m.GetName()] = o
	return policy.Delta{Object: o}
}

func (c *cluster) del(kind string, o policy.Object) policy.Delta {
	m := o.GetObjectMeta()
	delete(c.objects, kind+"/"+m.GetNamespace()+"/"+m.GetName())
	return policy.Delta{Object: o, Deleted: true}
}

// snapshot is what all deltas together amount to.
func (c *cluster) snapshot() policy.Snapshot {
	var s policy.Snapshot
	for _, o := range c.objects {
		switch o := o.(type) {
		case *policy.Pod:
			s.Pods = append(s.Pods, o)
		case *policy.Namespace:
			s.Namespaces = append(s.Namespaces, o)
		case *policy.Node:
			s.Nodes = append(s.Nodes, o)
		case *networkingv1.NetworkPolicy:
			s.Policies = append(s.Policies, o)
		case *policy.Pool:
			s.Pools = append(s.Pools, o)
		}
	}
	return s
}

func node() *policy.Node {
	return &policy.Node{Meta: policy.Meta{Name: testNode}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")}}
}

func shop() *policy.Namespace {
	return &policy.Namespace{Meta: policy.Meta{Name: "shop"}, Labels: policy.NewLabels(map[string]string{"kubernetes.io/metadata.name": "shop"})}
}

func pod(name, node, app string, n int) *policy.Pod {
	block := 1
	if node != testNode {
		block = 2
	}
	return &policy.Pod{
		Meta: policy.Meta{Namespace: "shop", Name: name}, Node: node,
		Labels: policy.NewLabels(map[string]string{"app": app}),
		Addrs:  []netip.Addr{netip.AddrFrom4([4]byte{10, byte(block), 0, byte(n)}), netip.MustParseAddr(fmt.Sprintf("fd00:%d::%x", block, n))},
		Ports:  []policy.NamedPort{{Name: "web", Protocol: policy.TCP, Port: uint16(8000 + n)}},
	}
}

// pool is a pool whose pods are masqueraded, if that is said.
func pool(name string, nat bool, cidrs ...string) *policy.Pool {
	return &policy.Pool{Meta: policy.Meta{Name: name}, NATOutgoing: nat, CIDRs: prefixes(cidrs...)}
}

// allow is a policy that lets pods of app from reach pods of app to on port.
func allow(name, to, from string, port intstr.IntOrString) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": to}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{
					{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": from}}},
					{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24", Except: []string{"192.0.2.128/25"}}},
				},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			}},
		},
	}
}

// story is a sequence of changes that has every kind of step in it.
func story(c *cluster) [][]policy.Delta {
	api := allow("api", "api", "web", intstr.FromInt32(443))
	wider := allow("api", "api", "web", intstr.FromString("web"))
	return [][]policy.Delta{
		{c.set("node", node()), c.set("ns", shop()), c.set("pod", pod("api-0", testNode, "api", 2)), c.set("pod", pod("web-0", testNode, "web", 3)), c.set("pod", pod("web-1", "node-b", "web", 4))},
		{c.set("np", api)},
		{c.set("pod", pod("web-2", "node-b", "web", 5))},
		{c.set("np", wider)},
		{c.set("np", allow("db", "web", "db", intstr.FromInt32(5432))), c.del("pod", pod("web-1", "node-b", "web", 4))},
		{c.del("np", wider)},
		{c.set("pool", pool("pods", true, "10.1.0.0/16", "fd00:1::/48"))},
		{c.set("pool", pool("more", false, "10.2.0.0/16", "fd00:2::/48"))},
		{c.del("pool", pool("pods", true, "10.1.0.0/16", "fd00:1::/48"))},
		{c.set("pool", pool("pods", true, "10.0.0.0/15", "fd00:1::/64"))},
		{c.set("pod", pod("api-1", testNode, "api", 9)), c.set("np", api)},
	}
}

func newEnforcer(t testing.TB, c *Conn, opts ...func(*EnforcerOptions)) *Enforcer {
	t.Helper()
	o := EnforcerOptions{Conn: c, Config: policy.DefaultConfig(testNode)}
	for _, opt := range opts {
		opt(&o)
	}
	e := NewEnforcer(o)
	t.Cleanup(func() { e.Close() })
	return e
}

func mustSync(t testing.TB, e *Enforcer, deltas ...policy.Delta) Result {
	t.Helper()
	r, err := e.Sync(context.Background(), deltas)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// mustBeInForce fails the test if the kernel does not hold what a compiler
// makes of the cluster from scratch.
func mustBeInForce(t testing.TB, ns *namespace, c *cluster, cfg policy.Config, generation uint32) {
	t.Helper()
	cfg.Generation = generation
	want, problems := policy.Compile(cfg, c.snapshot())
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	got, err := ns.open(t).Read()
	if err != nil {
		t.Fatal(err)
	}
	if diff := diffRulesets(want, got); diff != "" {
		t.Errorf("wanted (-) and in the kernel (+):\n%s", diff)
	}
}

func TestEnforcerFollows(t *testing.T) {
	ns := newNamespace(t)
	conn, sent := ns.openFaulty(t, -1, noFault)
	e := newEnforcer(t, conn)
	c := newCluster()
	for i, deltas := range story(newCluster()) {
		for _, d := range deltas {
			if kind := kindOf(d.Object); d.Deleted {
				c.del(kind, d.Object)
			} else {
				c.set(kind, d.Object)
			}
		}
		r := mustSync(t, e, deltas...)
		if r.Resynced != (i == 0) || r.Messages == 0 || !e.InSync() || r.Generation != e.Generation() {
			t.Errorf("step %d: %+v", i, r)
		}
		mustBeInForce(t, ns, c, policy.DefaultConfig(testNode), e.Generation())
		before := sent.messages
		if r := mustSync(t, e, deltas...); r.Stats != (Stats{}) || sent.messages != before {
			t.Errorf("step %d again sends %d messages: %+v", i, sent.messages-before, r)
		}
	}
	if e.Generation() < 3 {
		t.Errorf("generation %d: policies that isolate pods did not tighten", e.Generation())
	}
}

func kindOf(o policy.Object) string {
	switch o.(type) {
	case *policy.Pod:
		return "pod"
	case *policy.Namespace:
		return "ns"
	case *policy.Node:
		return "node"
	case *policy.Pool:
		return "pool"
	}
	return "np"
}

// TestEnforcerSurvivesFaults lets each batch of a story go wrong in each way,
// and expects everything to be in force in the end.
func TestEnforcerSurvivesFaults(t *testing.T) {
	for what, name := range faultNames {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			met := 0
			for at := 0; ; at++ {
				ns := newNamespace(t)
				conn, sent := ns.openFaulty(t, at, what)
				e := newEnforcer(t, conn)
				c := newCluster()
				failed := tellStory(t, e, story(c))
				if sent.batches <= at {
					break // the whole story went well
				}
				if failed == 0 {
					t.Fatalf("batch %d met the fault without an error", at)
				}
				met++
				mustBeInForce(t, ns, c, policy.DefaultConfig(testNode), e.Generation())
				before := sent.messages
				e.Resync()
				if r := mustSync(t, e); r.Stats != (Stats{}) || r.Repaired != 0 || sent.messages != before {
					t.Errorf("batch %d: another sync sends %d messages, repairs %d", at, sent.messages-before, r.Repaired)
				}
				e.Close()
				ns.close()
			}
			if met < 10 {
				t.Errorf("the story has %d batches: too few to prove anything", met)
			}
		})
	}
}

// tellStory syncs step by step, again after errors, and counts these.
func tellStory(t *testing.T, e *Enforcer, steps [][]policy.Delta) (failed int) {
	t.Helper()
	for _, deltas := range steps {
		for try := 0; ; try++ {
			r, err := e.Sync(context.Background(), deltas)
			if e.InSync() != (err == nil) || err != nil && r.Generation != 0 {
				t.Fatalf("in sync: %t, generation %d after error %v", e.InSync(), r.Generation, err)
			}
			if err == nil {
				break
			}
			if failed++; try == 3 {
				t.Fatal(err)
			}
			deltas = nil // they must not be lost
		}
	}
	return failed
}

// TestAdoption lets an agent come back after it was killed, when nothing has
// changed and when something has.
func TestAdoption(t *testing.T) {
	ns := newNamespace(t)
	c := newCluster()
	var all []policy.Delta
	e := newEnforcer(t, ns.open(t))
	for _, deltas := range story(c) {
		mustSync(t, e, deltas...)
	}
	for _, o := range c.objects {
		all = append(all, policy.Delta{Object: o})
	}
	generation := e.Generation()
	monitor := ns.open(t)
	before, err := monitor.RulesetGeneration()
	if err != nil {
		t.Fatal(err)
	}
	listing := ns.run(t, "", "nft", "list", "ruleset")

	conn, sent := ns.openFaulty(t, -1, noFault)
	back := newEnforcer(t, conn)
	r := mustSync(t, back, all...)
	if sent.messages != 0 || r.Stats != (Stats{}) || r.Tightened || r.Generation != generation || !r.Resynced {
		t.Errorf("an agent that comes back sends %d messages: %+v, generation was %d", sent.messages, r, generation)
	}
	after, err := monitor.RulesetGeneration()
	if err != nil {
		t.Fatal(err)
	}
	if after != before {
		t.Errorf("the kernel's generation of the ruleset went from %d to %d", before, after)
	}
	if ns.run(t, "", "nft", "list", "ruleset") != listing {
		t.Error("the listing differs")
	}

	// A policy that went away while the agent was down is found out, and
	// whatever it allowed is judged again.
	conn, _ = ns.openFaulty(t, -1, noFault)
	third := newEnforcer(t, conn)
	delete(c.objects, "np/shop/db")
	var fewer []policy.Delta
	for _, o := range c.objects {
		fewer = append(fewer, policy.Delta{Object: o})
	}
	r = mustSync(t, third, fewer...)
	if r.Messages == 0 || !r.Tightened || r.Generation != policy.DefaultMarkMask.Next(generation) {
		t.Errorf("after a policy was deleted: %+v, generation was %d", r, generation)
	}
	mustBeInForce(t, ns, c, policy.DefaultConfig(testNode), r.Generation)
}

// harmless are the cases of TestRepair in which no flow can have been judged by
// other rules than ours: none was judged, or ours still were the only ones.
var harmless = []string{
	"set added", "counter added", "vmap added", "base chain added", "chain added", "table deleted", "both tables deleted",
	"nat chain deleted", "nat rule added", "nat rule of another kind", "nat chain flushed", "nat priority", "nat chain of type filter",
	"nat chain not hooked", "pool added", "pool removed", "pool replaced", "pools flushed", "nat sets deleted", "nat chain it leads to",
}

// TestRepair lets somebody else change the tables in all sorts of ways.
func TestRepair(t *testing.T) {
	for name, tamper := range map[string]string{
		"rule added":                "insert rule ip selvage forward accept",
		"rule of another kind":      "add rule ip selvage deny-unknown log prefix \"x\" limit rate 1/second",
		"chain that denies flushed": `flush chain ip selvage deny-unknown`,
		"not logged": `flush chain ip selvage deny-unknown
			add rule ip selvage deny-unknown counter name "deny-unknown" drop`,
		"logged otherwise": `flush chain ip selvage deny-unknown
			add rule ip selvage deny-unknown update @sampled-unknown-v4 { ip saddr limit rate 2/second } log prefix "deny-unknown" group 24090 snaplen 256
			add rule ip selvage deny-unknown counter name "deny-unknown" drop`,
		"sampled otherwise": `flush chain ip selvage deny-unknown
			add rule ip selvage deny-unknown update @sampled-unknown-v4 { ip saddr limit rate over 2/second } log prefix "deny-unknown" group 24090 snaplen 128
			add rule ip selvage deny-unknown counter name "deny-unknown" drop`,
		"counter deleted": "flush chain ip selvage deny-unknown\ndelete counter ip selvage deny-unknown",
		"counter added":   "add counter ip selvage mine",
		"sampled set of another kind": `flush chain ip selvage deny-unknown
			delete set ip selvage sampled-unknown-v4
			add set ip selvage sampled-unknown-v4 { type ipv4_addr; size 4096; timeout 1m; }`,
		"anonymous set":       "insert rule ip selvage forward ip saddr { 10.0.0.1, 10.0.0.2 } accept",
		"chain flushed":       "flush chain ip6 selvage ingress",
		"element added":       "add element ip selvage ingress-pods-v4 { 10.1.0.77 : accept }",
		"map flushed":         "flush map ip selvage ingress-pods-v4",
		"set added":           "add set ip selvage mine { type ether_addr; }",
		"vmap added":          "add chain ip selvage mine\nadd map ip selvage m { type inet_service : verdict; elements = { 80 : jump mine } }",
		"base chain added":    "add chain ip selvage early { type nat hook prerouting priority -100; }",
		"chain added":         "add chain ip6 selvage mine\nadd rule ip6 selvage mine drop",
		"table deleted":       "delete table ip selvage",
		"both tables deleted": "delete table ip selvage\ndelete table ip6 selvage",
		"table flushed":       "flush table ip selvage",
		"table dormant":       "add table ip selvage { flags dormant; }",
		"policy drop":         "add chain ip selvage forward { policy drop; }",
		"hooked elsewhere":    "flush chain ip selvage forward\ndelete chain ip selvage forward\nadd chain ip selvage forward { type filter hook input priority 7; }",
		"not hooked":          "flush chain ip selvage forward\ndelete chain ip selvage forward\nadd chain ip selvage forward",
		"set of another kind": "flush table ip selvage\ndelete set ip selvage self-v4\nadd set ip selvage self-v4 { type ipv4_addr . ipv4_addr; flags timeout; }",
		"set of another type": "flush table ip selvage\ndelete set ip selvage self-v4\nadd set ip selvage self-v4 { type inet_service; elements = { 80 } }",
		"catch-all in a map":  "add element ip selvage ingress-pods-v4 { * : accept }",
		"interval of another": "flush table ip selvage\ndelete set ip selvage self-v4\nadd map ip selvage self-v4 { type ipv4_addr : mark; flags interval; elements = { 10.0.0.0/8 : 1 } }",
		"nat chain deleted":   "delete chain ip selvage postrouting",
		"nat rule added":      "insert rule ip selvage postrouting ip daddr 192.0.2.1 accept",
		"nat rule of another kind": `flush chain ip6 selvage postrouting
			add rule ip6 selvage postrouting ip6 saddr @masquerade-v6 ip6 daddr != @pools-v6 ip6 daddr != @kept-v6 counter masquerade`,
		"nat chain it leads to": "flush chain ip selvage leaving",
		"nat chain flushed":     "flush chain ip6 selvage postrouting",
		"nat priority": `delete chain ip selvage postrouting
			add chain ip selvage postrouting { type nat hook postrouting priority 90; }
			add rule ip selvage postrouting ip saddr @masquerade-v4 ip daddr != @pools-v4 ip daddr != @kept-v4 counter masquerade fully-random`,
		"nat chain of type filter": "delete chain ip6 selvage postrouting\nadd chain ip6 selvage postrouting { type filter hook postrouting priority 110; }",
		"nat chain not hooked":     "delete chain ip selvage postrouting\nadd chain ip selvage postrouting",
		"pool added":               "add element ip selvage pools-v4 { 192.0.2.0/24 }",
		"pool removed":             "delete element ip selvage pools-v4 { 10.2.0.0/16 }",
		"pool replaced":            "delete element ip selvage masquerade-v4 { 10.0.0.0/15 }\nadd element ip selvage masquerade-v4 { 10.0.0.0/8 }",
		"pools flushed":            "flush set ip6 selvage pools-v6\nflush set ip6 selvage kept-v6",
		"nat sets deleted":         "delete chain ip selvage postrouting\ndelete chain ip selvage leaving\ndelete set ip selvage pools-v4\ndelete set ip selvage kept-v4",
		"nat and forward":          "flush chain ip selvage postrouting\nflush chain ip selvage forward",
		"everything at the same":   "flush table ip selvage\ndelete map ip selvage ingress-pods-v4\ndelete chain ip6 selvage forward\ndelete set ip selvage self-v4",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			c := newCluster()
			e := newEnforcer(t, ns.open(t))
			for _, deltas := range story(c) {
				mustSync(t, e, deltas...)
			}
			generation := e.Generation()
			if out, err := ns.try(t, tamper, "nft", "-f", "-"); err != nil {
				t.Fatalf("nft: %v\n%s", err, out)
			}
			if r := mustSync(t, e); r.Resynced {
				t.Error("read back without being asked to")
			}
			e.Resync()
			r := mustSync(t, e)
			if !r.Resynced || r.Repaired == 0 || r.Messages == 0 {
				t.Errorf("%+v", r)
			}
			if tightens := !slices.Contains(harmless, name); tightens != (r.Generation != generation) || tightens != r.Tightened {
				t.Errorf("the generation went from %d to %d: %+v", generation, r.Generation, r)
			}
			mustBeInForce(t, ns, c, policy.DefaultConfig(testNode), r.Generation)
			if strings.Contains(ns.list(t), "dormant") {
				t.Error("the table is still dormant")
			}
			e.Resync()
			if r := mustSync(t, e); r.Stats != (Stats{}) || r.Repaired != 0 {
				t.Errorf("repaired again: %+v", r)
			}
		})
	}
}

// TestDeltasBeforeAnything: what comes while nothing can be read is not lost.
func TestDeltasBeforeAnything(t *testing.T) {
	ns := newNamespace(t)
	works := false
	f := &faults{ns: int(ns.handle), at: -1}
	conn, err := Open(Options{Dial: func() (Socket, error) {
		if !works {
			return nil, unix.EMFILE
		}
		return f.dial()
	}})
	if err != nil {
		t.Fatal(err)
	}
	e := newEnforcer(t, conn)
	c := newCluster()
	for _, deltas := range story(c) {
		if _, err := e.Sync(context.Background(), deltas); !errors.Is(err, unix.EMFILE) {
			t.Fatal(err)
		}
	}
	works = true
	mustSync(t, e)
	mustBeInForce(t, ns, c, policy.DefaultConfig(testNode), e.Generation())
}
