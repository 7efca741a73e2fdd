package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
	"github.com/selvage-net/selvage/policy/policytest"
	"github.com/selvage-net/selvage/policy/trace"
)

// TestCountersTellWho draws worlds and packets. Of the policies that a packet is
// counted for when it is allowed, one must allow it all by itself; and the policies
// behind the chain that denies it must be those that isolate the pod.
func TestCountersTellWho(t *testing.T) {
	var allowed, denied, unknown atomic.Int64
	for name, vary := range variants {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				w := policytest.Worlds(policytest.Options{Packets: packetsPerWorld}).Draw(t, "world")
				cfg := policy.DefaultConfig(policytest.NodeA)
				vary(&cfg)
				c := policy.NewCompiler(cfg)
				c.Update(policytest.Events(policytest.Options{}, policy.Snapshot{}, w.Snapshot).Draw(t, "objects")...)
				tracer := trace.New(c.Ruleset())
				for _, p := range w.Packets {
					result, err := tracer.Run("forward", policytest.Opening(p))
					if err != nil {
						t.Fatal(err)
					}
					for _, step := range result.Path {
						counter := step.Chain.Rules[min(step.Rule, len(step.Chain.Rules)-1)].Count
						if counter == "" || step.Rule == len(step.Chain.Rules) {
							continue
						}
						info, ok := c.Counter(counter)
						switch {
						case !ok:
							t.Fatalf("nobody knows what counter %s is", counter)
						case info.Namespace == "":
							unknown.Add(1)
							if counter != "deny-unknown" || len(info.Policies) > 0 || !info.Denied {
								t.Fatalf("counter %s: %+v", counter, info)
							}
						case info.Denied:
							denied.Add(1)
							mustBeIsolating(t, w.Snapshot, p, info)
							if got := c.Isolating(step.Chain.Name); !slices.Equal(got, info.Policies) {
								t.Fatalf("chain %s is of %v, its counter of %v", step.Chain.Name, got, info.Policies)
							}
						default:
							allowed.Add(1)
							mustAllow(t, w.Snapshot, p, info)
						}
					}
				}
			})
		})
	}
	if !t.Failed() && (allowed.Load() == 0 || denied.Load() == 0 || unknown.Load() == 0) {
		t.Errorf("%d allowed, %d denied, %d unknown: the worlds say nothing", allowed.Load(), denied.Load(), unknown.Load())
	}
}

// alone returns the cluster with one of its policies only, in one direction.
func alone(s policy.Snapshot, ref policy.PolicyRef, direction string) policy.Snapshot {
	for _, np := range s.Policies {
		if np.Namespace == ref.Namespace && np.Name == ref.Name {
			only := np.DeepCopy()
			only.Spec.PolicyTypes = []networkingv1.PolicyType{typeOf(direction)}
			s.Policies = []*networkingv1.NetworkPolicy{only}
			return s
		}
	}
	s.Policies = nil
	return s
}

func typeOf(direction string) networkingv1.PolicyType {
	return map[string]networkingv1.PolicyType{"ingress": networkingv1.PolicyTypeIngress, "egress": networkingv1.PolicyTypeEgress}[direction]
}

// isolated tells whether the pod that a counter is about is isolated in its direction.
func isolated(s policy.Snapshot, p oracle.Packet, direction string) bool {
	if direction == "egress" {
		_, egress := oracle.Isolated(s, policytest.NodeA, p.Src)
		return egress
	}
	ingress, _ := oracle.Isolated(s, policytest.NodeA, p.Dst)
	return ingress
}

func mustAllow(t *rapid.T, s policy.Snapshot, p oracle.Packet, info policy.CounterInfo) {
	allow := oracle.IngressAllowed
	if info.Direction == "egress" {
		allow = oracle.EgressAllowed
	}
	some := false
	for _, ref := range info.Policies {
		only := alone(s, ref, info.Direction)
		if !isolated(only, p, info.Direction) || ref.Namespace != info.Namespace {
			t.Fatalf("%s is counted for %s, which has nothing to do with it\n%s", p, ref, policytest.Text(s))
		}
		some = some || allow(only, policytest.NodeA, p)
	}
	if !some {
		t.Fatalf("%s: none of %v allows it, which it is counted for\n%s", p, info.Policies, policytest.Text(s))
	}
}

func mustBeIsolating(t *rapid.T, s policy.Snapshot, p oracle.Packet, info policy.CounterInfo) {
	var want []policy.PolicyRef
	for _, np := range s.Policies {
		ref := policy.PolicyRef{Namespace: np.Namespace, Name: np.Name}
		one := s
		one.Policies = []*networkingv1.NetworkPolicy{np}
		if isolated(one, p, info.Direction) {
			want = append(want, ref)
		}
	}
	slices.SortFunc(want, func(a, b policy.PolicyRef) int { return strings.Compare(a.String(), b.String()) })
	if diff := cmp.Diff(want, info.Policies); diff != "" {
		t.Fatalf("%s is denied %s; those that isolate the pod (-) and those said to (+):\n%s", p, info.Direction, diff)
	}
	if info.Namespace != want[0].Namespace {
		t.Fatalf("%s is denied in namespace %q, not in %s", p, info.Namespace, want[0].Namespace)
	}
}

// TestCountsAreKept compares the sizes that a compiler keeps with what there is, after
// each of many changes.
func TestCountsAreKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := policy.NewCompiler(policy.DefaultConfig(policytest.NodeA))
		before := policy.Snapshot{}
		for range 3 {
			after := policytest.Snapshots(withPools).Draw(t, "cluster")
			for _, delta := range policytest.Events(withPools, before, after).Draw(t, "deltas") {
				c.Update(delta)
				if rapid.Bool().Draw(t, "settled") {
					mustHaveCounted(t, c)
				}
			}
			mustHaveCounted(t, c)
			before = after
		}
	})
}

func mustHaveCounted(t *rapid.T, c *policy.Compiler) {
	r := c.Ruleset()
	got := c.Counts()
	want := got
	want.Chains, want.Rules, want.Sets, want.Elements, want.Counters = 0, 0, 0, 0, 0
	names := map[string]bool{}
	for _, table := range r.Tables {
		want.Chains += len(table.Chains)
		want.Sets += len(table.Sets)
		want.Counters += len(table.Counters)
		for _, chain := range table.Chains {
			want.Rules += len(chain.Rules)
		}
		for _, set := range table.Sets {
			want.Elements += len(set.Elements)
		}
		for _, counter := range table.Counters {
			names[counter.Name] = true
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("there (-) and counted (+):\n%s\n%s", diff, r)
	}
	infos := c.Counters()
	for name := range names {
		if _, ok := infos[name]; !ok {
			t.Fatalf("nobody knows what counter %s is", name)
		}
	}
	if len(infos) != len(names) {
		t.Fatalf("%d counters, and %d are known", len(names), len(infos))
	}
}

// TestOneCounterForEachList: rules count in one counter if the same policies allow what
// matches, whatever pods they are for, and in one of their own if it is others.
func TestOneCounterForEachList(t *testing.T) {
	objects := []policy.Object{
		somePod("web", policytest.NodeA, "10.1.0.2", "np-0", "np-1", "np-2"), somePod("db", policytest.NodeA, "10.1.0.3", "np-1"),
		somePod("client", policytest.NodeB, "10.2.0.2", "client"),
	}
	for _, name := range []string{"np-0", "np-1", "np-2"} {
		np := allow(name, "client")
		np.Spec.PodSelector.MatchLabels = map[string]string{name: "x"}
		objects = append(objects, np)
	}
	cl := newCluster(t, objects...)
	got := map[string]bool{}
	for _, info := range cl.c.Counters() {
		got[fmt.Sprintf("%t %s %s %v", info.Denied, info.Direction, info.Namespace, info.Policies)] = true
	}
	want := map[string]bool{
		"true   []": true,
		"true ingress shop [shop/np-0 shop/np-1 shop/np-2]":  true,
		"true ingress shop [shop/np-1]":                      true,
		"false ingress shop [shop/np-0 shop/np-1 shop/np-2]": true,
		"false ingress shop [shop/np-1]":                     true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want (-) and got (+):\n%s", diff)
	}
	// Nothing is counted for who is not there any more.
	cl.c.Update(policy.Delta{Object: objects[0], Deleted: true})
	for _, counter := range cl.c.Ruleset().Tables[policy.IPv4].Counters {
		if strings.Contains(counter.Comment, "np-0") {
			t.Errorf("counter %s, of %s, is there without a pod", counter.Name, counter.Comment)
		}
	}
}

// TestCountersOfPorts: where the port is looked up first, what is counted is counted for
// all whose peers may use that port.
func TestCountersOfPorts(t *testing.T) {
	objects := []policy.Object{somePod("web", policytest.NodeA, "10.1.0.2")}
	for name, ports := range map[string][]int32{"a": {80}, "b": {80, 81}, "c": {82}, "d": {83}} {
		var list []networkingv1.NetworkPolicyPort
		for _, p := range ports {
			port := intstr.FromInt32(p)
			list = append(list, networkingv1.NetworkPolicyPort{Port: &port})
		}
		objects = append(objects, allow(name, "client-"+name, list...))
	}
	cl := newCluster(t, objects...)
	var got []string
	for _, info := range cl.c.Counters() {
		if !info.Denied {
			got = append(got, fmt.Sprint(info.Policies))
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"[shop/a shop/b]", "[shop/b]", "[shop/c]", "[shop/d]"}, got); diff != "" {
		t.Errorf("want (-) and got (+):\n%s", diff)
	}
}

// TestCountsWhatAllIsAllowed: policies that allow everything have a chain that counts.
// Neither that it comes nor that it goes denies anything.
func TestCountsWhatAllIsAllowed(t *testing.T) {
	cl := newCluster(t, somePod("web", policytest.NodeA, "10.1.0.2"))
	open := ingressPolicy("open", networkingv1.NetworkPolicyIngressRule{})
	closed := ingressPolicy("closed", networkingv1.NetworkPolicyIngressRule{})
	closed.Spec.Ingress, closed.Spec.PolicyTypes = nil, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	counted := func(what string, want ...string) {
		t.Helper()
		var got []string
		for _, info := range cl.c.Counters() {
			if len(info.Policies) > 0 {
				got = append(got, fmt.Sprintf("%v denied %t", info.Policies, info.Denied))
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: want (-) and got (+):\n%s", what, diff)
		}
	}
	counted("no policy")
	cl.put(open)
	cl.want("a pod that nothing isolated is allowed everything", false)
	counted("open", "[shop/open] denied false")
	cl.put(closed)
	cl.want("a policy that allows nothing joins one that allows everything", false)
	counted("open and closed", "[shop/open] denied false")
	cl.c.Update(policy.Delta{Object: open, Deleted: true})
	cl.want("only the one that allows nothing is left", true)
	counted("closed", "[shop/closed] denied true")
	other := open.DeepCopy()
	other.Name, other.Spec.PodSelector.MatchLabels = "other", map[string]string{"other": "x"}
	cl.put(somePod("other", policytest.NodeA, "10.1.0.3", "other"), other)
	counted("other", "[shop/closed] denied true", "[shop/other] denied false")
	if text := cl.c.Ruleset().String(); !strings.Contains(text, "10.1.0.2 . 10.1.0.2") || strings.Contains(text, "10.1.0.3 . 10.1.0.3") {
		t.Errorf("who has nothing to fear need not be let through to itself:\n%s", text)
	}
	cl.c.Update(policy.Delta{Object: other, Deleted: true})
	cl.c.Update(policy.Delta{Object: somePod("other", policytest.NodeA, "10.1.0.3", "other"), Deleted: true})
	cl.c.Changes()
	cl.put(open)
	cl.want("everything is allowed again", false)
	cl.c.Update(policy.Delta{Object: closed, Deleted: true})
	cl.want("the one that allows nothing goes", false)
	cl.c.Update(policy.Delta{Object: open, Deleted: true})
	cl.want("nothing isolates the pod", false)
	counted("no policy any more")
}
