package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/policy"
)

// shopService leads to web.
const shopService = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{port: 8080, targetPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: none, namespace: shop}
spec: {clusterIP: None, selector: {app: none}, ports: [{port: 53, protocol: UDP}]}
`

// twins are two pods of one name.
const twins = `
apiVersion: v1
kind: Pod
metadata: {name: twin, namespace: shop}
spec: {nodeName: worker}
status: {phase: Running, podIPs: [{ip: 10.244.1.8}]}
---
apiVersion: v1
kind: Pod
metadata: {name: twin, namespace: db}
spec: {nodeName: worker}
status: {phase: Running, podIPs: [{ip: 10.244.1.9}]}
`

// kernelSays is an agent of a node, whose rules give all connections one verdict.
func kernelSays(node string, allowed bool) http.HandlerFunc {
	return answersJSON(kernelAnswer{
		Node: node, Allowed: allowed, Verdict: "drop", Hook: "forward", Path: []kernelStep{{"forward", "jump ingress"}, {"ingress", "goto \x1b[31mdeny"}},
	})
}

// TestExplainManifests explains what manifests say, and what cannot be understood.
func TestExplainManifests(t *testing.T) {
	dir, broken := t.TempDir(), t.TempDir()
	write(t, dir, "cluster.yaml", cluster)
	write(t, dir, "services.yaml", shopService+"---\n"+twins+"---\nkind: [")
	write(t, dir, "notes.txt", "kind: Service")
	good := t.TempDir()
	write(t, good, "cluster.yaml", cluster+"---"+shopService+"---"+twins)
	write(t, broken, "cluster.yaml", "kind: NetworkPolicy\n\tx: [")
	agent := httptest.NewServer(kernelSays("worker", true))
	defer agent.Close()
	other := httptest.NewServer(kernelSays("other", true))
	defer other.Close()
	for _, tt := range []struct {
		name   string
		args   []string
		code   int
		stdout []string
		stderr []string
	}{
		{"allowed", []string{"shop/db", "web", "80"}, 0, []string{"allowed\nfrom shop/db (10.244.1.3, on worker) to shop/web", "allowed by web ingress[0]"}, nil},
		{"denied", []string{"db", "web", "81"}, 1, []string{"denied by ingress policies of shop: web\n"}, nil},
		{"a Service", []string{"db", "svc/shop/web", "8080"}, 0, []string{"for the Service shop/web", "80/TCP"}, nil},
		{"its address", []string{"db", "10.96.0.10", "8080/TCP"}, 0, []string{"for the Service shop/web"}, nil},
		{"by namespace", []string{"-n=db", "twin", "shop/web", "80"}, 1, []string{"from db/twin"}, nil},
		{"the kernel agrees", []string{"--agent=" + agent.URL, "db", "web", "80"}, 0, []string{"kernel of node worker: allows, as it should\n"}, nil},
		{"the kernel disagrees", []string{"--agent=" + agent.URL, "db", "web", "81"}, 2, []string{"denied by ingress", "kernel of node worker: disagrees: it allows: these rules matched; ", "  forward: jump ingress\n  ingress: goto \ufffd[31mdeny\n"}, nil},
		{"another node's agent", []string{"--agent=" + other.URL, "db", "web", "80"}, 2, []string{"kernel of node worker: cannot be asked: --agent leads to the agent of other\n"}, nil},
		{"no agent", []string{"--agent=127.0.0.1:1", "db", "web", "80"}, 2, []string{"kernel of node worker: cannot be asked: no agent answers at 127.0.0.1:1: "}, nil},
		{"JSON", []string{"-o=json", "--agent=" + agent.URL, "db", "web", "80"}, 0, []string{`"outcome": "allowed"`, `"certain": true`, `"agrees": true`, `"should": "allowed"`, `"chain": "forward"`}, nil},
		{"unknown pod", []string{"db", "we", "80"}, 2, nil, []string{"there is no pod we in any namespace; there is: shop/web"}},
		{"unknown namespace", []string{"db", "x/web", "80"}, 2, nil, []string{"there is no pod web in x"}},
		{"ambiguous", []string{"twin", "web", "80"}, 2, nil, []string{`there are several with the name "twin": say which: db/twin, shop/twin`}},
		{"no pods", []string{"db", "svc/none", "53/UDP"}, 2, nil, []string{"the Service shop/none leads to no pods"}},
		{"no port", []string{"db", "svc/web", "80"}, 2, nil, []string{"the Service shop/web has no port 80: 8080/TCP"}},
		{"no such port", []string{"db", "web", "0"}, 2, nil, []string{`the port in "0" is none from 1 to 65535`}},
		{"no protocol", []string{"db", "web", "80/IPX"}, 2, nil, []string{`the protocol in "80/IPX"`}},
		{"unclear", []string{"db", "fd00::1", "80"}, 2, []string{"cannot tell: the ends have no address of the same family"}, nil},
		{"too few", []string{"db", "web"}, 2, nil, []string{"accepts 3 arg(s), received 2"}},
		{"flags", []string{"--kubeconfig=x", "--no-kernel", "--agent=ftp://x", "--pod-to-node=x", "-o=table", "a", "b", "80"}, 2, nil, []string{
			`"table" is none of text, json and yaml`, "--agent: ", "--manifests and --kubeconfig exclude each other", "--no-kernel and --agent exclude each other", "pod to node"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := asks(t, append([]string{"explain", "--manifests=" + good}, tt.args...)...)
			expectSaid(t, code, tt.code, stdout, tt.stdout, stderr, tt.stderr)
		})
	}
	code, stdout, stderr := asks(t, "explain", "--manifests="+broken, "a", "b", "80")
	expectSaid(t, code, 2, stdout, nil, stderr, []string{"cluster.yaml: document 1"})
	code, stdout, stderr = asks(t, "explain", "--manifests="+dir+"/none", "a", "b", "80")
	expectSaid(t, code, 2, stdout, nil, stderr, []string{"--manifests: stat"})
}

// apiShop are two pods on two nodes, one of them isolated.
func apiShop() map[string]string {
	return map[string]string{
		"/api/v1/namespaces": `{"kind": "NamespaceList", "apiVersion": "v1", "items": [{"metadata": {"name": "shop"}}]}`,
		"/api/v1/nodes":      `{"kind": "NodeList", "apiVersion": "v1", "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]}`,
		"/api/v1/pods": `{"kind": "PodList", "apiVersion": "v1", "items": [
			{"metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}}, "spec": {"nodeName": "b"}, "status": {"phase": "Running", "podIPs": [{"ip": "10.244.2.2"}]}},
			{"metadata": {"name": "db", "namespace": "shop"}, "spec": {"nodeName": "a"}, "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.3"}]}}]}`,
		"/apis/networking.k8s.io/v1/networkpolicies": `{"kind": "NetworkPolicyList", "apiVersion": "networking.k8s.io/v1", "items": [
			{"metadata": {"name": "web", "namespace": "shop"}, "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": 80}]}]}}]}`,
		"/api/v1/services": `{"kind": "ServiceList", "apiVersion": "v1", "items": [{"metadata": {"name": "web", "namespace": "shop"},
			"spec": {"clusterIPs": ["10.96.0.10"], "selector": {"app": "web"}, "ports": [{"port": 8080, "targetPort": 80, "protocol": "TCP"}]}}]}`,
	}
}

// TestExplainCluster reads the objects of a cluster, and asks the nodes in question.
func TestExplainCluster(t *testing.T) {
	asked := make(chan string, 100)
	kernel := func(node string, allowed bool) agentPod {
		return agentPod{node: node, answer: func(w http.ResponseWriter, r *http.Request) {
			asked <- node + " " + r.URL.Query().Encode()
			kernelSays(node, allowed)(w, r)
		}}
	}
	bystander := agentPod{node: "c", answer: func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked node c: %s", r.URL) }}
	hidden := agentPod{node: "b", answer: serverSays(503, "ServiceUnavailable", "connection refused")}
	for _, tt := range []struct {
		name   string
		pods   []agentPod
		forbid string
		args   []string
		code   int
		stdout []string
		stderr []string
	}{
		{"both agree", []agentPod{kernel("a", true), kernel("b", true), bystander}, "", []string{"db", "web", "80"}, 0,
			[]string{"allowed\n", "kernel of node a: allows, as it should\nkernel of node b: allows, as it should\n"}, nil},
		{"denied at one", []agentPod{kernel("a", true), kernel("b", false), bystander}, "", []string{"db", "svc/web", "8080/UDP"}, 2, nil, []string{"has no port 8080/UDP: 8080/TCP"}},
		{"by a Service", []agentPod{kernel("a", true), kernel("b", true), bystander}, "", []string{"db", "svc/web", "8080"}, 0, []string{"kernel of node b: allows, as it should"}, nil},
		{"denied", []agentPod{kernel("a", true), kernel("b", false), bystander}, "", []string{"db", "web", "443"}, 1, []string{"kernel of node b: denies, as it should"}, nil},
		{"a node does not answer", []agentPod{kernel("a", true), hidden}, "", []string{"db", "web", "80"}, 2, []string{"kernel of node b: cannot be asked: its agent, pod selvage-system/selvage-1, listens at 127.0.0.1 only"}, nil},
		{"a node has no agent", []agentPod{kernel("a", true)}, "", []string{"db", "web", "80"}, 2, []string{"kernel of node b: cannot be asked: no agent was found on this node"}, nil},
		{"no agents", nil, "", []string{"db", "web", "80"}, 2, []string{"kernel of node a: cannot be asked: no agent was found: "}, nil},
		{"not to be asked", []agentPod{bystander}, "", []string{"--no-kernel", "db", "web", "80"}, 0, []string{"allowed\n"}, nil},
		{"may not list", nil, "/apis/networking.k8s.io/v1/networkpolicies", []string{"db", "web", "80"}, 2, nil, []string{"you may not list networkpolicies: "}},
		{"may not list Services", nil, "/api/v1/services", []string{"db", "svc/web", "80"}, 2, nil, []string{"you may not list services: "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var forbid []string
			if tt.forbid != "" {
				forbid = append(forbid, tt.forbid)
			}
			code, stdout, stderr := asks(t, append([]string{"explain", "--kubeconfig=" + clusterOf(t, tt.pods, apiShop(), forbid...)}, tt.args...)...)
			expectSaid(t, code, tt.code, stdout, tt.stdout, stderr, tt.stderr)
		})
	}
	if got := <-asked; got != "a from=10.244.1.3&port=80&protocol=6&to=10.244.2.2" && got != "b from=10.244.1.3&port=80&protocol=6&to=10.244.2.2" {
		t.Errorf("asked %q", got)
	}
	code, stdout, stderr := asks(t, "explain", "a", "b", "80")
	expectSaid(t, code, 2, stdout, nil, stderr, []string{"no source of objects: give --kubeconfig or --manifests"})
}

// TestExplainJSON keeps the names that programs rely on.
func TestExplainJSON(t *testing.T) {
	r := newExplainReport([]policy.Explanation{{Outcome: policy.OutcomeUnclear, Summary: "cannot tell"}})
	data, err := json.Marshal(r)
	if want := `{"outcome":"unclear","certain":true,"explanations":[{"outcome":"unclear","summary":"cannot tell",`; err != nil || !strings.HasPrefix(string(data), want) {
		t.Errorf("%s, %v", data, err)
	}
}

// TestLoadServices reads each kind of file, and skips what it does not understand.
func TestLoadServices(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "more"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a.yml", shopService)
	write(t, dir, "more/b.json", `{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b", "namespace": "x"}, "spec": {"clusterIPs": ["::ffff:10.96.0.1", "fd00::1"], "ports": [{"port": 1, "protocol": "SCTP"}]}}`)
	write(t, dir, "c.yaml", "kind: [\n---\n"+strings.ReplaceAll(shopService, "name: ", "name: again-"))
	write(t, dir, "d.txt", shopService)
	write(t, dir, "e.json", `{"apiVersion": "v1", "kind": "Service"`)
	all, err := loadServices(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := ""
	for _, s := range all {
		names += s.Namespace + "/" + s.Name + " "
	}
	if names != "shop/web shop/none shop/again-web shop/again-none x/b " {
		t.Errorf("Services %q", names)
	}
	last := all[len(all)-1]
	if len(last.ClusterIPs) != 2 || last.ClusterIPs[0].String() != "10.96.0.1" || last.Ports[0].Protocol != policy.SCTP {
		t.Errorf("%+v", last)
	}
}
