package informer

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

// troubles notes what Observe is told.
type troubles struct {
	mu   sync.Mutex
	now  map[Kind]*Trouble
	last map[Kind]*Trouble
	over map[Kind]int
}

func (o *troubles) observe(kind Kind, t *Trouble) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.now == nil {
		o.now, o.last, o.over = map[Kind]*Trouble{}, map[Kind]*Trouble{}, map[Kind]int{}
	}
	o.now[kind] = t
	if t == nil {
		o.over[kind]++
	} else {
		o.last[kind] = t
	}
}

// ever returns the last trouble with a kind, or nil if there was none.
func (o *troubles) ever(kind Kind) *Trouble {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last[kind]
}

func (o *troubles) of(kind Kind) *Trouble {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.now[kind]
}

func (o *troubles) is(kind Kind, cause Cause) bool {
	t := o.of(kind)
	return t != nil && t.Cause == cause
}

var policies = schema.GroupResource{Group: "networking.k8s.io", Resource: "networkpolicies"}

// TestTroubles has the API server refuse one kind of objects in all the ways that
// somebody has to do something about, from the start and later on.
func TestTroubles(t *testing.T) {
	for _, tt := range []struct {
		name    string
		refusal *apierrors.StatusError
		cause   Cause
		text    []string
	}{
		{"forbidden", apierrors.NewForbidden(policies, "", errors.New(`User "system:serviceaccount:a:b" cannot list`)), Forbidden,
			[]string{"list and watch networkpolicies of networking.k8s.io/v1", `User "system:serviceaccount:a:b" cannot list`, "ClusterRole"}},
		{"unauthorized", apierrors.NewUnauthorized("who are you"), Unauthenticated,
			[]string{"credentials", "networkpolicies of networking.k8s.io/v1", "who are you", "token is mounted"}},
		{"not served", apierrors.NewNotFound(policies, ""), NotServed,
			[]string{"this API server does not serve networkpolicies of networking.k8s.io/v1", "--runtime-config"}},
		{"garbled", nil, Undecodable,
			[]string{"networkpolicies of networking.k8s.io/v1 cannot be decoded", "kubectl version"}},
		{"broken", apierrors.NewInternalError(errors.New("no luck")), Unanswered,
			[]string{"does not answer", "no luck", "reaches it"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // most of the time is client-go's pauses
			server := newAPIServer(t, protobuf)
			server.put(apiPod("a", "10.1.0.1"), apiPolicy("p", 1))
			server.answerKind(NetworkPolicies, tt.refusal, tt.refusal == nil)
			source, err := Kubernetes(server.config())
			if err != nil {
				t.Fatal(err)
			}
			log, seen := &lines{}, &troubles{}
			s := newSink(t)
			inf := New(Options{Source: source, Logger: log.logger(), Observe: Observe{Trouble: seen.observe}})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- inf.Run(ctx, s.sink) }()
			told := func() {
				t.Helper()
				eventually(t, "the trouble is told", func() bool { return seen.is(NetworkPolicies, tt.cause) })
				trouble := seen.of(NetworkPolicies)
				if strings.Contains(trouble.Error(), "\n") {
					t.Errorf("%q is more than a line", trouble)
				}
				for _, want := range tt.text {
					if !strings.Contains(trouble.Error(), want) {
						t.Errorf("%q is not in %q", want, trouble)
					}
				}
				if other := seen.of(Pods); other != nil && other.Cause != Unanswered { // the cut is one
					t.Errorf("the other kinds have troubles, too: %v", other)
				}
			}
			told()
			if s.calls() != 0 || inf.Connected() {
				t.Errorf("connected = %t, %d batches, although not all may be read", inf.Connected(), s.calls())
			}
			server.answerKind(NetworkPolicies, nil, false)
			eventually(t, "the initial batch came", func() bool { return s.calls() == 1 })
			eventually(t, "it is over", func() bool { return seen.of(NetworkPolicies) == nil && inf.Connected() })

			server.answerKind(NetworkPolicies, tt.refusal, tt.refusal == nil)
			server.cut()
			told()
			server.answerKind(NetworkPolicies, nil, false)
			eventually(t, "it is over again", func() bool { return seen.of(NetworkPolicies) == nil && inf.Connected() })
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
			if got := log.with("does not answer"); len(got) > 3 { // the cut, and twice what is broken or looks like it
				t.Errorf("logged %d outages:\n%s", len(got), strings.Join(got, "\n"))
			}
		})
	}
}

// TestUnreachable says the same of all kinds, so that it can be said once.
func TestUnreachable(t *testing.T) {
	server := newAPIServer(t, protobuf)
	server.stop()
	source, err := Kubernetes(server.config())
	if err != nil {
		t.Fatal(err)
	}
	seen := &troubles{}
	inf := New(Options{Source: source, Observe: Observe{Trouble: seen.observe}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- inf.Run(ctx, newSink(t).sink) }()
	eventually(t, "all troubles are told", func() bool {
		for _, kind := range Kinds {
			if seen.of(kind) == nil {
				return false
			}
		}
		return true
	})
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if one, other := seen.of(Pods).Error(), seen.of(Nodes).Error(); one != other || !strings.Contains(one, "connection refused") {
		t.Errorf("%q, and %q", one, other)
	}
}

func TestServerVersion(t *testing.T) {
	server := newAPIServer(t, asJSON)
	if _, err := ServerVersion(t.Context(), server.config()); err == nil {
		t.Error("no error without an answer")
	}
	server.version = "v1.31.2+k3s1"
	got, err := ServerVersion(t.Context(), &rest.Config{Host: server.config().Host})
	if err != nil || got != "v1.31.2+k3s1" {
		t.Errorf("%q, %v", got, err)
	}
	if r := server.seen(); r[len(r)-1].userAgent != UserAgent {
		t.Errorf("user agent %q", r[len(r)-1].userAgent)
	}
}

func TestMissing(t *testing.T) {
	for version, want := range map[string]int{
		"v1.36.3": 0, "v1.22.0": 0, "v1.22.17-eks-1234": 0, "v1.30.1+k0s": 0, "v1.21.9": 1, "v1.20.4+k3s1": 2, "v1.18.0": 3, "": 0, "nonsense": 0,
	} {
		missing := Missing(version)
		if got := len(strings.Split(missing, "; ")); got != max(want, 1) || (missing == "") != (want == 0) {
			t.Errorf("%s lacks %q, want %d things", version, missing, want)
		}
	}
}
