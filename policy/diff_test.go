package policy_test

import (
	"fmt"
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

// TestDiff: the difference leads from any ruleset to any other one, in steps
// that the kernel can take, and there is none between equals.
func TestDiff(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) *policy.Ruleset {
			cfg := policy.DefaultConfig(policytest.NodeA)
			cfg.SharedAbove = rapid.IntRange(0, 3).Draw(t, label+": shared above")
			cfg.DenyAction = rapid.SampledFrom([]policy.DenyAction{policy.DenyDrop, policy.DenyReject}).Draw(t, label+": deny action")
			cfg.PodToNode = rapid.SampledFrom([]policy.PodToNode{policy.PodToNodeAllow, policy.PodToNodePolicy}).Draw(t, label+": pod to node")
			cfg.Generation = rapid.Uint32Range(1, 31).Draw(t, label+": generation")
			r, _ := policy.Compile(cfg, policytest.Snapshots(withPools).Draw(t, label))
			return r
		}
		a, b := draw("a"), draw("b")
		for _, from := range []*policy.Ruleset{a, empty()} {
			steps, err := policytest.ApplyChange(from, policy.Diff(from, b))
			if err != nil {
				t.Fatalf("%v\nfrom:\n%s\nto:\n%s", err, from, b)
			}
			wantText(t, "the difference, applied", steps.Swept, b)
		}
		if again := policy.Diff(b, b); !again.Empty() || again.Tightens {
			t.Fatalf("a ruleset differs from itself: %+v", again)
		}
	})
}

// cluster is a small one in which single things can be changed.
type cluster struct {
	t *testing.T
	c *policy.Compiler
}

func newCluster(t *testing.T, objects ...policy.Object) *cluster {
	t.Helper()
	cl := &cluster{t, policy.NewCompiler(policy.DefaultConfig(policytest.NodeA))}
	cl.put(&policy.Node{Meta: policy.Meta{Name: policytest.NodeA}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}})
	cl.put(objects...)
	cl.c.Changes()
	return cl
}

func (cl *cluster) put(objects ...policy.Object) {
	for _, o := range objects {
		cl.c.Update(policy.Delta{Object: o})
	}
}

// want tells what the last changes should have meant for flows that were judged.
func (cl *cluster) want(what string, tightens bool) {
	cl.t.Helper()
	before := cl.c.Generation()
	change := cl.c.Changes()
	if change.Tightens != tightens || (cl.c.Generation() != before) != tightens {
		cl.t.Errorf("%s: tightens %v, generation %d to %d; want %v", what, change.Tightens, before, cl.c.Generation(), tightens)
	}
}

func somePod(name, node, addr string, labels ...string) *policy.Pod {
	m := map[string]string{}
	for _, l := range labels {
		m[l] = "x"
	}
	p := &policy.Pod{Meta: policy.Meta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name)}, Node: node, Labels: policy.NewLabels(m)}
	if addr != "" {
		p.Addrs = []netip.Addr{netip.MustParseAddr(addr)}
	}
	return p
}

// allow lets pods that have a label in, to the pods of the namespace.
func allow(name, label string, ports ...networkingv1.NetworkPolicyPort) *networkingv1.NetworkPolicy {
	np := ingressPolicy(name, networkingv1.NetworkPolicyIngressRule{
		From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{label: "x"}}}},
		Ports: ports,
	})
	return np
}

// TestTightens: the generation must move when something is denied that was
// allowed, and should not when nothing is: each move has every flow on the node
// judged again, and there are few values to move to.
func TestTightens(t *testing.T) {
	web := somePod("web", policytest.NodeA, "10.1.0.2")
	client := somePod("client", policytest.NodeB, "10.2.0.2", "client")

	t.Run("permissive", func(t *testing.T) {
		cl := newCluster(t, web, client, allow("clients", "client"))
		cl.put(somePod("client-2", policytest.NodeB, "10.2.0.3", "client"))
		cl.want("a peer comes", false)
		cl.put(allow("admins", "admin"))
		cl.want("one more policy for an isolated pod", false)
		cl.put(somePod("client-2", policytest.NodeB, "10.2.0.3", "client", "admin"))
		cl.want("a peer becomes one twice", false)
		cl.put(somePod("web-2", policytest.NodeA, "10.1.0.3"))
		cl.want("a local pod comes, within the node's block", false)
		cl.put(somePod("starts", policytest.NodeA, ""))
		cl.want("a pod without an address comes", false)
		cl.put(&policy.Namespace{Meta: policy.Meta{Name: "shop"}, Labels: policy.NewLabels(map[string]string{"team": "a"})})
		cl.want("a namespace gets a label that nobody asks for", false)
		cl.c.Update(policy.Delta{Object: client, Deleted: true})
		cl.want("a peer goes", false)
		cl.c.Update(policy.Delta{Object: web, Deleted: true})
		cl.want("a local pod goes", false)
		cl.put(ingressPolicy("anyone", networkingv1.NetworkPolicyIngressRule{}))
		cl.want("everything is allowed", false)
	})
	t.Run("restrictive", func(t *testing.T) {
		cl := newCluster(t, web, client)
		cl.put(allow("clients", "client"))
		cl.want("a pod becomes isolated", true)
		cl.put(somePod("client", policytest.NodeB, "10.2.0.2"))
		cl.want("a peer loses its label", true)
		cl.put(client)
		cl.want("and has it again", false)
		cl.put(allow("clients", "client", networkingv1.NetworkPolicyPort{}))
		cl.want("only TCP is left", true)
		cl.put(allow("clients", "admin"))
		cl.want("others are peers", true)
		cl.c.Update(policy.Delta{Object: allow("clients", "admin"), Deleted: true})
		cl.want("the pod is free", false)
	})
	t.Run("reused address", func(t *testing.T) {
		cl := newCluster(t, web, client, allow("clients", "client"))
		cl.c.Update(policy.Delta{Object: client, Deleted: true})
		cl.want("a peer goes", false)
		cl.put(somePod("stranger", policytest.NodeB, "10.2.0.2"))
		cl.want("its address comes back with another pod", true)
		cl.c.Update(policy.Delta{Object: somePod("stranger", policytest.NodeB, "10.2.0.2"), Deleted: true})
		cl.want("which goes", false)
		cl.put(client)
		cl.want("and comes back from one who was allowed nothing", false)
	})
}

// TestTightensByName: the number of a named port is the pod's business.
func TestTightensByName(t *testing.T) {
	server := func(port uint16) *policy.Pod {
		p := somePod("server", policytest.NodeB, "10.2.0.2", "server")
		p.Ports = []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Port: port}}
		return p
	}
	named := []networkingv1.NetworkPolicyPort{{Port: &intstr.IntOrString{Type: intstr.String, StrVal: "http"}}}
	peers := map[string][]networkingv1.NetworkPolicyPeer{
		"anyone":   nil,
		"a block":  {{IPBlock: &networkingv1.IPBlock{CIDR: "10.2.0.0/24"}}},
		"selector": {{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"server": "x"}}}},
	}
	for name, to := range peers {
		t.Run(name, func(t *testing.T) {
			np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "out"}}
			np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
			np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: to, Ports: named}}
			cl := newCluster(t, somePod("client", policytest.NodeA, "10.1.0.2"), server(80), np)
			cl.put(server(81))
			cl.want("the port has another number", true)
			more := server(81)
			more.Ports = append(more.Ports, policy.NamedPort{Name: "http", Protocol: policy.TCP, Port: 82})
			cl.put(more)
			cl.want("the port has one number more", false)
		})
	}
}

// TestGenerationsWrapAround: after the last one comes the first, and each is
// told to the change that leads to it.
func TestGenerationsWrapAround(t *testing.T) {
	cfg := policy.DefaultConfig(policytest.NodeA)
	cfg.MarkMask = 0x11 // three generations
	c := policy.NewCompiler(cfg)
	c.Changes()
	for i, want := range []uint32{2, 3, 1, 2, 3, 1} {
		c.Tighten()
		change := c.Changes()
		if c.Generation() != want || !change.Tightens || change.Mark != cfg.MarkMask.Mark(want) {
			t.Fatalf("move %d: generation %d, change %+v; want generation %d", i, c.Generation(), change.Mark, want)
		}
		for _, f := range policy.Families {
			set := change.Tables[f].SetChains
			if len(set) != 1 || set[0].Name != "forward" {
				t.Fatalf("move %d: chains %v; want forward alone", i, set)
			}
		}
	}
}

// TestCostOfAPod: one pod more or less is one element in each set that must
// hold it, and nothing else, whatever there is besides.
func TestCostOfAPod(t *testing.T) {
	objects := []policy.Object{somePod("web", policytest.NodeA, "10.1.0.2"), allow("clients", "client"), allow("admins", "admin")}
	for i := range 300 {
		objects = append(objects, somePod(fmt.Sprintf("client-%d", i), policytest.NodeB, fmt.Sprintf("10.2.%d.%d", i/250, i%250), "client"))
	}
	cl := newCluster(t, objects...)
	for _, deleted := range []bool{false, true} {
		cl.c.Update(policy.Delta{Object: somePod("one-more", policytest.NodeB, "10.3.0.1", "client"), Deleted: deleted})
		change := cl.c.Changes()
		t4, t6 := change.Tables[policy.IPv4], change.Tables[policy.IPv6]
		if len(t4.Elements) != 1 || len(t4.Elements[0].Add)+len(t4.Elements[0].Del) != 1 || len(t6.Elements) != 0 {
			t.Errorf("deleted %v: elements %+v and %+v; want one", deleted, t4.Elements, t6.Elements)
		}
		for _, tc := range change.Tables {
			if len(tc.AddChains)+len(tc.AddSets)+len(tc.SetChains)+len(tc.DelChains)+len(tc.DelSets) != 0 {
				t.Errorf("deleted %v: more than an element changes: %+v", deleted, tc)
			}
		}
	}
}
