package bench

import (
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
)

var testShapes = []Shape{
	{LocalPods: 10, RemotePods: 200, Policies: 10, PerPod: 2, Peers: 10},
	{LocalPods: 12, RemotePods: 300, Policies: 40, PerPod: 4, Peers: 10},
	{LocalPods: 12, RemotePods: 300, Policies: 80, PerPod: 4, Peers: 10, DualStack: true},
	{LocalPods: 5, RemotePods: 100, Policies: 100, PerPod: 10, Peers: 5, Egress: true},
}

func TestShapeIsWhatItSays(t *testing.T) {
	for _, s := range testShapes {
		t.Run(s.String(), func(t *testing.T) {
			snap := s.Snapshot()
			if got := len(snap.Pods); got != s.LocalPods+s.RemotePods {
				t.Errorf("%d pods, want %d", got, s.LocalPods+s.RemotePods)
			}
			if got := len(snap.Policies); got != s.Policies {
				t.Errorf("%d policies, want %d", got, s.Policies)
			}
			addrs := map[netip.Addr]bool{}
			for _, p := range snap.Pods {
				for _, a := range p.Addrs {
					if addrs[a] {
						t.Fatalf("two pods have %s", a)
					}
					addrs[a] = true
				}
				if p.Node != Node {
					continue
				}
				if !snap.Nodes[0].PodCIDRs[0].Contains(p.Addrs[0]) {
					t.Errorf("local pod %s has the address %s outside of the node's block", p.Name, p.Addrs[0])
				}
				if got := selecting(t, snap, p); got != s.PerPod {
					t.Errorf("%d policies select %s, want %d", got, p.Name, s.PerPod)
				}
			}
			for _, np := range snap.Policies {
				if got := matching(t, snap, np.Spec.Ingress[0].From[0].PodSelector); got != s.Peers {
					t.Errorf("%s allows %d peers, want %d", np.Name, got, s.Peers)
				}
			}
		})
	}
}

func selecting(t *testing.T, snap policy.Snapshot, p *policy.Pod) int {
	n := 0
	for _, np := range snap.Policies {
		if np.Namespace == p.Namespace && matches(t, &np.Spec.PodSelector, p) {
			n++
		}
	}
	return n
}

func matching(t *testing.T, snap policy.Snapshot, sel *metav1.LabelSelector) int {
	n := 0
	for _, p := range snap.Pods {
		if matches(t, sel, p) {
			n++
		}
	}
	return n
}

func matches(t *testing.T, sel *metav1.LabelSelector, p *policy.Pod) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(sel)
	if err != nil {
		t.Fatal(err)
	}
	return s.Matches(p.Labels)
}

func TestFlowIsAllowedAndOthersAreNot(t *testing.T) {
	for _, s := range testShapes {
		t.Run(s.String(), func(t *testing.T) {
			snap, f := s.Snapshot(), s.Flow()
			if !s.Egress && len(f.Peers) != s.PerPod*s.Peers {
				t.Errorf("%d peers, want %d", len(f.Peers), s.PerPod*s.Peers)
			}
			for _, protocol := range []policy.Protocol{policy.TCP, policy.UDP} {
				for _, peer := range f.Peers {
					p := oracle.Packet{Src: peer, Dst: f.Pod, Protocol: protocol, Port: f.Port}
					if !oracle.Allowed(snap, Node, p) {
						t.Fatalf("%v is not allowed", p)
					}
				}
				p := oracle.Packet{Src: nodeToSource[policy.IPv4], Dst: f.Pod, Protocol: protocol, Port: f.Port}
				if oracle.Allowed(snap, Node, p) {
					t.Errorf("%v is allowed", p)
				}
			}
		})
	}
}

func TestOneElementPerSetThatMustHoldAPod(t *testing.T) {
	for _, s := range testShapes {
		t.Run(s.String(), func(t *testing.T) {
			c := policy.NewCompiler(policy.DefaultConfig(Node))
			c.Update(Deltas(s.Snapshot())...)
			c.Changes()
			known := holders(c.Ruleset())
			if p := c.Problems(); len(p) > 0 {
				t.Fatal(p)
			}
			total := 0
			for i := s.RemotePods; i < s.RemotePods+s.groups()*s.Peers; i += s.Peers {
				c.Update(policy.Delta{Object: s.RemotePod(i)})
				got, chains := Count(c.Changes())
				if want := held(known, s.sibling(i)); got != want || chains != 0 {
					t.Errorf("pod %d changes %d elements and %d chains, want %d and 0", i, got, chains, want)
				}
				total += got
			}
			if total == 0 {
				t.Error("no pod changes anything")
			}
		})
	}
}

func TestEventsLeaveTheClusterAsItWas(t *testing.T) {
	s := testShapes[1]
	c := policy.NewCompiler(policy.DefaultConfig(Node))
	c.Update(Deltas(s.Snapshot())...)
	before := counts(c.Ruleset())
	for _, e := range s.events() {
		for i := range 10 {
			for _, d := range e.pair(i) {
				c.Update(d)
			}
		}
	}
	if after := counts(c.Ruleset()); after != before {
		t.Errorf("elements and chains are %v, were %v", after, before)
	}
}

func counts(r *policy.Ruleset) (n [2]int) {
	for i := range r.Tables {
		for _, s := range r.Tables[i].Sets {
			n[0] += len(s.Elements)
		}
		n[1] += len(r.Tables[i].Chains)
	}
	return n
}

func TestEventsMeasuresAllKinds(t *testing.T) {
	times, err := Events(testShapes[1], 20)
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 * len(testShapes[1].events()); len(times) != want {
		t.Fatalf("%d kinds, want %d", len(times), want)
	}
	for _, x := range times {
		if x.Name == "" || len(x.Micros) == 0 {
			t.Errorf("%q was measured %d times", x.Name, len(x.Micros))
		}
	}
}
