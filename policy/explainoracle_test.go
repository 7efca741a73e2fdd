package policy_test

import (
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
	"github.com/selvage-net/selvage/policy/policytest"
	"github.com/selvage-net/selvage/policy/trace"
)

// TestExplainAgreesWithOracle draws worlds and packets, and wants an explanation to come
// to what the oracle says at both ends, and to what the rules of each node do. Each rule
// that it judges is judged by the oracle as well, alone.
func TestExplainAgreesWithOracle(t *testing.T) {
	seen := map[policy.Why]*[2]atomic.Int64{}
	for _, why := range []policy.Why{policy.WhyPolicies, policy.WhyNotIsolated, policy.WhyItself, policy.WhyOwnNode, policy.WhyNoNode, policy.WhyUnknownAddress} {
		seen[why] = new([2]atomic.Int64)
	}
	for _, toNode := range []policy.PodToNode{policy.PodToNodeAllow, policy.PodToNodePolicy} {
		t.Run(string(toNode), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				w := policytest.Worlds(policytest.Options{Packets: packetsPerWorld, Pools: true}).Draw(t, "world")
				c := newExplained(t, w.Snapshot, toNode)
				for _, p := range w.Packets {
					e := c.explain(p)
					for _, s := range []*policy.Side{e.Egress, e.Ingress} {
						switch {
						case s == nil:
						case s.Outcome == policy.OutcomeAllowed:
							seen[s.Why][0].Add(1)
						default:
							seen[s.Why][1].Add(1)
						}
					}
				}
			})
		})
	}
	for why, n := range seen {
		allowed, denied := n[0].Load(), n[1].Load()
		t.Logf("%s: %d allowed, %d denied", why, allowed, denied)
		mayAllow, mayDeny := why != policy.WhyUnknownAddress, why == policy.WhyPolicies || why == policy.WhyUnknownAddress
		if !t.Failed() && ((allowed > 0) != mayAllow || (denied > 0) != mayDeny) {
			t.Errorf("%s: %d allowed, %d denied: the worlds say nothing", why, allowed, denied)
		}
	}
}

// explained compares the explanations of one world.
type explained struct {
	t        *rapid.T
	cfg      policy.Config
	snapshot policy.Snapshot
	x        *policy.Explainer
	tracers  map[string]*trace.Tracer
}

func newExplained(t *rapid.T, s policy.Snapshot, toNode policy.PodToNode) *explained {
	cfg := policy.DefaultConfig("does not matter")
	cfg.PodToNode = toNode
	return &explained{t, cfg, s, policy.NewExplainer(cfg, s, nil), map[string]*trace.Tracer{}}
}

func (c *explained) fail(p oracle.Packet, e policy.Explanation, format string, args ...any) {
	c.t.Helper()
	c.t.Errorf(format, args...)
	c.t.Fatalf("%s\n%s\n%+v\n%s", p, e, e, policytest.Text(c.snapshot))
}

func (c *explained) explain(p oracle.Packet) policy.Explanation {
	f := policy.Flow{From: policy.Endpoint{Addr: p.Src}, To: policy.Endpoint{Addr: p.Dst}, Protocol: p.Protocol, Port: p.Port}
	e := c.x.Explain(f)
	egress, ingress := true, true
	var judging []string
	for _, node := range c.nodes(p) {
		hook := c.hook(node, p)
		if hook == "" {
			continue
		}
		judging = append(judging, node+" "+hook)
		egress = egress && oracle.EgressAllowed(c.snapshot, node, p)
		ingress = ingress && (hook == "input" || oracle.IngressAllowed(c.snapshot, node, p))
	}
	if got := allows(e.Egress); got != egress {
		c.fail(p, e, "egress is allowed: %v, want %v", got, egress)
	}
	if got := allows(e.Ingress); got != ingress {
		c.fail(p, e, "ingress is allowed: %v, want %v", got, ingress)
	}
	if got := e.Outcome == policy.OutcomeAllowed; got != (egress && ingress) {
		c.fail(p, e, "allowed: %v", got)
	}
	var said []string
	for _, n := range e.Nodes {
		said = append(said, n.Node+" "+n.Hook)
		c.walk(n, p, e)
	}
	if !slices.Equal(said, judging) {
		c.fail(p, e, "judged by %q, want %q", said, judging)
	}
	c.rules(p, e, e.Egress, oracle.EgressAllowed)
	c.rules(p, e, e.Ingress, oracle.IngressAllowed)
	c.byName(f, e)
	return e
}

func allows(s *policy.Side) bool { return s == nil || s.Outcome == policy.OutcomeAllowed }

// nodes returns those where the ends of a packet are.
func (c *explained) nodes(p oracle.Packet) []string {
	var out []string
	for _, a := range []netip.Addr{p.Src, p.Dst} {
		for _, node := range c.homes(a) {
			if !slices.Contains(out, node) {
				out = append(out, node)
			}
		}
	}
	return out
}

func (c *explained) homes(a netip.Addr) []string {
	if pod := oracle.Owner(c.snapshot, a); pod != nil && pod.Node != "" {
		return []string{pod.Node}
	}
	if node := c.nodeWith(a); node != "" {
		return []string{node}
	}
	var closing []string
	for _, n := range c.snapshot.Nodes {
		if slices.ContainsFunc(n.PodCIDRs, func(b netip.Prefix) bool { return b.Contains(a) }) {
			closing = append(closing, n.Name)
		}
	}
	slices.Sort(closing)
	return closing
}

// nodeWith returns the first node that has an address as its own, or "".
func (c *explained) nodeWith(a netip.Addr) string {
	if oracle.Owner(c.snapshot, a) != nil {
		return ""
	}
	var nodes, pods []string
	for _, n := range c.snapshot.Nodes {
		if slices.Contains(n.Addrs, a) {
			nodes = append(nodes, n.Name)
		}
	}
	for _, p := range c.snapshot.Pods {
		if p.HostNetwork && !p.Finished && p.Node != "" && slices.Contains(p.Addrs, a) {
			pods = append(pods, p.Namespace+"/"+p.Name+"/"+p.Node)
		}
	}
	slices.Sort(nodes)
	slices.Sort(pods)
	switch {
	case len(nodes) > 0:
		return nodes[0]
	case len(pods) > 0:
		return pods[0][strings.LastIndex(pods[0], "/")+1:]
	}
	return ""
}

// hook is where a node sees the packet, or "".
func (c *explained) hook(node string, p oracle.Packet) string {
	switch {
	case c.nodeWith(p.Src) == node:
		return ""
	case c.nodeWith(p.Dst) != node:
		return "forward"
	case c.cfg.PodToNode == policy.PodToNodePolicy:
		return "input"
	}
	return ""
}

// walk wants the rules of a node to do what the explanation says.
func (c *explained) walk(n policy.NodeOutcome, p oracle.Packet, e policy.Explanation) {
	tracer := c.tracers[n.Node]
	if tracer == nil {
		cfg := c.cfg
		cfg.NodeName = n.Node
		ruleset, _ := policy.Compile(cfg, c.snapshot)
		tracer = trace.New(ruleset)
		c.tracers[n.Node] = tracer
	}
	got, err := tracer.Run(n.Hook, policytest.Opening(p))
	if err != nil {
		c.t.Fatal(err)
	}
	if accepted := got.Verdict == policy.VerdictAccept; accepted != (n.Outcome == policy.OutcomeAllowed) {
		c.fail(p, e, "the rules of %s accept: %v", n.Node, accepted)
	}
}

// rules has the oracle judge each rule of a side, while no other rule allows anything.
func (c *explained) rules(p oracle.Packet, e policy.Explanation, s *policy.Side, allowed func(policy.Snapshot, string, oracle.Packet) bool) {
	if s == nil || s.Why != policy.WhyPolicies {
		return
	}
	dir := "ingress"
	if s == e.Egress {
		dir = "egress"
	}
	var by []string
	for _, np := range s.Policies {
		all := len(c.policy(np.Namespace, np.Name).Spec.Ingress)
		if dir == "egress" {
			all = len(c.policy(np.Namespace, np.Name).Spec.Egress)
		}
		if all != len(np.Rules) {
			c.fail(p, e, "%d rules of %s", len(np.Rules), np.Name)
		}
		for _, r := range np.Rules {
			name := ruleName(np.Namespace, np.Name, dir, r.Index)
			if alone := allowed(c.mute(func(rule string) bool { return rule != name }), s.Node, p); alone != r.Allows {
				c.fail(p, e, "%s allows: %v, and alone it does: %v", name, r.Allows, alone)
			}
			if r.Allows {
				by = append(by, name)
			}
		}
	}
	var said []string
	for _, r := range s.AllowedBy {
		said = append(said, ruleName(r.Namespace, r.Policy, r.Direction, r.Index))
	}
	if !slices.Equal(said, by) {
		c.fail(p, e, "allowed by %q, want %q", said, by)
	}
	if allowed(c.mute(func(rule string) bool { return slices.Contains(by, rule) }), s.Node, p) {
		c.fail(p, e, "allowed also without %q", by)
	}
}

func ruleName(namespace, name, dir string, index int) string {
	return strings.Join([]string{namespace, name, dir, string(rune('0' + index))}, "/")
}

func (c *explained) policy(namespace, name string) *networkingv1.NetworkPolicy {
	for _, np := range c.snapshot.Policies {
		if np.Namespace == namespace && np.Name == name {
			return np
		}
	}
	c.t.Fatalf("there is no policy %s/%s", namespace, name)
	return nil
}

// mute returns the snapshot with rules that allow nothing in place of some.
func (c *explained) mute(rule func(name string) bool) policy.Snapshot {
	nothing := []networkingv1.NetworkPolicyPort{{Protocol: new(corev1.Protocol)}}
	s := c.snapshot
	s.Policies = nil
	for _, np := range c.snapshot.Policies {
		np = np.DeepCopy()
		for i := range np.Spec.Ingress {
			if rule(ruleName(np.Namespace, np.Name, "ingress", i)) {
				np.Spec.Ingress[i].Ports = nothing
			}
		}
		for i := range np.Spec.Egress {
			if rule(ruleName(np.Namespace, np.Name, "egress", i)) {
				np.Spec.Egress[i].Ports = nothing
			}
		}
		s.Policies = append(s.Policies, np)
	}
	return s
}

// byName wants the same explanation if the pods are named.
func (c *explained) byName(f policy.Flow, want policy.Explanation) {
	for _, end := range []*policy.Endpoint{&f.From, &f.To} {
		if pod := oracle.Owner(c.snapshot, end.Addr); pod != nil {
			end.Namespace, end.Name = pod.Namespace, pod.Name
		}
	}
	if got := c.x.Explain(f); got.String() != want.String() {
		c.t.Fatalf("by name:\n%s\nby address:\n%s\n%s", got, want, policytest.Text(c.snapshot))
	}
}
