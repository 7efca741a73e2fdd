package bandwidth

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

// The node's ranges. No other package's tests have them: an agent finds a pod's
// namespace among all of the machine by its address.
var cidrs = []netip.Prefix{netip.MustParsePrefix("10.177.0.0/16"), netip.MustParsePrefix("fd00:177::/64")}

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

// stage is a node with an agent, and what its manifests say.
type stage struct {
	t         *testing.T
	node      *world.Node
	agent     *world.Agent
	objects   []any
	pods      map[string]*corev1.Pod
	namespace *corev1.Namespace
	next      int
}

// newStage makes a node; its agent is started by the first apply.
func newStage(t *testing.T, args ...string) *stage {
	t.Helper()
	requireRoot(t)
	w, err := world.New()
	must(t, err)
	t.Cleanup(func() { must(t, w.Close()) })
	node, err := w.AddNode(world.NodeOptions{Name: "shaped", PodCIDRs: cidrs, Filtering: world.FilterBridge})
	must(t, err)
	dir, err := w.Dir()
	must(t, err)
	manifests := filepath.Join(dir, "manifests")
	must(t, os.Mkdir(manifests, 0o755))
	binary := filepath.Join(dir, "selvage")
	// The flags of `make build`, so that its cache serves.
	cmd := exec.CommandContext(t.Context(), "go", "build", "-C", "../..", "-trimpath", "-buildvcs=false", "-o", binary, "./cmd/selvage")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	s := &stage{
		t: t, node: node, pods: map[string]*corev1.Pod{}, next: 10,
		agent:     &world.Agent{Node: node, Binary: binary, Manifests: manifests, Log: filepath.Join(dir, "agent.log"), Args: args},
		namespace: &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
	}
	s.objects = append(s.objects, &corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: node.Name},
		Spec: corev1.NodeSpec{PodCIDRs: []string{cidrs[0].String(), cidrs[1].String()}},
	}, s.namespace)
	t.Cleanup(func() {
		must(t, s.agent.Kill())
		if t.Failed() {
			t.Logf("the agent's last words:\n%s", strings.Join(s.agent.LogTail(20), "\n"))
		}
	})
	return s
}

// add adds a pod, with limits unless these are empty.
func (s *stage) add(name string, how world.Attachment, in, out string) *world.Pod {
	s.t.Helper()
	s.next++
	addrs := []netip.Addr{netip.AddrFrom4([4]byte{10, 177, byte(s.next / 256), byte(s.next % 256)}), netip.MustParseAddr(fmt.Sprintf("fd00:177::%x", s.next))}
	p, err := s.node.AddPod(world.PodOptions{Name: name, Addrs: addrs, Attachment: how})
	must(s.t, err)
	s.declare(name, addrs, in, out)
	return p
}

// declare has the manifests say that there is a pod.
func (s *stage) declare(name string, addrs []netip.Addr, in, out string) {
	s.pods[name] = &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace.Name, Name: name, UID: types.UID("uid-" + name)},
		Spec:       corev1.PodSpec{NodeName: s.node.Name},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, a := range addrs {
		s.pods[name].Status.PodIPs = append(s.pods[name].Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	s.limit(name, in, out)
}

// limit sets the annotations of a pod.
func (s *stage) limit(name, in, out string) { s.pods[name].Annotations = annotations(in, out) }

func annotations(in, out string) map[string]string {
	a := map[string]string{}
	if in != "" {
		a["kubernetes.io/ingress-bandwidth"] = in
	}
	if out != "" {
		a["kubernetes.io/egress-bandwidth"] = out
	}
	return a
}

// write writes the manifests, all at once.
func (s *stage) write() {
	s.t.Helper()
	var b strings.Builder
	all := s.objects
	for _, p := range s.pods {
		all = append(all, p)
	}
	for _, o := range all {
		text, err := yaml.Marshal(o)
		must(s.t, err)
		fmt.Fprintf(&b, "---\n%s", text)
	}
	hidden := filepath.Join(s.agent.Manifests, ".objects")
	must(s.t, os.WriteFile(hidden, []byte(b.String()), 0o644))
	must(s.t, os.Rename(hidden, filepath.Join(s.agent.Manifests, "objects.yaml")))
}

// start starts the agent with what was said so far, and waits until it is in force.
func (s *stage) start() {
	s.t.Helper()
	s.write()
	must(s.t, s.agent.Start())
	must(s.t, s.agent.WaitReady(s.t.Context()))
}

// shows is a queueing discipline as tc shows it.
type shows struct {
	Kind, Handle, Dev string
	Root              bool
	Options           struct{ Rate int64 }
	Packets, Drops    int64
}

// qdiscs asks tc for all queues of the node.
func (s *stage) qdiscs() []shows {
	s.t.Helper()
	text, err := s.node.Run(context.Background(), "tc", "-s", "-j", "qdisc", "show")
	must(s.t, err)
	var all []shows
	must(s.t, json.Unmarshal([]byte(text), &all))
	return all
}

// rates counts our queues by their rates in bits per second.
func (s *stage) rates() map[int64]int {
	n := map[int64]int{}
	for _, q := range s.qdiscs() {
		if q.Handle == "5e1a:" {
			n[q.Options.Rate*8]++
		}
	}
	return n
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

// within tells whether a rate is near to what it should be.
func within(got, want, least, most float64) bool { return got >= least*want && got <= most*want }

func families() [2]policy.Family { return policy.Families }
