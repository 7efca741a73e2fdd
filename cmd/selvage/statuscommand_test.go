package main

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// statusAt is a node that is in sync.
func statusAt(node string, policies ...policyStatus) nodeStatus {
	now := time.Unix(1_800_000_000, 0)
	return nodeStatus{
		Node: node, Version: "v1", Time: now, Since: now.Add(-3 * time.Hour), InSync: true, Missing: []string{},
		Objects: objectCounts{LocalPods: 12, Policies: 3}, Bandwidth: bandwidthStatus{Enabled: true, Shaped: 2}, Policies: policies,
	}
}

// policyAt is a policy of which so much is known at a node.
func policyAt(name, version string, pods int, age time.Duration, allowed, denied uint64) policyStatus {
	return policyStatus{
		Namespace: "shop", Name: name, Pods: pods, InForce: true, Since: time.Unix(1_800_000_000, 0).Add(-age), ResourceVersion: version,
		verdictCounts: verdictCounts{directed{Ingress: allowed}, directed{Egress: denied}},
	}
}

// mixedStatus are nodes that differ: what a and b have in common, what is wrong on b, c
// that is behind, and d that does not answer.
func mixedStatus() []answer[nodeStatus] {
	a := statusAt("a", policyAt("web", "7", 3, time.Hour, 10, 2), policyAt("unused", "8", 1, 2*time.Hour, 0, 0))
	b := statusAt("b", policyAt("web", "7", 1, 5*time.Minute, 5, 0))
	c := statusAt("c", policyAt("web", "6", 1, 48*time.Hour, 1, 0))
	for _, s := range []*nodeStatus{&a, &b} {
		s.Source = []sourceStatus{
			{Kind: "pods", Error: "the source of objects does not answer: see that it runs"},
			{Kind: "nodes", Error: "the source of objects does not answer: see that it runs"},
		}
		s.Pools.Problems = []poolProblem{{"web", "selvage", reasonPoolOverlap, "it overlaps"}}
	}
	b.InSync, b.Missing = false, []string{"bridge cni0 is not covered", "calico is there"}
	b.Conditions = []conditionStatus{{Reason: reasonOtherEngine, Message: "calico is there"}, {Reason: reasonOldServer, Message: "the API server is old"}}
	b.Bandwidth = bandwidthStatus{Problems: []bandwidthProblem{{"shop", "web-0", "NoInterface", "no interface"}, {"shop", "", "InvalidBandwidth", "fast\x1b[31m"}}}
	c.Invalid = []invalidPolicy{{"shop", "wrong", "no such port"}}
	c.CountsError, c.Bandwidth.Error, c.DropsError = "no permission", "no netlink", "no nflog"
	return []answer[nodeStatus]{{value: a}, {node: "b", value: b}, {node: "c", value: c}, {node: "d", err: errors.New("its agent listens at 127.0.0.1 only")}}
}

func statusReportOf(answers []answer[nodeStatus], desired desiredPolicies, namespace string) *statusReport {
	r := newStatusReport(answers)
	r.addPolicies(desired, namespace)
	r.judge()
	return &r
}

// desiredAt are policies of the namespace shop, with their versions.
func desiredAt(versions map[string]string) desiredPolicies {
	d := desiredPolicies{}
	for name, version := range versions {
		d[types.NamespacedName{Namespace: "shop", Name: name}] = version
	}
	return d
}

// TestStatusReport compares with testdata what people and programs get to see.
func TestStatusReport(t *testing.T) {
	desired := desiredAt(map[string]string{"web": "7", "unused": "8", "nobody": "9"})
	for file, r := range map[string]*statusReport{
		"status.table":      statusReportOf(mixedStatus(), desired, ""),
		"statusreport.json": statusReportOf(mixedStatus(), desired, ""),
		"status.yaml":       statusReportOf(mixedStatus()[:1], nil, "shop"),
		"statusone.table":   statusReportOf(mixedStatus()[:1], nil, "shop"),
	} {
		var got bytes.Buffer
		if err := writeReport(&got, filepath.Ext(file)[1:], r, r.writeTable); err != nil {
			t.Fatal(err)
		}
		golden(t, file, got.String())
		if err := writeReport(broken{}, filepath.Ext(file)[1:], r, r.writeTable); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestStatusState judges all nodes and policies together.
func TestStatusState(t *testing.T) {
	good := statusAt("a", policyAt("web", "7", 3, time.Hour, 10, 2))
	out := good
	out.InSync = false
	coming := policyAt("web", "7", 3, time.Hour, 0, 0)
	coming.InForce = false
	silent := answer[nodeStatus]{node: "b", err: errors.New("silent")}
	for _, tt := range []struct {
		name    string
		answers []answer[nodeStatus]
		desired desiredPolicies
		want    syncState
	}{
		{"good", []answer[nodeStatus]{{value: good}}, nil, stateInSync},
		{"a node is not", []answer[nodeStatus]{{value: good}, {value: out}}, nil, stateNotInSync},
		{"a node is silent", []answer[nodeStatus]{{value: good}, silent}, nil, stateUnknown},
		{"one is silent, one is not", []answer[nodeStatus]{silent, {value: out}}, nil, stateNotInSync},
		{"nobody", nil, nil, stateUnknown},
		{"a policy is coming", []answer[nodeStatus]{{value: statusAt("a", coming)}}, nil, stateNotInSync},
		{"a policy is old", []answer[nodeStatus]{{value: good}}, desiredAt(map[string]string{"web": "10"}), stateNotInSync},
		{"the agent knows a newer one", []answer[nodeStatus]{{value: good}}, desiredAt(map[string]string{"web": "6"}), stateInSync},
		{"versions that have no order", []answer[nodeStatus]{{value: good}}, desiredAt(map[string]string{"web": "x"}), stateNotInSync},
		{"a policy that the agent does not need", []answer[nodeStatus]{{value: good}}, desiredAt(map[string]string{"web": "7", "other": "9"}), stateInSync},
	} {
		if got := statusReportOf(tt.answers, tt.desired, "").State; got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

const apiPolicies = `{"kind": "NetworkPolicyList", "apiVersion": "networking.k8s.io/v1", "items": [
	{"metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7"}, "spec": {"podSelector": {}}},
	{"metadata": {"name": "nobody", "namespace": "shop", "resourceVersion": "9"}, "spec": {"podSelector": {"matchLabels": {"app": "none"}}}}]}`

// TestStatusCommand is what may come of asking, and the exit codes.
func TestStatusCommand(t *testing.T) {
	policies := map[string]string{"/apis/networking.k8s.io/v1/networkpolicies": apiPolicies}
	good := agentPod{node: "a", answer: answersJSON(statusAt("a", policyAt("web", "7", 3, time.Hour, 10, 2)))}
	notInSync := statusAt("b")
	notInSync.InSync, notInSync.Missing = false, []string{"cni0 is not covered"}
	asking := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("policies") != "all" {
			t.Errorf("asked for %s", r.URL)
		}
		answersJSON(statusAt("a"))(w, r)
	}
	for _, tt := range []struct {
		name       string
		kubeconfig string
		args       []string
		code       int
		stdout     []string // parts
		stderr     []string // parts, one per line
	}{
		{"all in sync", clusterOf(t, []agentPod{good}, policies), nil, 0, []string{"a      yes    3h", "shop        web      3      1/1      60m       10        2", "nobody   0      <none>   <none>    0         0        selects no pod"}, nil},
		{"another namespace", clusterOf(t, []agentPod{good}, policies), []string{"-n=db"}, 0, []string{"a      yes"}, nil},
		{"not in sync", clusterOf(t, []agentPod{good, {node: "b", answer: answersJSON(notInSync)}}, policies), nil, 1, []string{"b      no ", "Problems:\n  b: not in sync: cni0 is not covered\n"}, nil},
		{"a node does not answer", clusterOf(t, []agentPod{good, {node: "b", answer: says(404, "404 page not found")}}, policies), nil, 2, []string{"b      ?      ?", "b: it knows no /status"}, nil},
		{"policies are secret", clusterOf(t, []agentPod{{node: "a", answer: asking}}, nil, "/apis/networking.k8s.io/v1/networkpolicies"), []string{"-o=json"}, 0, []string{`"state": "InSync"`},
			[]string{"policies are shown as the agents know them: you may not list networkpolicies: "}},
		{"no agents", clusterOf(t, nil, policies), nil, 2, nil, []string{"no agent was found"}},
		{"not allowed", clusterOf(t, nil, policies, "/api/v1/pods"), nil, 2, nil, []string{"you may not list pods in all namespaces"}},
		{"no such kubeconfig", "/nonexistent", nil, 2, nil, []string{"--kubeconfig: stat /nonexistent"}},
		{"no such context", clusterOf(t, nil, policies), []string{"--context=x"}, 2, nil, []string{`--kubeconfig: context "x" does not exist`}},
		{"nobody at an address", "", []string{"--agent=127.0.0.1:1"}, 2, []string{"?: no agent answers at 127.0.0.1:1: connect: connection refused\n"}, nil},
		{"no address", "", []string{"--agent=ftp://x", "-o=wide"}, 2, nil, []string{`"wide" is none of table, json and yaml`, `--agent: "ftp://x" is no URL`}},
		{"arguments", "", []string{"web"}, 2, nil, []string{`unknown command "web" for "selvage status"`}},
		{"flags", "", []string{"--fast"}, 2, nil, []string{"unknown flag: --fast"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"status"}, tt.args...)
			if tt.kubeconfig != "" {
				args = append(args, "--kubeconfig="+tt.kubeconfig)
			}
			code, stdout, stderr := asks(t, args...)
			expectSaid(t, code, tt.code, stdout, tt.stdout, stderr, tt.stderr)
		})
	}
}

// expectSaid compares what a command has said with parts of it, one for each line of
// stderr.
func expectSaid(t *testing.T, code, wantCode int, stdout string, wantOut []string, stderr string, wantErr []string) {
	t.Helper()
	for _, want := range wantOut {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is not in\n%s", want, stdout)
		}
	}
	var lines []string
	if stderr != "" {
		lines = strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	}
	if code != wantCode || len(lines) != len(wantErr) || wantOut == nil && stdout != "" {
		t.Fatalf("exit code %d, want %d; it says\n%s%s", code, wantCode, stdout, stderr)
	}
	for i, want := range wantErr {
		if !strings.HasPrefix(lines[i], "selvage: ") || !strings.Contains(lines[i], want) {
			t.Errorf("line %d: %q, want %q", i, lines[i], want)
		}
	}
}

// TestPlugin is what kubectl runs as `kubectl selvage`.
func TestPlugin(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want []string
		not  string
	}{
		{[]string{"--help"}, 0, []string{"kubectl selvage [command]", "status", "explain", "drops", "pools"}, "agent "},
		{[]string{"status", "--help"}, 0, []string{"kubectl selvage status [flags]", "(default true)", "--context"}, "--insecure"},
		{[]string{"explain", "--help"}, 0, []string{"kubectl selvage explain FROM TO PORT[/PROTOCOL]", "  kubectl selvage explain shop/web-0"}, "\n  selvage explain"},
		{[]string{"cleanup"}, 1, nil, ""},
	} {
		var stdout, stderr bytes.Buffer
		code := run("kubectl-selvage", tt.args, &stdout, &stderr)
		if code != tt.code || tt.not != "" && strings.Contains(stdout.String(), tt.not) {
			t.Errorf("%q: %d\n%s%s", tt.args, code, stdout.String(), stderr.String())
		}
		for _, want := range tt.want {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("%q: no %q in\n%s", tt.args, want, stdout.String())
			}
		}
	}
}
