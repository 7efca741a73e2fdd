package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	eventsv1 "k8s.io/api/events/v1"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/informer/link/isolate"
)

// refusing is an API server that knows nobody's role, except to make Events and
// to ask for its version.
type refusing struct {
	*httptest.Server
	mu     sync.Mutex
	events []eventsv1.Event
	others []string // requests that are neither a list nor a watch
}

func newRefusing(t *testing.T) *refusing {
	r := new(refusing)
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		switch {
		case q.URL.Path == "/version":
			fmt.Fprint(w, `{"gitVersion": "v1.18.0"}`)
		case q.Method == http.MethodPost && q.URL.Path == "/apis/events.k8s.io/v1/namespaces/default/events":
			var e eventsv1.Event
			if err := json.NewDecoder(q.Body).Decode(&e); err != nil {
				t.Error(err)
			}
			r.events = append(r.events, e)
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, `{"kind": "Event", "apiVersion": "events.k8s.io/v1"}`)
		default:
			if q.Method != http.MethodGet || strings.Count(q.URL.Path, "/") > 4 {
				r.others = append(r.others, q.Method+" "+q.URL.Path)
			}
			resource := q.URL.Path[strings.LastIndex(q.URL.Path, "/")+1:]
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
				"message": "%s is forbidden: User \"system:serviceaccount:a:b\" cannot list resource \"%s\""}`, resource, resource)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// reasons are those of the Events that came.
func (r *refusing) reasons() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := make(map[string]int)
	for _, e := range r.events {
		n[e.Reason]++
	}
	return n
}

// kubeconfigOf writes a file that leads to an API server.
func kubeconfigOf(t *testing.T, server string) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "kubeconfig")
	config := fmt.Sprintf(`{"clusters": [{"name": "c", "cluster": {"server": %q}}], "contexts": [{"name": "c", "context": {"cluster": "c"}}], "current-context": "c"}`, server)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestNoRole runs the agent with an account that may do nothing but make Events.
func TestNoRole(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	world(t)
	isolate.Sh(t, "nft add table inet kindnet-network-policies")
	server := newRefusing(t)
	agent := []string{"agent", "--node-name=worker", "--kubeconfig=" + kubeconfigOf(t, server.URL)}
	first := startAgentWith(t, agent...)
	eventually(t, "not ready for the right reasons", func() bool {
		code, body, err := get("/readyz")
		return err == nil && code == http.StatusServiceUnavailable && strings.Count(body, "\n") == len(informer.Kinds) &&
			strings.Contains(body, `cannot list resource "networkpolicies": give its account the verbs list and watch`)
	})
	eventually(t, "told by Events", func() bool {
		got := server.reasons()
		return got["ObjectsRefused"] == len(informer.Kinds) && got["OldAPIServer"] == 1 && got["OtherPolicyEngine"] == 1
	})
	if line := fails(t, selvage(os.Args[0], append(agent, "--http-address=")...)); !strings.Contains(line, "runs already") {
		t.Errorf("second agent: %s", line)
	}
	if got := server.reasons(); got["SecondAgent"] != 1 || len(got) != 4 {
		t.Errorf("Events %v", got)
	}
	if err := first.end(t, os.Interrupt); err != nil {
		t.Errorf("ended with %v", err)
	}
	if got := strings.Count(first.log.String(), "condition has appeared"); got != len(informer.Kinds)+2 {
		t.Errorf("%d lines of conditions", got)
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	for _, e := range server.events {
		if e.Regarding.Kind != "Node" || e.Regarding.Name != "worker" || string(e.Regarding.UID) != "worker" {
			t.Errorf("an Event on %v", e.Regarding)
		}
	}
	if len(server.others) > 0 {
		t.Errorf("asked for more than the ClusterRole allows: %v", server.others)
	}
}

// TestNotEnforced runs the agent on a node with a pod of macvlan: it becomes
// unready after a while, and ready again when the pod is gone.
func TestNotEnforced(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	manifests := world(t)
	isolate.Sh(t, `ip link add uplink type veth peer name other; ip addr add 192.168.1.10/24 dev uplink; ip link set uplink up; ip link set other up
		ip netns add mac; ip link add eth0 link uplink netns mac type macvlan mode bridge
		ip -n mac addr add 192.168.1.50/24 dev eth0; ip -n mac link set eth0 up`)
	write(t, manifests, "mac.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: mac, namespace: shop}
spec: {nodeName: worker, containers: [{name: mac, image: mac}]}
status: {phase: Running, podIP: 192.168.1.50, podIPs: [{ip: 192.168.1.50}]}
`)
	a := startAgent(t, manifests)
	eventually(t, "ready at first", isReady)
	eventually(t, "not ready for the right reason", func() bool {
		code, body, err := get("/readyz")
		return err == nil && code == http.StatusServiceUnavailable && strings.Contains(body, "no policy is enforced for 1 pod of this node, for example shop/mac: ") &&
			strings.Contains(body, "by uplink (veth)")
	})
	expectMetrics(t, map[string]float64{"selvage_unenforceable_pods": 1, `selvage_conditions{reason="PodsNotEnforced"}`: 1, `selvage_conditions{reason="PodsOutsidePodCIDR"}`: 1})
	if err := os.Remove(filepath.Join(manifests, "mac.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ready again", isReady)
	expectMetrics(t, map[string]float64{"selvage_unenforceable_pods": 0})
	if err := a.end(t, os.Interrupt); err != nil {
		t.Errorf("ended with %v", err)
	}
	if got := strings.Count(a.log.String(), "condition is over"); got != 2 {
		t.Errorf("%d lines of conditions that are over", got)
	}
}
