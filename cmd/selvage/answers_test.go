package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/informer/link/isolate"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nft"
)

// podsOf attaches the pods of cluster to cni0.
func podsOf(t *testing.T) {
	t.Helper()
	isolate.Sh(t, `for pod in web:2 db:3; do
			name=${pod%:*} addr=10.244.1.${pod#*:}
			ip netns add $name; ip link add veth-$name type veth peer name eth0 netns $name; ip link set veth-$name master cni0 up
			ip -n $name addr add $addr/24 dev eth0; ip -n $name link set eth0 up
		done`)
}

// connect has a pod open a connection. That nobody listens does not matter: it is
// refused at once, or denied and waited for.
func connect(t *testing.T, pod, to string) {
	t.Helper()
	isolate.Sh(t, "ip netns exec "+pod+" timeout 1 bash -c '</dev/tcp/"+to+"' 2>&1 || true")
}

// TestAnswers asks an agent, by all commands, what it does in the kernel.
func TestAnswers(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	manifests := world(t)
	podsOf(t)
	startAgentWith(t, "agent", "--node-name=worker", "--manifests="+manifests, "--http-address=127.0.0.1:9470,::1:9470", "--page")
	eventually(t, "ready", isReady)
	connect(t, "db", "10.244.1.2/80")
	connect(t, "db", "10.244.1.2/81")
	isolate.Sh(t, "ip -n db neigh add 10.244.1.9 lladdr 02:00:00:00:00:09 nud permanent dev eth0")
	connect(t, "db", "10.244.1.9/81") // which no pod has

	code, stdout, stderr := asks(t, "status")
	row := regexp.MustCompile(`shop +web +1 +1/1 +\d+s +1 +[1-9]\d* *\n`)
	if code != 0 || stderr != "" || !strings.Contains(stdout, "worker   yes") || !row.MatchString(stdout) {
		t.Errorf("status: %d\n%s%s", code, stdout, stderr)
	}
	_, body, err := get("/status")
	var s nodeStatus
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	if err != nil || s.Counts.AllowedConnections != (directed{Ingress: 1}) || s.Counts.DeniedPackets.Ingress == 0 || s.Counts.UnknownPackets == 0 || s.Bandwidth.Enabled != true || len(s.Policies) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	eventually(t, "seen", func() bool {
		code, stdout, _ := asks(t, "drops", "--direction=ingress", "-o=json")
		return code == 0 && strings.Contains(stdout, `"source":{"namespace":"shop","pod":"db","address":"10.244.1.3"},"destination":{"namespace":"shop","pod":"web"`)
	})

	explain := func(want int, text string, args ...string) {
		t.Helper()
		code, stdout, stderr := asks(t, append([]string{"explain", "--manifests=" + manifests, "--agent=" + address}, args...)...)
		if code != want || !strings.Contains(stdout, text) || stderr != "" {
			t.Errorf("explain %q: %d, want %d and %q\n%s%s", args, code, want, text, stdout, stderr)
		}
	}
	explain(0, "kernel of node worker: allows, as it should", "db", "web", "80")
	explain(1, "kernel of node worker: denies, as it should", "db", "web", "81")
	explain(1, "kernel of node worker: denies, as it should", "db", "10.244.1.9", "81")
	explain(0, "kernel of node worker: allows, as it should", "web", "web", "81")
	isolate.Sh(t, "nft insert rule ip selvage forward accept")
	explain(2, "kernel of node worker: disagrees: it allows: these rules matched; `selvage status` tells whether the node is in sync\n  forward: accept\n", "db", "web", "81")
	testServed(t)
}

// testServed is who answers where.
func testServed(t *testing.T) {
	t.Helper()
	for path, want := range map[string]int{"/": 200, "/status": 200, "/drops": 200, "/explain": 400, "/nothing": 404, "/status/": 404, "/page.html": 404} {
		if code, _, err := get(path); err != nil || code != want {
			t.Errorf("%s: %d, %v; want %d", path, code, err, want)
		}
	}
	client := http.Client{Timeout: time.Minute}
	response, err := client.Get("http://[::1]:9470/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("%s by IPv6", response.Status)
	}
}

// judged asks what rules make of a flow.
func judged(t *testing.T, k *kernelRules, query string) kernelAnswer {
	t.Helper()
	w := httptest.NewRecorder()
	k.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/explain?"+query, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%s: %d %s", query, w.Code, w.Body)
	}
	var a kernelAnswer
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestKernelRules reads rules when they have changed, and knows who passes none.
func TestKernelRules(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, "ip addr add 192.0.2.1/24 dev lo")
	k := newKernelRules("worker")
	const flow = "from=10.244.1.3&to=10.244.1.2&port=81"
	if a := judged(t, k, flow); !a.Allowed || a.Hook != "" || a.Remark != "there are no rules in the kernel" || a.Node != "worker" {
		t.Errorf("without rules: %+v", a)
	}
	cfg := policy.DefaultConfig("worker")
	enforce := func() {
		conn, err := nft.Open(nft.Options{})
		if err != nil {
			t.Fatal(err)
		}
		e := nft.NewEnforcer(nft.EnforcerOptions{Conn: conn, Config: cfg})
		if _, err := e.Sync(t.Context(), deltasOf(t, cluster)); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	enforce()
	if a := judged(t, k, flow); a.Allowed || a.Verdict != "drop" || a.Hook != "forward" || len(a.Path) < 3 || a.Path[0].Chain != "forward" {
		t.Errorf("denied: %+v", a)
	}
	before := k.tracer
	for query, want := range map[string]string{
		"from=10.244.1.3&to=10.244.1.2&port=80":             "accept forward ",
		"from=10.244.1.3&to=10.244.1.2&port=80&protocol=17": "drop forward ",
		"from=8.8.8.8&to=10.244.1.2&protocol=sctp&port=80":  "drop forward ",
		"from=10.244.1.2&to=8.8.8.8&protocol=1":             "accept forward ",
		"from=192.0.2.1&to=10.244.1.2&port=81":              "accept  what a node itself sends passes no rule",
		"from=10.244.1.2&to=192.0.2.1&port=81":              "accept  what pods send to their own node passes no rule",
		"from=fd00::1&to=fd00::2&port=1&protocol=UDP":       "accept forward ",
	} {
		if a := judged(t, k, query); a.Verdict+" "+a.Hook+" "+a.Remark != want {
			t.Errorf("%s: %+v, want %s", query, a, want)
		}
	}
	if k.tracer != before {
		t.Error("rules that have not changed were read again")
	}
	cfg.DenyAction, cfg.PodToNode = policy.DenyReject, policy.PodToNodePolicy
	enforce()
	if a := judged(t, k, flow); a.Allowed || a.Verdict != "reject" || k.tracer == before {
		t.Errorf("rejected: %+v", a)
	}
	if a := judged(t, k, "from=10.244.1.2&to=192.0.2.1&port=81"); !a.Allowed || a.Hook != "input" {
		t.Errorf("to the node: %+v", a)
	}
	k.keep = time.Millisecond
	isolate.Sh(t, "nft add table ip others") // what is read is kept as long as nothing changes
	judged(t, k, flow)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		k.turn <- struct{}{}
		forgotten := k.tracer == nil
		<-k.turn
		if forgotten {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the rules are kept for ever")
		}
	}
}

// TestKernelFlow is what can be asked.
func TestKernelFlow(t *testing.T) {
	k := newKernelRules("worker")
	for query, want := range map[string]string{
		"":                                    `from: "" is no address`,
		"from=10.0.0.1":                       `to: "" is no address`,
		"from=10.0.0.1&to=x":                  `to: "x" is no address`,
		"from=10.0.0.1&to=::1":                "not of the same family",
		"from=::1&to=::2&protocol=IPX":        `protocol: "IPX" is none of`,
		"from=::1&to=::2&protocol=256":        `protocol: "256" is none of`,
		"from=::1&to=::2&port=http":           `port: "http" is no port`,
		"from=::1&to=::2&port=65536&protocol": `port: "65536" is no port`,
	} {
		w := httptest.NewRecorder()
		k.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/explain?"+query, nil))
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s, want %s", query, w.Code, w.Body, want)
		}
	}
	f, err := parseKernelFlow(func(name string) string {
		return map[string]string{"from": "::ffff:10.0.0.1", "to": "10.0.0.2", "protocol": "udp", "port": "53"}[name]
	})
	if err != nil || f.from.String() != "10.0.0.1" || f.protocol != policy.UDP || f.port != 53 {
		t.Errorf("%+v, %v", f, err)
	}
}

// deltasOf are the objects in manifests.
func deltasOf(t *testing.T, yaml string) []policy.Delta {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "cluster.yaml", yaml)
	s, err := informer.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	var deltas []policy.Delta
	for _, o := range s.Nodes {
		deltas = append(deltas, policy.Delta{Object: o})
	}
	for _, o := range s.Pods {
		deltas = append(deltas, policy.Delta{Object: o})
	}
	for _, o := range s.Policies {
		deltas = append(deltas, policy.Delta{Object: o})
	}
	return deltas
}
