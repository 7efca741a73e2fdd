package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// agentPod is the pod of an agent, and what comes of asking it through an API server.
type agentPod struct {
	node   string
	state  corev1.ContainerState
	phase  corev1.PodPhase
	going  bool // it is being deleted
	answer http.HandlerFunc
}

// says is an agent that answers each question with a text.
func says(code int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(code)
		fmt.Fprint(w, text)
	}
}

// serverSays is what the API server itself answers.
func serverSays(code int, reason metav1.StatusReason, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": %q, "code": %d, "message": %q}`, reason, code, message)
	}
}

// answersJSON is an agent that answers each question with a value.
func answersJSON(value any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, value) }
}

// clusterOf is an API server with agents, and with lists of objects. It returns a
// kubeconfig for it. With forbid it refuses to list what has a path.
func clusterOf(t *testing.T, pods []agentPod, items map[string]string, forbid ...string) (kubeconfig string) {
	t.Helper()
	mux := http.NewServeMux()
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	for i, p := range pods {
		pod := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "selvage-system", Name: fmt.Sprintf("selvage-%d", i)},
			Spec: corev1.PodSpec{NodeName: p.node, Containers: []corev1.Container{{
				Name: "agent", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 9470}},
			}}},
			Status: corev1.PodStatus{Phase: p.phase, ContainerStatuses: []corev1.ContainerStatus{{State: p.state}}},
		}
		if p.phase == "" {
			pod.Status.Phase = corev1.PodRunning
		}
		if p.going {
			pod.DeletionTimestamp = &metav1.Time{Time: time.Unix(1_700_000_000, 0)}
		}
		list.Items = append(list.Items, pod)
		if p.answer != nil {
			mux.Handle(fmt.Sprintf("GET /api/v1/namespaces/selvage-system/pods/http:selvage-%d:9470/proxy/", i), p.answer)
		}
	}
	data, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		of := r.URL.Query().Get("labelSelector")
		switch path := strings.TrimPrefix(r.URL.Path, "/namespaces/selvage-system"); {
		case strings.Contains(strings.Join(forbid, " "), path):
			serverSays(http.StatusForbidden, metav1.StatusReasonForbidden, "you may not "+path)(w, r)
		case items[path] != "" && of == "":
			fmt.Fprint(w, items[path])
		case of == "app.kubernetes.io/name=selvage,app.kubernetes.io/component=agent" && strings.HasSuffix(path, "/pods"):
			_, _ = w.Write(data)
		default:
			serverSays(http.StatusNotFound, metav1.StatusReasonNotFound, "no "+path)(w, r)
		}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return kubeconfigOf(t, s.URL)
}

// asks runs a command, which must not find anything to go by in the environment.
func asks(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBECONFIG", "")
	t.Setenv("HOME", t.TempDir())
	var out, err bytes.Buffer
	code = run("selvage", args, &out, &err)
	return code, out.String(), err.String()
}

// TestClusterAgents is what may come of asking the agents of all nodes.
func TestClusterAgents(t *testing.T) {
	waiting := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
	ended := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "OOMKilled"}}
	for _, tt := range []struct {
		name string
		pod  agentPod
		want string // part of the error; empty for none
	}{
		{"good", agentPod{answer: answersJSON(nodeStatus{Node: "a"})}, ""},
		{"loopback", agentPod{answer: serverSays(503, metav1.StatusReasonServiceUnavailable, "error trying to reach service: dial tcp 10.0.0.1:9470: connect: connection refused")},
			"listens at 127.0.0.1 only, where the API server does not reach it: have it listen at the node's address, too, by the overlay deploy/overlays/observe or the chart's values-observe.yaml"},
		{"no route", agentPod{answer: serverSays(503, metav1.StatusReasonServiceUnavailable, "error trying to reach service: dial tcp 10.0.0.1:9470: i/o timeout")},
			"the API server does not reach its agent, pod selvage-system/selvage-0: error trying to reach service: dial tcp 10.0.0.1:9470: i/o timeout"},
		{"forbidden", agentPod{answer: serverSays(403, metav1.StatusReasonForbidden, `pods "x" is forbidden`)},
			`you may not reach its agent through the API server: pods "x" is forbidden: use an account that has the verb get on pods/proxy in namespace selvage-system`},
		{"gone", agentPod{}, "its agent, pod selvage-system/selvage-0: no /api/v1/namespaces"},
		{"older", agentPod{answer: says(404, "404 page not found\n")}, "it knows no /status: it is no agent of Selvage, or an older one than this command"},
		{"busy", agentPod{answer: says(503, "too many\x1b[31m ask at once\n")}, "its agent says: too many\ufffd[31m ask at once"},
		{"silent", agentPod{answer: says(500, "")}, "its agent"},
		{"garbage", agentPod{answer: says(200, "<html>")}, "what it says of /status cannot be understood"},
		{"crashes", agentPod{state: waiting}, "its agent, pod selvage-system/selvage-0, does not run: CrashLoopBackOff: `kubectl -n selvage-system describe pod selvage-0` says more"},
		{"has crashed", agentPod{state: ended}, "does not run: OOMKilled"},
		{"pending", agentPod{phase: corev1.PodPending}, "does not run: it is Pending"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.pod.node = "a"
			flags := agentFlags{kube: kubeFlags{file: clusterOf(t, []agentPod{tt.pod}, nil)}}
			all, err := flags.find(t.Context())
			if err != nil || len(all) != 1 || all[0].node != "a" {
				t.Fatalf("%+v, %v", all, err)
			}
			got := ask[nodeStatus](t.Context(), all, "status", nil)
			switch err := got[0].err; {
			case tt.want == "" && (err != nil || got[0].value.Node != "a"):
				t.Errorf("%+v, %v", got[0].value, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// TestFindAgents sorts them, and leaves out those whose successors are there.
func TestFindAgents(t *testing.T) {
	waits := agentPod{phase: corev1.PodPending}
	flags := agentFlags{namespace: "selvage-system", kube: kubeFlags{file: clusterOf(t, []agentPod{{node: "c", going: true}, {node: "b"}, {node: "a", going: true}, {node: "a"}, waits}, nil)}}
	all, err := flags.find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nodes := ""
	for _, a := range all {
		nodes += a.node + " "
	}
	if nodes != " a b c " { // the one that waits is of no node yet
		t.Errorf("nodes %q", nodes)
	}

	for name, tt := range map[string]struct {
		pods   []agentPod
		forbid string
		want   string
	}{
		"none":      {nil, "", "no agent was found: no pod has the labels app.kubernetes.io/name=selvage"},
		"forbidden": {nil, "/api/v1/pods", "you may not list pods in all namespaces, to find the agents: you may not /api/v1/pods: use an account that may, or give --selvage-namespace"},
	} {
		flags := agentFlags{kube: kubeFlags{file: clusterOf(t, tt.pods, nil, tt.forbid)}}
		if tt.forbid == "" {
			flags.kube.file = clusterOf(t, tt.pods, nil)
		}
		if _, err := flags.find(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// TestMeantFor finds the node of a DaemonSet's pod that has no place yet.
func TestMeantFor(t *testing.T) {
	p := &corev1.Pod{Spec: corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
			{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"a"}}}},
		}},
	}}}}
	if got := nodeOf(p); got != "a" {
		t.Errorf("%q", got)
	}
	if got := nodeOf(&corev1.Pod{}); got != "" {
		t.Errorf("%q", got)
	}
	p.Status = corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{Status: corev1.ConditionFalse, Message: "0/3 nodes\nare available"}}}
	if got := notRunning(p); got != "0/3 nodes are available" {
		t.Errorf("%q", got)
	}
}

// TestAskTimeout gives up an agent that hangs.
func TestAskTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := agentAt{node: "a", open: (&oneAgent{base: mustAgent(t, "http://agent:9470").base, client: &http.Client{Transport: hanging{}}}).open}
		began := time.Now()
		got := ask[nodeStatus](t.Context(), []agentAt{hangs}, "status", nil)
		if err := got[0].err; err == nil || err.Error() != "the agent at agent:9470 does not answer" || time.Since(began) != askTimeout {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// hanging is a transport on which nothing comes back.
type hanging struct{}

func (hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func mustAgent(t *testing.T, address string) *oneAgent {
	t.Helper()
	a, err := newOneAgent(address)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestAgentAddress is what --agent may be.
func TestAgentAddress(t *testing.T) {
	for address, want := range map[string]string{
		"http://10.0.0.1:9470": "http://10.0.0.1:9470/status", "10.0.0.1:9470": "http://10.0.0.1:9470/status",
		"https://node/selvage/": "https://node/selvage/status", "[fd00::1]:9470": "http://[fd00::1]:9470/status",
		"ftp://node": "", "": "", "http://": "", "http://a b": "",
	} {
		a, err := newOneAgent(address)
		if (err != nil) != (want == "") || err == nil && a.base.JoinPath("status").String() != want {
			t.Errorf("%q: %v, %v", address, a, err)
		}
	}
}

// TestChooseAgents asks this node's agent if there is one and no flag says otherwise.
func TestChooseAgents(t *testing.T) {
	s := httptest.NewServer(answersJSON(nodeStatus{Node: "here"}))
	defer s.Close()
	here := strings.TrimPrefix(s.URL, "http://")
	if err := mustAgent(t, here).answers(t.Context()); err != nil {
		t.Error(err)
	}
	s.Close()
	if err := mustAgent(t, here).answers(t.Context()); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("%v", err)
	}
	kubeconfig := clusterOf(t, nil, nil)
	for name, tt := range map[string]struct {
		flags   agentFlags
		one     bool
		cluster bool
	}{
		"named":      {agentFlags{address: here, all: true}, true, false},
		"kubeconfig": {agentFlags{kube: kubeFlags{file: kubeconfig}}, false, true},
		"all":        {agentFlags{all: true, kube: kubeFlags{file: kubeconfig}}, false, true},
	} {
		one, cluster, err := tt.flags.choose(context.Background())
		if err != nil || (one != nil) != tt.one || (cluster != nil) != tt.cluster {
			t.Errorf("%s: %v, %v, %v", name, one, cluster, err)
		}
	}
}
