package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

func natPool(name string, created int64, cidrs ...string) *policy.Pool {
	p := pool(name, created, cidrs...)
	p.NATOutgoing = true
	return p
}

// elements says which elements a change adds to sets and deletes from them, one on a
// line, of both families.
func elementsText(c *policy.Change) (lines []string) {
	for i := range c.Tables {
		for _, e := range c.Tables[i].Elements {
			for _, del := range e.Del {
				lines = append(lines, e.Set.Name+" - "+e.Set.ElementText(del))
			}
			for _, add := range e.Add {
				lines = append(lines, e.Set.Name+" + "+e.Set.ElementText(add))
			}
		}
	}
	return lines
}

// onlyElements wants a change to be these elements and nothing else.
func (cl *cluster) onlyElements(what string, want ...string) {
	cl.t.Helper()
	c := cl.c.Changes()
	if got := elementsText(c); !slices.Equal(got, want) {
		cl.t.Errorf("%s: elements %q, want %q", what, got, want)
	}
	for _, tc := range c.Tables {
		if n := len(tc.AddChains) + len(tc.AddSets) + len(tc.SetChains) + len(tc.DelChains) + len(tc.DelSets); n > 0 || c.Tightens {
			cl.t.Errorf("%s: more than elements changes: %+v, tightens %v", what, tc, c.Tightens)
		}
	}
}

// TestMasqueradeByElements: once something is masqueraded, pools, nodes and Services
// that come and go are elements, those of their own blocks.
func TestMasqueradeByElements(t *testing.T) {
	cl := newCluster(t, somePod("web", policytest.NodeA, "10.1.0.2"), allow("clients", "client"), natPool("a", 1, "10.1.0.0/24"))
	remove := func(o policy.Object) { cl.c.Update(policy.Delta{Object: o, Deleted: true}) }

	cl.put(pool("b", 2, "10.1.1.0/24", "fd00:1::/64"))
	cl.onlyElements("a pool", "pools-v4 + 10.1.1.0/24")
	cl.put(natPool("b", 2, "10.1.1.0/24"))
	cl.onlyElements("natOutgoing", "masquerade-v4 + 10.1.1.0/24")
	cl.put(natPool("c", 3, "10.1.1.0/25", "10.1.2.0/24"))
	cl.onlyElements("a pool that overlaps", "masquerade-v4 + 10.1.2.0/24", "pools-v4 + 10.1.2.0/24")
	remove(natPool("b", 2, "10.1.1.0/24"))
	cl.onlyElements("what it overlapped goes",
		"masquerade-v4 - 10.1.1.0/24", "masquerade-v4 + 10.1.1.0/25", "pools-v4 - 10.1.1.0/24", "pools-v4 + 10.1.1.0/25")

	cl.put(&policy.Node{Meta: policy.Meta{Name: "new"}, Created: 9, PodCIDRs: blocks("10.2.0.0/24"), Addrs: []netip.Addr{netip.MustParseAddr("192.168.0.7")}})
	cl.onlyElements("a node", "kept-v4 + 10.2.0.0/24", "kept-v4 + 192.168.0.7")
	cl.put(services("more", 9, "192.168.0.0/29", "10.2.0.0/25"))
	cl.onlyElements("a range of Services that holds its address", "kept-v4 - 192.168.0.7", "kept-v4 + 192.168.0.0/29")
	remove(services("more", 9, "192.168.0.0/29", "10.2.0.0/25"))
	cl.onlyElements("which goes", "kept-v4 - 192.168.0.0/29", "kept-v4 + 192.168.0.7")
	moved := &policy.Node{Meta: policy.Meta{Name: "new"}, Created: 9, PodCIDRs: blocks("10.2.0.0/24"), Addrs: []netip.Addr{netip.MustParseAddr("10.1.2.9")}}
	cl.put(moved)
	cl.onlyElements("the node gets an address out of an older pool", "kept-v4 - 192.168.0.7", "kept-v4 + 10.1.2.9")
	older := *moved
	older.Created = 1
	cl.put(&older)
	cl.onlyElements("the node turns out to be older", "masquerade-v4 - 10.1.2.0/24", "pools-v4 - 10.1.2.0/24")
	remove(&older)
	cl.onlyElements("the node goes",
		"kept-v4 - 10.1.2.9", "kept-v4 - 10.2.0.0/24", "masquerade-v4 + 10.1.2.0/24", "pools-v4 + 10.1.2.0/24")
	cl.put(somePod("client", policytest.NodeB, "10.2.0.2", "admin"))
	cl.onlyElements("a pod")
}

// TestMasqueradeComesAndGoes: without anything to masquerade nothing is there for it,
// and neither when it comes nor when it goes is anything judged anew.
func TestMasqueradeComesAndGoes(t *testing.T) {
	cl := newCluster(t, somePod("web", policytest.NodeA, "10.1.0.2"), pool("a", 1, "10.1.0.0/24"))
	without := cl.c.Ruleset()
	sets := []string{"kept-v4", "masquerade-v4", "pools-v4"}
	names := func(sets []policy.Set) (out []string) {
		for _, s := range sets {
			out = append(out, s.Name)
		}
		return out
	}

	cl.put(natPool("b", 2, "10.2.0.0/24"))
	comes := cl.c.Changes()
	t4, t6 := comes.Tables[policy.IPv4], comes.Tables[policy.IPv6]
	if comes.Tightens || !slices.Equal(names(t4.AddSets), sets) || len(t4.DelChains)+len(t4.DelSets)+len(t4.Elements) > 0 ||
		len(t4.AddChains) != 1 || t4.AddChains[0].Name != "leaving" || len(t4.SetChains) != 1 || t4.SetChains[0].Name != "postrouting" || *t4.SetChains[0].Hook != (policy.Hook{Name: "postrouting", Priority: 110, NAT: true}) {
		t.Errorf("comes: %+v", comes)
	}
	if len(t6.AddSets)+len(t6.SetChains) > 0 {
		t.Errorf("comes, for the other family: %+v", t6)
	}
	with := cl.c.Ruleset()

	cl.put(pool("b", 2, "10.2.0.0/24"))
	goes := cl.c.Changes()
	t4 = goes.Tables[policy.IPv4]
	if goes.Tightens || !slices.Equal(t4.DelSets, sets) || !slices.Equal(t4.DelChains, []string{"leaving", "postrouting"}) ||
		len(t4.AddSets)+len(t4.AddChains)+len(t4.SetChains)+len(t4.Elements) > 0 {
		t.Errorf("goes: %+v", goes)
	}
	if got := cl.c.Ruleset(); got.String() != without.String() {
		t.Errorf("something is left:\n%s", diff(got.String(), without.String()))
	}

	for _, d := range []*policy.Change{policy.Diff(without, with), policy.Diff(with, without)} {
		if d.Empty() || d.Tightens {
			t.Errorf("found in the kernel: %+v", d)
		}
	}
	cl.put(natPool("b", 2, "10.2.0.0/24"), natPool("c", 2, "10.3.0.0/24"))
	if d := policy.Diff(cl.c.Ruleset(), with); d.Empty() || d.Tightens {
		t.Errorf("found in the kernel with an element more: %+v", d)
	}
}

// TestMasqueradeWhere: on which nodes, and if the kernel can.
func TestMasqueradeWhere(t *testing.T) {
	edge := natPool("edge", 1, "10.1.0.0/24")
	edge.Nodes = labels.SelectorFromSet(labels.Set{"zone": "edge"})
	node := func(zone string) *policy.Node {
		return &policy.Node{Meta: policy.Meta{Name: policytest.NodeA}, Labels: policy.NewLabels(map[string]string{"zone": zone})}
	}
	disabled := natPool("disabled", 1, "10.1.0.0/24")
	disabled.Disabled = true
	tests := []struct {
		name string
		node *policy.Node
		pool *policy.Pool
		off  bool
		want bool
	}{
		{"everywhere", node("core"), natPool("a", 1, "10.1.0.0/24"), false, true},
		{"this node", node("edge"), edge, false, true},
		{"another node", node("core"), edge, false, false},
		{"a node that is not known", &policy.Node{Meta: policy.Meta{Name: policytest.NodeB}}, edge, false, false},
		{"no longer given to pods", node("core"), disabled, false, true},
		{"not asked for", node("core"), pool("a", 1, "10.1.0.0/24"), false, false},
		{"the kernel cannot", node("core"), natPool("a", 1, "10.1.0.0/24"), true, false},
	}
	for _, tt := range tests {
		cfg := policy.DefaultConfig(policytest.NodeA)
		cfg.Masquerade = !tt.off
		r, _ := policy.Compile(cfg, policy.Snapshot{Nodes: []*policy.Node{tt.node}, Pools: []*policy.Pool{tt.pool}})
		got := slices.ContainsFunc(r.Tables[policy.IPv4].Chains, func(c policy.Chain) bool { return c.Name == "postrouting" })
		if got != tt.want {
			t.Errorf("%s: masquerades %v", tt.name, got)
		}
	}
}

// TestMasqueradeFollowsLabels: a node that gets a label is selected.
func TestMasqueradeFollowsLabels(t *testing.T) {
	edge := natPool("edge", 1, "10.9.0.0/24")
	edge.Nodes = labels.SelectorFromSet(labels.Set{"zone": "edge"})
	cl := newCluster(t, natPool("all", 1, "10.2.0.0/24"), edge)
	node := &policy.Node{
		Meta: policy.Meta{Name: policytest.NodeA}, PodCIDRs: blocks("10.1.0.0/24"),
		Labels: policy.NewLabels(map[string]string{"zone": "edge"}),
	}
	cl.put(node)
	cl.onlyElements("a label", "masquerade-v4 + 10.9.0.0/24")
}

// TestMasqueradeByConstants: what goes to the pool of this node's pods, and what goes far
// away, is decided without a look at the sets; those rules change only if something
// appears where nothing was near.
func TestMasqueradeByConstants(t *testing.T) {
	cl := newCluster(t, natPool("a", 1, "10.1.0.0/16"))
	rules := func() string {
		var text []string
		for _, ch := range cl.c.Ruleset().Tables[policy.IPv4].Chains {
			for i := range ch.Rules {
				if ch.Name == "postrouting" {
					text = append(text, ch.Rules[i].Text(policy.IPv4))
				}
			}
		}
		cl.c.Changes()
		return strings.Join(text, "\n")
	}
	const private = "ip daddr 10.0.0.0/8 goto leaving\nip daddr 100.64.0.0/10 goto leaving\nip daddr 172.16.0.0/12 goto leaving\n" +
		"ip daddr 192.168.0.0/16 goto leaving\n"
	const rest = "ip daddr 224.0.0.0/3 goto leaving\n"
	const own = "ip daddr 10.1.0.0/16 accept comment \"where the pods of this node are\"\n"
	const masquerade = "ip saddr 10.1.0.0/24 counter masquerade fully-random comment \"pods of this node\"\ngoto leaving"
	if got, want := rules(), own+private+rest+masquerade; got != want {
		t.Errorf("rules\n%s\nwant\n%s", got, want)
	}
	for i := range 20 {
		cl.put(natPool(fmt.Sprint("more", i), 2, fmt.Sprintf("10.2.%d.0/24", i), fmt.Sprintf("192.168.%d.0/24", i)))
	}
	if got, want := rules(), own+private+rest+masquerade; got != want {
		t.Errorf("with more pools: rules\n%s\nwant\n%s", got, want)
	}
	for i, a := range []string{"203.0.113.1", "203.0.113.9", "198.51.100.1", "8.8.8.8", "9.9.9.9"} {
		cl.put(&policy.Node{Meta: policy.Meta{Name: fmt.Sprint("public", i)}, Addrs: []netip.Addr{netip.MustParseAddr(a)}})
	}
	const near = "ip daddr 198.51.100.1/32 goto leaving\nip daddr 203.0.113.0/28 goto leaving\n"
	if got, want := rules(), own+"ip daddr 8.0.0.0/7 goto leaving\n"+private+near+rest+masquerade; got != want {
		t.Errorf("with public addresses: rules\n%s\nwant\n%s", got, want)
	}
	cl.put(pool("a", 1, "10.1.0.0/16"))
	if got, want := rules(), own+"ip daddr 8.0.0.0/7 goto leaving\n"+private+near+rest+"goto leaving"; got != want {
		t.Errorf("without natOutgoing for this node's pods: rules\n%s\nwant\n%s", got, want)
	}
}

// byPool lets the pods of a pool in, to all pods of the namespace.
func byPool(name string) *networkingv1.NetworkPolicy {
	return ingressPolicy("by-pool", networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{
		{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{policy.PoolLabel: name}}},
	}})
}

// TestPoolsTighten: a peer that leaves its pool is no longer allowed; for that flows
// are judged anew, and for nothing less.
func TestPoolsTighten(t *testing.T) {
	web, client := somePod("web", policytest.NodeA, "10.1.0.2"), somePod("client", policytest.NodeB, "10.2.0.2")
	t.Run("peers", func(t *testing.T) {
		cl := newCluster(t, web, client, byPool("a"))
		cl.put(pool("a", 2, "10.2.0.0/24"))
		cl.want("the peer's pool comes", false)
		cl.put(natPool("a", 2, "10.2.0.0/24"))
		cl.want("the pool says something else", false)
		cl.put(pool("b", 3, "10.2.0.0/25"))
		cl.want("a pool comes that has nothing", false)
		cl.put(somePod("late", policytest.NodeB, ""), somePod("late", policytest.NodeB, "10.2.0.3"))
		cl.want("a peer gets its address late", false)
		cl.put(pool("b", 1, "10.2.0.0/25"))
		cl.want("the peer's addresses are another pool's", true)
		cl.c.Update(policy.Delta{Object: pool("b", 1), Deleted: true})
		cl.want("and come back", false)
		cl.put(&policy.Node{Meta: policy.Meta{Name: "old"}, Created: 1, Addrs: []netip.Addr{netip.MustParseAddr("10.2.0.9")}})
		cl.want("an older node has one of them", true)
	})
	t.Run("nobody asks", func(t *testing.T) {
		cl := newCluster(t, web, client, allow("clients", "client"), pool("a", 2, "10.1.0.0/24", "10.2.0.0/24"))
		cl.c.Update(policy.Delta{Object: pool("a", 2), Deleted: true})
		cl.want("a pool goes", false)
	})
	t.Run("isolated pods", func(t *testing.T) {
		closed := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "closed"}}
		closed.Spec.PodSelector.MatchLabels = map[string]string{policy.PoolLabel: "a"}
		cl := newCluster(t, web, closed)
		cl.put(pool("a", 1, "10.1.0.0/24"))
		cl.want("the pod is in the pool now", true)
		cl.c.Update(policy.Delta{Object: pool("a", 1), Deleted: true})
		cl.want("and no longer", false)
	})
	t.Run("a label that is only a label", func(t *testing.T) {
		liar := somePod("liar", policytest.NodeB, "10.2.0.3")
		liar.Labels = policy.NewLabels(map[string]string{policy.PoolLabel: "a"})
		cl := newCluster(t, web, liar, byPool("a"))
		for _, s := range cl.c.Ruleset().Tables[policy.IPv4].Sets {
			if slices.ContainsFunc(s.Elements, func(e policy.Element) bool { return e.Key == policy.AddrKey(liar.Addrs[0]) }) {
				t.Errorf("it is in %s", s.Name)
			}
		}
	})
}

// TestPretendersCountOnce: who says by a label what is true is still found once only.
func TestPretendersCountOnce(t *testing.T) {
	honest := somePod("honest", policytest.NodeB, "10.2.0.3")
	honest.Labels = policy.NewLabels(map[string]string{policy.PoolLabel: "a"})
	cl := newCluster(t, somePod("web", policytest.NodeA, "10.1.0.2"), pool("a", 1, "10.2.0.0/24"), byPool("a"))
	cl.put(honest)
	cl.c.Changes()
	if stale := cl.c.Stale(); stale != "" {
		t.Error(stale)
	}
}

// TestPoolPoliciesComeAndGo: what pods are in is found out when the first policy asks,
// also for those that came while none did.
func TestPoolPoliciesComeAndGo(t *testing.T) {
	cl := newCluster(t, somePod("web", policytest.NodeA, "10.1.0.2"), pool("a", 1, "10.2.0.0/24"))
	for i := range 3 {
		cl.put(somePod(fmt.Sprintf("client-%d", i), policytest.NodeB, fmt.Sprintf("10.2.0.%d", i+2)))
		cl.c.Changes()
		cl.put(byPool("a"))
		peers := 0
		for _, s := range cl.c.Changes().Tables[policy.IPv4].AddSets {
			if strings.Contains(s.Name, "-peers-") {
				peers += len(s.Elements)
			}
		}
		if peers != i+1 {
			t.Errorf("round %d: %d peers", i, peers)
		}
		cl.c.Update(policy.Delta{Object: byPool("a"), Deleted: true})
	}
}

// TestSourcesAreNobodysPermission: whatever happens to pools that no policy asks for,
// to Services and to the addresses of nodes, no flow is judged anew.
func TestSourcesAreNobodysPermission(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := policytest.Snapshots(policytest.Options{}).Draw(t, "cluster")
		before := withPoolsOf(s, policytest.Snapshots(withPools).Draw(t, "pools"))
		after := withPoolsOf(s, policytest.Snapshots(withPools).Draw(t, "other pools"))
		c := policy.NewCompiler(policy.DefaultConfig(policytest.NodeA))
		c.Update(policytest.Events(withPools, policy.Snapshot{}, before).Draw(t, "objects")...)
		c.Changes()
		was := c.Ruleset()
		c.Update(policytest.Events(policytest.Options{}, before, after).Draw(t, "deltas")...)
		if change := c.Changes(); change.Tightens {
			t.Fatalf("tightens\nbefore: %s\nafter: %s", policytest.Text(before), policytest.Text(after))
		}
		if change := policy.Diff(was, c.Ruleset()); change.Tightens {
			t.Fatalf("tightens, if found in the kernel\nbefore:\n%s\nafter:\n%s", was, c.Ruleset())
		}
	})
}

// withPoolsOf returns s with the pools, Services and nodes' addresses of another
// snapshot.
func withPoolsOf(s, other policy.Snapshot) policy.Snapshot {
	s.Pools, s.Services = other.Pools, other.Services
	var nodes []*policy.Node
	for _, n := range s.Nodes {
		mixed := &policy.Node{Meta: n.Meta, PodCIDRs: n.PodCIDRs}
		for _, o := range other.Nodes {
			if o.Name == n.Name {
				mixed.Labels, mixed.Addrs, mixed.Created = o.Labels, o.Addrs, o.Created
			}
		}
		nodes = append(nodes, mixed)
	}
	s.Nodes = nodes
	return s
}
