package pools

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
	"github.com/selvage-net/selvage/policy"
)

// The pods' addresses. No other package's tests have them: an agent finds a pod's
// namespace among all of the machine by its address.
var (
	cidrs  = prefixes("10.178.0.0/16", "fd00:178::/64")
	cidrsA = prefixes("10.178.16.0/24", "fd00:178::16:0/112")
	cidrsB = prefixes("10.178.17.0/24", "fd00:178::17:0/112")
)

// The servers, in every pod and on every host.
var serves = []world.Port{{Protocol: policy.TCP, Number: 80}, {Protocol: policy.UDP, Number: 53}}

// spared is in --no-masquerade-cidrs, far is not.
var (
	far    = addresses("172.31.0.200", "fd31::200")
	spared = addresses("172.31.0.201", "fd31::201")
)

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(texts))
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addresses(texts ...string) []netip.Addr {
	out := make([]netip.Addr, 0, len(texts))
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// requireRoot skips a test that needs privileges, or fails it where a skip would hide
// that it never ran.
func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
		t.Fatal("NOT RUN: network namespaces need root")
	}
	t.Skip("SKIPPED, NOT TESTED: network namespaces need root")
}

// stage is two nodes with pods and agents, two hosts outside of the cluster, and what
// the manifests say.
type stage struct {
	t     *testing.T
	world *world.World
	// a has the pods one and two on its bridge and the routed pod solo, b has a pod on
	// its bridge and a routed one.
	a, b                     *world.Node
	one, two, solo, bus, ray *world.Pod
	// outside and kept are hosts; their addresses are far and spared.
	outside, kept *world.Node
	manifests     string
	agents        []*world.Agent
}

// newStage makes all of it; the agents are started by start.
func newStage(t *testing.T, args ...string) *stage {
	t.Helper()
	requireRoot(t)
	w, err := world.New()
	must(t, err)
	t.Cleanup(func() { must(t, w.Close()) })
	dir, err := w.Dir()
	must(t, err)
	s := &stage{t: t, world: w, manifests: filepath.Join(dir, "manifests")}
	must(t, os.Mkdir(s.manifests, 0o755))
	s.a = s.addNode(world.NodeOptions{Name: "a", PodCIDRs: cidrsA, Filtering: world.FilterBridge})
	s.b = s.addNode(world.NodeOptions{Name: "b", PodCIDRs: cidrsB, Filtering: world.FilterBridge})
	s.outside = s.addNode(world.NodeOptions{Name: "outside", Addrs: far})
	s.kept = s.addNode(world.NodeOptions{Name: "kept", Addrs: spared})
	s.put("namespace", &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	s.declareNode(s.a, map[string]string{"zone": "west"})
	s.declareNode(s.b, map[string]string{"zone": "east"})
	s.one = s.addPod(s.a, "one", 2, world.Bridged)
	s.two = s.addPod(s.a, "two", 3, world.Bridged)
	s.solo = s.addPod(s.a, "solo", 4, world.Routed)
	s.bus = s.addPod(s.b, "bus", 2, world.Bridged)
	s.ray = s.addPod(s.b, "ray", 3, world.Routed)
	binary := filepath.Join(dir, "selvage")
	// The flags of `make build`, so that its cache serves.
	cmd := exec.CommandContext(t.Context(), "go", "build", "-C", "../..", "-trimpath", "-buildvcs=false", "-o", binary, "./cmd/selvage")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	for _, n := range []*world.Node{s.a, s.b} {
		a := &world.Agent{Node: n, Binary: binary, Manifests: s.manifests, Log: filepath.Join(dir, n.Name+".log"), Args: args}
		s.agents = append(s.agents, a)
		t.Cleanup(func() {
			must(t, a.Kill())
			if t.Failed() {
				t.Logf("the last words of %s's agent:\n%s", n.Name, strings.Join(a.LogTail(20), "\n"))
			}
		})
	}
	return s
}

// addNode adds a node or, without PodCIDRs, a host.
func (s *stage) addNode(o world.NodeOptions) *world.Node {
	s.t.Helper()
	n, err := s.world.AddNode(o)
	must(s.t, err)
	must(s.t, n.Serve(serves...))
	return n
}

func (s *stage) declareNode(n *world.Node, labels map[string]string) {
	o := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: labels},
	}
	for _, c := range n.PodCIDRs {
		o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, c.String())
	}
	for _, a := range n.Addrs {
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	s.put("node-"+n.Name, o)
}

// addPod adds a pod with the host'th address of each of the node's ranges.
func (s *stage) addPod(n *world.Node, name string, host uint8, how world.Attachment) *world.Pod {
	s.t.Helper()
	var addrs []netip.Addr
	for _, c := range n.PodCIDRs {
		b := c.Addr().AsSlice()
		b[len(b)-1] = host
		a, _ := netip.AddrFromSlice(b)
		addrs = append(addrs, a)
	}
	p, err := n.AddPod(world.PodOptions{Name: name, Addrs: addrs, Attachment: how})
	must(s.t, err)
	must(s.t, p.Serve(serves...))
	s.declarePod(p, map[string]string{"app": name})
	return p
}

func (s *stage) declarePod(p *world.Pod, labels map[string]string) {
	o := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: p.Name, UID: types.UID("uid-" + p.Name), Labels: labels},
		Spec:       corev1.PodSpec{NodeName: p.Node.Name},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, a := range p.Addrs() {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	s.put("pod-"+p.Name, o)
}

// put writes a manifest of objects, all at once.
func (s *stage) put(name string, objects ...any) {
	s.t.Helper()
	var b strings.Builder
	for _, o := range objects {
		text, err := yaml.Marshal(o)
		must(s.t, err)
		fmt.Fprintf(&b, "---\n%s", text)
	}
	hidden := filepath.Join(s.manifests, "."+name)
	must(s.t, os.WriteFile(hidden, []byte(b.String()), 0o644))
	must(s.t, os.Rename(hidden, filepath.Join(s.manifests, name+".yaml")))
}

// drop removes a manifest.
func (s *stage) drop(name string) {
	s.t.Helper()
	must(s.t, os.Remove(filepath.Join(s.manifests, name+".yaml")))
}

// pool returns a pool of all pods' addresses unless it is told others.
func pool(name string, nat bool, blocks ...netip.Prefix) *v1alpha1.IPPool {
	if len(blocks) == 0 {
		blocks = cidrs
	}
	p := &v1alpha1.IPPool{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "IPPool"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.IPPoolSpec{NATOutgoing: nat},
	}
	for _, b := range blocks {
		p.Spec.CIDRs = append(p.Spec.CIDRs, b.String())
	}
	return p
}

// netpol returns a policy without rules for the pods that have a label.
func netpol(name string, key, value string, types ...networkingv1.PolicyType) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{key: value}}, PolicyTypes: types,
		},
	}
}

// blocksOf are peers that are single addresses.
func blocksOf(addrs ...netip.Addr) []networkingv1.NetworkPolicyPeer {
	var peers []networkingv1.NetworkPolicyPeer
	for _, a := range addrs {
		cidr := netip.PrefixFrom(a, a.BitLen()).String()
		peers = append(peers, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr}})
	}
	return peers
}

// start starts the agents with what was said so far, and waits until it is in force.
func (s *stage) start() {
	s.t.Helper()
	for _, a := range s.agents {
		must(s.t, a.Start())
	}
	for _, a := range s.agents {
		must(s.t, a.WaitReady(s.t.Context()))
	}
}

// eventually waits for what cannot be waited for otherwise.
func (s *stage) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// way is a new connection over one protocol and family.
type way struct {
	from *world.Namespace
	to   netip.AddrPort
	by   policy.Protocol
	// source is what the server shall see; without one nothing shall arrive.
	source netip.Addr
}

// outcome is what shall become of it.
func (w way) outcome() world.Outcome {
	if w.source.IsValid() {
		return world.Allowed
	}
	return world.Dropped
}

// ways are all connections to servers at the addresses. source is asked for the
// source of each family.
func ways(from *world.Namespace, to []netip.Addr, source func(policy.Family) netip.Addr) []way {
	var out []way
	for _, a := range to {
		for _, p := range serves {
			out = append(out, way{from, netip.AddrPortFrom(a, p.Number), p.Protocol, source(policy.FamilyOf(a))})
		}
	}
	return out
}

// nothing is the source of what shall not arrive.
func nothing(policy.Family) netip.Addr { return netip.Addr{} }

// check tries connections, all at once.
func (s *stage) check(when string, lists ...[]way) {
	s.t.Helper()
	for _, wrong := range s.wrong(true, lists...) {
		s.t.Errorf("%s: %s", when, wrong)
	}
}

// become waits until connections are as they shall be. No try of one waits long.
func (s *stage) become(what string, lists ...[]way) {
	s.t.Helper()
	s.eventually(what, func() bool { return len(s.wrong(false, lists...)) == 0 })
}

// wrong tries connections and says what is not as it shall be. What does not come
// through though it shall is waited for if patient.
func (s *stage) wrong(patient bool, lists ...[]way) []string {
	var probes []world.Probe
	all := slices.Concat(lists...)
	for _, w := range all {
		p := world.Probe{From: w.from, To: w.to, Protocol: w.by, Want: world.Dropped}
		if patient {
			p.Want = w.outcome()
		}
		probes = append(probes, p)
	}
	var out []string
	for i, r := range s.world.Probe(s.t.Context(), probes...) {
		if w := all[i]; r.Outcome != w.outcome() || r.Source.Addr() != w.source {
			out = append(out, fmt.Sprintf("%s to %s by %s: %s from %s (%v), want %s from %s", w.from.ID, w.to, w.by, r.Outcome, r.Source, r.Err, w.outcome(), w.source))
		}
	}
	return out
}

// ruleset is that of a node in nft's words, without counters.
func (s *stage) ruleset(n *world.Node) string {
	s.t.Helper()
	text, err := n.Run(context.Background(), "nft", "-s", "list", "ruleset")
	must(s.t, err)
	return text
}

// zone selects nodes.
func zone(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"zone": name}}
}

// single returns blocks of one address each.
func single(addrs []netip.Addr) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// limits are the rates of a node's queues for what pods receive, in bits per second.
func (s *stage) limits(n *world.Node) []int64 {
	s.t.Helper()
	text, err := n.Run(context.Background(), "tc", "-j", "qdisc", "show")
	must(s.t, err)
	var all []struct {
		Handle  string
		Options struct{ Rate int64 }
	}
	must(s.t, json.Unmarshal([]byte(text), &all))
	var rates []int64
	for _, q := range all {
		if q.Handle == "5e1a:" {
			rates = append(rates, q.Options.Rate*8)
		}
	}
	return rates
}
