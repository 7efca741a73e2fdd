package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/informer/link/isolate"
)

// lists is an API server that has some lists, and answers with 404 or another code for
// all else.
func lists(t *testing.T, code int, items map[string]string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.Method != http.MethodGet || r.URL.Query().Has("watch") {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		if list, ok := items[r.URL.Path]; ok {
			fmt.Fprint(w, list)
			return
		}
		reason := map[int]string{http.StatusNotFound: "NotFound", http.StatusForbidden: "Forbidden", http.StatusUnauthorized: "Unauthorized"}[code]
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": %q, "code": %d, "message": "no %s for you"}`, reason, code, r.URL.Path)
	}))
	t.Cleanup(s.Close)
	return kubeconfigOf(t, s.URL)
}

// apiObjects are the lists of a small cluster.
func apiObjects() map[string]string {
	return map[string]string{
		"/api/v1/nodes": `{"kind": "NodeList", "apiVersion": "v1", "items": [{"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}}]}`,
		"/api/v1/pods": `{"kind": "PodList", "apiVersion": "v1", "items": [{"metadata": {"name": "web", "namespace": "shop"}, "spec": {"nodeName": "n1"},
			"status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.7"}]}}]}`,
	}
}

const apiPools = `{"kind": "IPPoolList", "apiVersion": "selvage.dev/v1alpha1", "items": [{"metadata": {"name": "pods"}, "spec": {"cidrs": ["10.244.0.0/16"]}}]}`

// TestPoolsCommand reads from everywhere that it can.
func TestPoolsCommand(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("HOME", t.TempDir())
	without := apiObjects()
	with := apiObjects()
	with["/apis/selvage.dev/v1alpha1/ippools"] = apiPools
	with["/apis/networking.k8s.io/v1/servicecidrs"] = `{"kind": "ServiceCIDRList", "apiVersion": "networking.k8s.io/v1", "items": [{"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12"]}}]}`
	manifests, broken := t.TempDir(), t.TempDir()
	write(t, manifests, "cluster.yaml", cluster)
	write(t, manifests, "pool.yaml", strings.ReplaceAll(aPool, "RATE", "10M"))
	write(t, broken, "cluster.yaml", cluster)
	write(t, broken, "wrong.yaml", strings.ReplaceAll(aPool, "RATE", "10Mbit"))
	for _, tt := range []struct {
		name       string
		kubeconfig string // in the environment
		args       []string
		code       int
		stdout     []string // parts
		stderr     []string // parts, one per line
	}{
		{"nothing", "", nil, 1, nil, []string{"no source of objects: give --kubeconfig or --manifests, set $KUBECONFIG"}},
		{"manifests", "", []string{"--manifests=" + manifests}, 0, []string{"pods   selvage   InForce   yes   zone=a   10M       <none>   IPv4     65536      2"}, nil},
		{"services", "", []string{"--manifests=" + manifests, "--service-cidrs=10.244.9.0/24"}, 0, []string{"NotInForce", "PoolHoldsServices"}, nil},
		{"a mistake", "", []string{"--manifests=" + broken, "-o=json"}, 1, []string{`"implicit": `}, []string{"wrong.yaml: document 1"}},
		{"no directory", "", []string{"--manifests=" + broken + "/none"}, 1, nil, []string{"--manifests: stat"}},
		{"without the CRD", "", []string{"--kubeconfig=" + lists(t, http.StatusNotFound, without)}, 0, []string{"There are no IPPools: the podCIDRs", "n1     10.244.1.0/24"}, nil},
		{"with pools", "", []string{"--kubeconfig=" + lists(t, http.StatusNotFound, with), "-o", "yaml"}, 0, []string{"implicit: false\n", "allocated: 1\n", "problems: []\n"}, nil},
		{"as kubectl", lists(t, http.StatusNotFound, with), nil, 0, []string{"pods   selvage   InForce"}, nil},
		{"as kubectl, no file", "/nonexistent", nil, 1, nil, []string{"no source of objects"}},
		{"nothing allowed", "", []string{"--kubeconfig=" + lists(t, http.StatusForbidden, nil)}, 1, nil, []string{
			"you may not list nodes: no /api/v1/nodes for you: use an account that may", "you may not list pods: ", "you may not list ippools.selvage.dev: ",
			"you may not list ippools.crd.projectcalico.org: ", "you may not list servicecidrs: ",
		}},
		{"unknown", "", []string{"--kubeconfig=" + lists(t, http.StatusUnauthorized, nil)}, 1, nil, []string{"the API server does not know you: no /api/v1/nodes for you: see to the user in the kubeconfig"}},
		{"flags", "", []string{"--manifests=" + manifests, "--kubeconfig=x", "-o=wide"}, 1, nil, []string{"exclude each other", `"wide" is none of table, json and yaml`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", tt.kubeconfig)
			var stdout, stderr bytes.Buffer
			if code := run("selvage", append([]string{"pools"}, tt.args...), &stdout, &stderr); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, want := range tt.stdout {
				if !strings.Contains(stdout.String(), want) {
					t.Errorf("%q is not in\n%s", want, stdout.String())
				}
			}
			lines := strings.Split(strings.TrimSuffix(stderr.String(), "\n"), "\n")
			if stderr.Len() == 0 {
				lines = nil
			}
			if len(lines) != len(tt.stderr) || tt.stdout == nil && stdout.Len() > 0 {
				t.Fatalf("it says\n%s%s", stdout.String(), stderr.String())
			}
			for i, want := range tt.stderr {
				if !strings.HasPrefix(lines[i], "selvage: ") || !strings.Contains(lines[i], want) {
					t.Errorf("line %d: %q, want %q", i, lines[i], want)
				}
			}
		})
	}
}

// TestPoolsUnprivileged runs it as nobody.
func TestPoolsUnprivileged(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	manifests := "/run/netns/manifests" // /tmp is closed to others
	if err := os.Mkdir(manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, manifests, "cluster.yaml", cluster)
	out, err := readable(t)("pools", "--manifests="+manifests, "-o=json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var r poolReport
	if err := json.Unmarshal(out, &r); err != nil || !r.Implicit || len(r.Pools) != 1 || r.Pools[0].Addresses[0].Allocated != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestCompilePools shows the chain that pools lead to, and says what is wrong with them.
func TestCompilePools(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "cluster.yaml", strings.ReplaceAll(poolsWorld, "ZONE", "a"))
	write(t, dir, "pool.yaml", strings.ReplaceAll(aPool, "RATE", "10M"))
	compiled := func(args ...string) (int, string, string) {
		var stdout, stderr bytes.Buffer
		code := run("selvage", append([]string{"compile", "--node-name=worker", "--manifests=" + dir}, args...), &stdout, &stderr)
		return code, stdout.String(), stderr.String()
	}
	code, out, said := compiled("--no-masquerade-cidrs=203.0.113.0/24,198.51.100.0/24", "--service-cidrs=10.96.0.0/12")
	if code != 0 || said != "" {
		t.Errorf("%d, %s", code, said)
	}
	for _, want := range []string{"masquerade fully-random", "10.244.0.0/16", "203.0.113.0/24", "198.51.100.0/24", "10.96.0.0/12"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	code, out, said = compiled("--service-cidrs=10.244.9.0/24")
	if code != 1 || strings.Contains(out, "masquerade fully-random") || !strings.HasPrefix(said, "selvage: IPPool pods: 10.244.0.0/16 overlaps 10.244.9.0/24") || strings.Count(said, "\n") != 1 {
		t.Errorf("%d, %s%s", code, said, out)
	}
}
