package informer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/selvage-net/selvage/policy"
)

const (
	protobuf = runtime.ContentTypeProtobuf
	asJSON   = runtime.ContentTypeJSON
)

// sinkLog is a sink that keeps the state that it was told.
type sinkLog struct {
	t  *testing.T
	mu sync.Mutex
	// state holds "Kind namespace/name" and what is known of the object.
	state   map[string]string
	batches int
	initial []string
	deltas  []string
}

func newSink(t *testing.T) *sinkLog { return &sinkLog{t: t, state: map[string]string{}} }

// line renders an object as policy sees it.
func line(o policy.Object) (key, value string) {
	switch o := o.(type) {
	case *policy.Pod:
		return "Pod " + o.Namespace + "/" + o.Name, fmt.Sprint(o.Node, o.Labels, o.Addrs, o.Ports, o.HostNetwork, o.Finished)
	case *policy.Namespace:
		return "Namespace " + o.Name, fmt.Sprint(o.Labels)
	case *policy.Node:
		return "Node " + o.Name, fmt.Sprint(o.PodCIDRs, o.Addrs, o.Labels)
	case *policy.Pool:
		return "IPPool " + o.Origin.String() + "/" + o.Name, fmt.Sprint(o.CIDRs, o.NATOutgoing, o.Err)
	case *policy.ServiceCIDR:
		return "ServiceCIDR " + o.Name, fmt.Sprint(o.CIDRs)
	case *networkingv1.NetworkPolicy:
		return "NetworkPolicy " + o.Namespace + "/" + o.Name, fmt.Sprint(o.Spec.PodSelector.MatchLabels, len(o.Spec.Ingress), o.Spec.PolicyTypes)
	}
	return fmt.Sprintf("%T", o), ""
}

func (s *sinkLog) sink(_ context.Context, b Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(b.Deltas) != len(b.Received) {
		s.t.Errorf("%d deltas, but %d times", len(b.Deltas), len(b.Received))
	}
	if b.Initial != (s.batches == 0) {
		s.t.Errorf("batch %d: initial = %t", s.batches, b.Initial)
	}
	s.batches++
	for i, d := range b.Deltas {
		if b.Received[i].IsZero() {
			s.t.Error("a delta without a time")
		}
		key, value := line(d.Object)
		if d.Deleted {
			delete(s.state, key)
			s.deltas = append(s.deltas, "-"+key)
			continue
		}
		s.state[key] = value
		s.deltas = append(s.deltas, "+"+key)
	}
	if b.Initial {
		s.initial, s.deltas = s.deltas, nil
		slices.Sort(s.initial)
	}
	return nil
}

// seen returns the deltas since the initial batch.
func (s *sinkLog) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.deltas)
}

func (s *sinkLog) get(key string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.state[key]
	return v, ok
}

func (s *sinkLog) calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.batches
}

// eventually waits until ok, however long it takes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 6000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("it never came to be that %s", what)
}

// has waits until an object is known, with a value that contains text.
func (s *sinkLog) has(key, text string) {
	s.t.Helper()
	eventually(s.t, key+" has "+text, func() bool {
		v, ok := s.get(key)
		return ok && strings.Contains(v, text)
	})
}

// lacks waits until an object is not known.
func (s *sinkLog) lacks(key string) {
	s.t.Helper()
	eventually(s.t, key+" is gone", func() bool {
		_, ok := s.get(key)
		return !ok
	})
}

// run runs an Informer until the end of the test, and waits for the initial
// batch.
func run(t *testing.T, o Options) (*Informer, *sinkLog) {
	t.Helper()
	inf := New(o)
	return inf, start(t, inf)
}

// start is run for an Informer that there is already.
func start(t *testing.T, inf *Informer) *sinkLog {
	t.Helper()
	s := newSink(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- inf.Run(ctx, s.sink) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	eventually(t, "the initial batch came", func() bool { return s.calls() > 0 })
	return s
}

func apiPod(name, addr string, labels ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, UID: "1"}}
	p.Status.PodIP = addr
	p.Labels = map[string]string{}
	for i := 0; i < len(labels); i += 2 {
		p.Labels[labels[i]] = labels[i+1]
	}
	return p
}

func apiPolicy(name string, rules int) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name}}
	np.Spec.Ingress = make([]networkingv1.NetworkPolicyIngressRule, rules)
	return np
}

func TestKubernetes(t *testing.T) {
	tests := []struct {
		name      string
		mediaType string
		noStream  bool
	}{
		{"stream of protobuf", protobuf, false},
		{"stream of JSON", asJSON, false},
		{"list of protobuf", protobuf, true},
		{"list of JSON", asJSON, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := newAPIServer(t, tt.mediaType)
			server.noStream = tt.noStream
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
			node.Spec.PodCIDRs = []string{"10.1.0.0/24"}
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "x", Labels: map[string]string{"team": "red"}}}
			server.put(ns, node, apiPod("a", "10.1.0.1", "app", "web"), apiPod("b", "10.1.0.2"), apiPolicy("p", 1))

			source, err := Kubernetes(server.config())
			if err != nil {
				t.Fatal(err)
			}
			inf, sink := run(t, Options{Source: source})
			want := []string{"+Namespace x", "+NetworkPolicy x/p", "+Node n1", "+Pod x/a", "+Pod x/b"}
			if diff := cmp.Diff(want, sink.initial); diff != "" {
				t.Errorf("initial batch (-want +got):\n%s", diff)
			}
			eventually(t, "the source is connected", inf.Connected)
			if inf.LastContact().IsZero() {
				t.Error("connected, but never heard of")
			}

			server.put(apiPod("c", "10.1.0.3"), apiPolicy("p", 2))
			sink.has("Pod x/c", "10.1.0.3")
			sink.has("NetworkPolicy x/p", "2")
			// What policy does not look at makes no delta.
			same := apiPod("c", "10.1.0.3")
			same.Status.Message = "still here"
			same.Annotations = map[string]string{"a": "b"}
			server.put(same)
			server.remove(apiPod("a", ""))
			sink.lacks("Pod x/a")
			server.put(apiPod("c", "10.1.0.4"))
			sink.has("Pod x/c", "10.1.0.4")
			n := 0
			for _, d := range sink.seen() {
				if d == "+Pod x/c" {
					n++
				}
			}
			if n != 2 {
				t.Errorf("%d deltas for a pod that came and then changed once: %v", n, sink.seen())
			}
			checkRequests(t, server, tt.noStream)
		})
	}
}

// accepts returns what a client is to accept: CRs have no protobuf.
func accepts(path string) string {
	if strings.HasSuffix(path, "/ippools") {
		return asJSON
	}
	return protobuf + "," + asJSON
}

// checkRequests looks at what the client asked for.
func checkRequests(t *testing.T, server *apiServer, noStream bool) {
	t.Helper()
	streams, lists := map[string]bool{}, map[string]bool{}
	for _, r := range server.seen() {
		if r.userAgent != "selvage" {
			t.Errorf("user agent = %q", r.userAgent)
		}
		if want := accepts(r.path); r.accept != want {
			t.Errorf("%s: accept = %q, want %q", r.path, r.accept, want)
		}
		if strings.HasSuffix(r.path, "/pods") && r.query.Get("fieldSelector") != "status.phase!=Succeeded,status.phase!=Failed" {
			t.Errorf("field selector of pods = %q", r.query.Get("fieldSelector"))
		}
		switch {
		case r.query.Get("watch") == "":
			lists[r.path] = true
		case r.query.Get("sendInitialEvents") == "true":
			streams[r.path] = true
		}
		if r.query.Get("watch") != "" && r.query.Get("allowWatchBookmarks") != "true" {
			t.Errorf("a watch without bookmarks: %s?%s", r.path, r.query.Encode())
		}
	}
	for _, kind := range Kinds {
		optional := kindInfo[kind].optional
		if path := pathOf(kind); streams[path] == optional || lists[path] != (optional || noStream) {
			t.Errorf("%s: stream %t, list %t", kind, streams[path], lists[path])
		}
	}
}

func TestOutage(t *testing.T) {
	server := newAPIServer(t, protobuf)
	server.put(apiPod("a", "10.1.0.1"), apiPod("b", "10.1.0.2"))
	source, err := Kubernetes(server.config())
	if err != nil {
		t.Fatal(err)
	}
	log := &lines{}
	var mu sync.Mutex
	state := map[Kind]bool{}
	inf, sink := run(t, Options{Source: source, Logger: log.logger(), Observe: Observe{
		Connected: func(kind Kind, connected bool) {
			mu.Lock()
			defer mu.Unlock()
			state[kind] = connected
		},
	}})
	all := func(want bool) bool {
		mu.Lock()
		defer mu.Unlock()
		for _, kind := range Kinds {
			if v, ok := state[kind]; !ok || v != want {
				return false
			}
		}
		return true
	}
	eventually(t, "the source is connected", func() bool { return inf.Connected() && all(true) })

	server.stop()
	eventually(t, "the outage is noticed", func() bool { return !inf.Connected() && all(false) })
	if _, ok := sink.get("Pod x/a"); !ok || sink.calls() != 1 {
		t.Errorf("an outage made %d batches", sink.calls()-1)
	}
	// What changes meanwhile is seen afterwards.
	server.remove(apiPod("a", ""))
	server.put(apiPod("c", "10.1.0.3"))
	server.start()
	sink.has("Pod x/c", "10.1.0.3")
	sink.lacks("Pod x/a")
	eventually(t, "the end of the outage is noticed", func() bool { return inf.Connected() && all(true) })
	if got := log.with("does not answer"); len(got) != 1 {
		t.Errorf("outage logged %d times:\n%s", len(got), strings.Join(got, "\n"))
	}
	if got := log.with("answers again"); len(got) != 1 {
		t.Errorf("end of the outage logged %d times:\n%s", len(got), strings.Join(got, "\n"))
	}
}

func TestHistoryLost(t *testing.T) {
	for _, noStream := range []bool{false, true} {
		t.Run(fmt.Sprintf("noStream=%t", noStream), func(t *testing.T) {
			server := newAPIServer(t, protobuf)
			server.noStream = noStream
			server.put(apiPod("a", "10.1.0.1"), apiPod("b", "10.1.0.2"))
			source, err := Kubernetes(server.config())
			if err != nil {
				t.Fatal(err)
			}
			log := &lines{}
			_, sink := run(t, Options{Source: source, Logger: log.logger()})
			// More happens between two watches than the server remembers.
			server.answer(apierrors.NewResourceExpired("too old resource version"))
			asked := len(server.seen())
			server.cut()
			eventually(t, "a request was refused", func() bool { return len(server.seen()) > asked })
			server.remove(apiPod("a", ""))
			for n := range keptEvents + 1 {
				server.put(apiPod("c", fmt.Sprintf("10.1.%d.%d", n/256, n%256)))
			}
			server.answer(nil)
			sink.has("Pod x/c", "10.1.4.0")
			sink.lacks("Pod x/a")
			if _, ok := sink.get("Pod x/b"); !ok {
				t.Error("a pod that stayed is gone")
			}
			if got := log.with("does not answer"); len(got) != 0 {
				t.Errorf("a routine error was logged: %s", strings.Join(got, "\n"))
			}
		})
	}
}

// silent is a source that never answers.
type silent struct{}

func (silent) Run(context.Context) error { return nil }

func (silent) ListerWatcher(kind Kind) cache.ListerWatcher {
	if kind != Pods && kind != NetworkPolicies {
		return newCollection(kind)
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		WatchFuncWithContext: func(ctx context.Context, _ metav1.ListOptions) (watch.Interface, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}
}

func TestSaysWhatItWaitsFor(t *testing.T) {
	clk := clocktesting.NewFakeClock(epoch)
	log := &lines{}
	inf := New(Options{Source: silent{}, Logger: log.logger(), Clock: clk})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- inf.Run(ctx, func(context.Context, Batch) error {
			t.Error("the sink was called")
			return nil
		})
	}()
	eventually(t, "a line says what is missing", func() bool {
		clk.Step(stillWaiting)
		lines := log.with("still waiting")
		return len(lines) > 0 && strings.Contains(lines[len(lines)-1], `kinds="pods, networkpolicies"`)
	})
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}
