package answers

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

// The pods' addresses. No other package's tests have them: an agent finds a pod's
// namespace among all of the machine by its address.
var cidrs = []netip.Prefix{netip.MustParsePrefix("10.179.16.0/24"), netip.MustParsePrefix("fd00:179::/64")}

// The servers in every pod and on the host outside.
const tcpPort, udpPort = 80, 53

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

// stage is a node with pods and an agent, a host outside of the cluster, and what the
// manifests say.
type stage struct {
	t     *testing.T
	world *world.World
	node  *world.Node
	// web and shut are of the namespace shop, like friend, cousin and rogue, who want to
	// talk to web; stats is of ops. ghost has an address of the node's, but no manifest.
	web, shut, friend, cousin, rogue, stats, ghost *world.Pod
	outside                                        *world.Node
	manifests, binary                              string
	agent                                          *world.Agent
}

// newStage makes all of it. The agent runs, with these policies in force: web is open
// to friend by web-friend, and on what it serves to cousin by web-cousin, shut sends nothing by shut-out,
// and stats gets nothing by stats-in.
func newStage(t *testing.T) *stage {
	t.Helper()
	requireRoot(t)
	w, err := world.New()
	must(t, err)
	t.Cleanup(func() { must(t, w.Close()) })
	dir, err := w.Dir()
	must(t, err)
	s := &stage{t: t, world: w, manifests: filepath.Join(dir, "manifests"), binary: filepath.Join(dir, "selvage")}
	must(t, os.Mkdir(s.manifests, 0o755))
	s.node, err = w.AddNode(world.NodeOptions{Name: "a", PodCIDRs: cidrs, Filtering: world.FilterBridge})
	must(t, err)
	s.outside, err = w.AddNode(world.NodeOptions{Name: "outside"})
	must(t, err)
	must(t, s.outside.Serve(world.Port{Protocol: policy.TCP, Number: tcpPort}, world.Port{Protocol: policy.UDP, Number: udpPort}))
	s.declareCluster()
	s.web, s.shut, s.friend = s.addPod("shop", "web", 2), s.addPod("shop", "shut", 3), s.addPod("shop", "friend", 4)
	s.cousin, s.rogue, s.stats = s.addPod("shop", "cousin", 5), s.addPod("shop", "rogue", 6), s.addPod("ops", "stats", 7)
	s.ghost = s.addPod("", "ghost", 8)
	s.put("web-friend", ingress("web-friend", "friend"))
	s.put("web-cousin", ingress("web-cousin", "cousin", served()...))
	s.put("shut-out", netpol("shut-out", "shop", "shut", networkingv1.PolicyTypeEgress))
	s.put("stats-in", netpol("stats-in", "ops", "stats", networkingv1.PolicyTypeIngress))
	s.build()
	s.agent = &world.Agent{Node: s.node, Binary: s.binary, Manifests: s.manifests, Log: filepath.Join(dir, "agent.log")}
	t.Cleanup(func() {
		must(t, s.agent.Kill())
		if t.Failed() {
			t.Logf("the agent's last words:\n%s", strings.Join(s.agent.LogTail(20), "\n"))
		}
	})
	must(t, s.agent.Start())
	must(t, s.agent.WaitReady(t.Context()))
	return s
}

// build builds the agent, with the flags of `make build`, so that its cache serves.
func (s *stage) build() {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), "go", "build", "-C", "../..", "-trimpath", "-buildvcs=false", "-o", s.binary, "./cmd/selvage")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("build the agent: %v\n%s", err, out)
	}
}

// declareCluster says what there is besides pods.
func (s *stage) declareCluster() {
	s.t.Helper()
	for _, name := range []string{"shop", "ops"} {
		s.put("namespace-"+name, &corev1.Namespace{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name},
		})
	}
	node := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: s.node.Name}}
	for _, c := range cidrs {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, c.String())
	}
	for _, a := range s.node.Addrs {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	s.put("node", node)
}

// addPod adds a pod with the host'th addresses. Without a namespace nobody is told of it.
func (s *stage) addPod(namespace, name string, host uint8) *world.Pod {
	s.t.Helper()
	var addrs []netip.Addr
	for _, c := range cidrs {
		b := c.Addr().AsSlice()
		b[len(b)-1] = host
		a, _ := netip.AddrFromSlice(b)
		addrs = append(addrs, a)
	}
	p, err := s.node.AddPod(world.PodOptions{Name: name, Addrs: addrs, Attachment: world.Bridged})
	must(s.t, err)
	must(s.t, p.Serve(world.Port{Protocol: policy.TCP, Number: tcpPort}, world.Port{Protocol: policy.UDP, Number: udpPort}))
	if namespace == "" {
		return p
	}
	o := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: s.node.Name},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, a := range addrs {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	s.put("pod-"+name, o)
	return p
}

// put writes the manifest of an object.
func (s *stage) put(name string, object any) {
	s.t.Helper()
	text, err := yaml.Marshal(object)
	must(s.t, err)
	hidden := filepath.Join(s.manifests, "."+name)
	must(s.t, os.WriteFile(hidden, text, 0o644))
	must(s.t, os.Rename(hidden, filepath.Join(s.manifests, name+".yaml")))
}

// change writes the manifest of an object, and waits until that is in force.
func (s *stage) change(name string, object any) {
	s.t.Helper()
	before, err := Programmed(s.t.Context(), s.node)
	must(s.t, err)
	s.put(name, object)
	must(s.t, WaitProgrammed(s.t.Context(), s.node, before+1))
}

// netpol returns a policy without rules for the pods of an app.
func netpol(name, namespace, app string, types ...networkingv1.PolicyType) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: labelled(app), PolicyTypes: types},
	}
}

// ingress returns a policy that opens web to the pods of another app, on these ports or
// on all. What policies open on the same ports they open, and count, together.
func ingress(name, from string, ports ...networkingv1.NetworkPolicyPort) *networkingv1.NetworkPolicy {
	np := netpol(name, "shop", "web", networkingv1.PolicyTypeIngress)
	peer := labelled(from)
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &peer}}, Ports: ports}}
	return np
}

// served are the ports of the servers.
func served() []networkingv1.NetworkPolicyPort {
	tcp, udp := corev1.ProtocolTCP, corev1.ProtocolUDP
	number := func(n int) *intstr.IntOrString { p := intstr.FromInt(n); return &p }
	return []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: number(tcpPort)}, {Protocol: &udp, Port: number(udpPort)}}
}

func labelled(app string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
}

// connect makes n connections over each family, all of which are allowed.
func (s *stage) connect(from, to *world.Pod, n int) {
	s.t.Helper()
	var probes []world.Probe
	for range n {
		for _, a := range to.Addrs() {
			probes = append(probes, world.Probe{From: from.Namespace, To: netip.AddrPortFrom(a, tcpPort), Protocol: policy.TCP, Want: world.Allowed})
		}
	}
	for i, r := range s.world.Probe(s.t.Context(), probes...) {
		if r.Outcome != world.Allowed {
			s.t.Errorf("%s to %s: %s (%v)", from.Name, probes[i].To, r.Outcome, r.Err)
		}
	}
}

// send sends n datagrams to each address, which do not arrive.
func (s *stage) send(from *world.Pod, to []netip.Addr, n int) {
	s.t.Helper()
	for _, a := range to {
		c, err := from.DialUDP(netip.Addr{}, netip.AddrPortFrom(a, udpPort))
		must(s.t, err)
		for range n {
			_, err := c.Write([]byte("denied"))
			must(s.t, err)
		}
		must(s.t, c.Close())
	}
}

// talk has a datagram answered over a flow.
func (s *stage) talk(c net.Conn) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	_, err := world.Exchange(ctx, c, "allowed")
	must(s.t, err)
}

// eventually waits for what cannot be waited for otherwise.
func (s *stage) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// metrics are what the agent shows now.
func (s *stage) metrics() Metrics {
	s.t.Helper()
	m, err := Scrape(s.t.Context(), s.node)
	must(s.t, err)
	return m
}

// run runs a command on the node.
func (s *stage) run(args ...string) Reply {
	s.t.Helper()
	r, err := Run(s.t.Context(), s.node, s.binary, args...)
	must(s.t, err)
	return r
}

// ask runs a command, reads the JSON value that it writes, and returns its exit code.
func (s *stage) ask(value any, args ...string) int {
	s.t.Helper()
	r := s.run(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(r.Out), value); err != nil {
		s.t.Fatalf("selvage %s: %v: %s%s", strings.Join(args, " "), err, r.Out, r.Err)
	}
	return r.Code
}

// series is a metric of one policy in one direction.
func series(ref, direction string) Labels {
	namespace, name, _ := strings.Cut(ref, "/")
	return Labels{"namespace": namespace, "policy": name, "direction": direction}
}
