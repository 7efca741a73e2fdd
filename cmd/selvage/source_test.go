package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/selvage-net/selvage/informer"
)

func trouble(kind informer.Kind, cause informer.Cause, err error) *informer.Trouble {
	return &informer.Trouble{Kind: kind, Cause: cause, Err: err}
}

func forbidden(resource string) error {
	return apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", errors.New("no role"))
}

// TestMissingObjects has readiness say what keeps the first objects from coming.
func TestMissingObjects(t *testing.T) {
	a, _, _ := newTestAgent()
	refused := &url.Error{Op: "Get", URL: "https://api", Err: errors.New("connection refused")}
	for i, step := range []struct {
		do   func()
		want []string
	}{
		{func() {}, []string{"have not all come yet"}},
		{func() {
			for _, kind := range informer.Kinds {
				a.source.trouble(kind, trouble(kind, informer.Unanswered, refused))
			}
		}, []string{"does not answer: connection refused"}},
		{func() {
			for _, kind := range informer.Kinds {
				a.source.trouble(kind, nil)
			}
			a.source.trouble(informer.Pods, trouble(informer.Pods, informer.Forbidden, forbidden("pods")))
			a.source.trouble(informer.NetworkPolicies, trouble(informer.NetworkPolicies, informer.Forbidden, forbidden("networkpolicies")))
		}, []string{"list and watch pods: ", "list and watch networkpolicies of networking.k8s.io/v1: "}},
		{func() { a.source.trouble(informer.Pods, nil) }, []string{"list and watch networkpolicies"}},
	} {
		step.do()
		lines := strings.Split(a.ready().Error(), "\n")
		if len(lines) != len(step.want) {
			t.Fatalf("step %d: %q, want %q", i, lines, step.want)
		}
		for j, want := range step.want {
			if !strings.Contains(lines[j], want) {
				t.Errorf("step %d: %q, want %q", i, lines[j], want)
			}
		}
	}
	if err := a.sync(t.Context(), initial(nodeWith("10.1.0.0/24"))); err != nil {
		t.Fatal(err)
	}
	if err := a.ready(); err != nil {
		t.Errorf("after the first sync: %v", err)
	}
}

// TestRefusal is told of when it lasts, once, and goes on through an outage.
func TestRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, _ := newTestAgent()
		var events []condition
		a.conditions.event = func(c condition) { events = append(events, c) }
		s := a.source
		s.trouble(informer.Pods, trouble(informer.Pods, informer.Forbidden, forbidden("pods")))
		time.Sleep(refusalLasts / 2)
		s.trouble(informer.Pods, nil)
		time.Sleep(2 * refusalLasts)
		if len(events) != 0 || messages(a) != "" {
			t.Errorf("told of what did not last: %v", events)
		}
		for range 3 {
			s.trouble(informer.Pods, trouble(informer.Pods, informer.Forbidden, forbidden("pods")))
			time.Sleep(2 * refusalLasts)
			s.trouble(informer.Pods, trouble(informer.Pods, informer.Unanswered, errors.New("connection refused")))
		}
		if len(events) != 1 || !strings.Contains(events[0].message, "no role") || !strings.Contains(events[0].message, "ClusterRole") {
			t.Errorf("told %d times: %v", len(events), events)
		}
		s.trouble(informer.Pods, nil)
		if got := messages(a); got != "" {
			t.Errorf("not over: %s", got)
		}
	})
}

// TestVersion asks once, when the server answers, and tells what it lacks.
func TestVersion(t *testing.T) {
	for version, want := range map[string]string{"v1.36.3": "", "v1.20.15": "upgrade it to 1.22", "": ""} {
		asked := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked++
			if r.URL.Path != "/version" || version == "" {
				http.NotFound(w, r)
				return
			}
			if err := json.NewEncoder(w).Encode(map[string]string{"gitVersion": version}); err != nil {
				t.Error(err)
			}
		}))
		a, _, _ := newTestAgent()
		var log strings.Builder
		done := make(chan struct{})
		go func() {
			a.source.askVersion(t.Context(), &rest.Config{Host: server.URL}, slog.New(slog.NewTextHandler(&log, nil)))
			close(done)
		}()
		a.source.trouble(informer.Pods, trouble(informer.Pods, informer.Unanswered, errors.New("connection refused")))
		a.source.trouble(informer.Pods, trouble(informer.Pods, informer.Unauthenticated, errors.New("who are you")))
		for range 2 {
			a.source.trouble(informer.Pods, nil)
		}
		<-done
		server.Close()
		if asked != 1 {
			t.Errorf("%s: asked %d times", version, asked)
		}
		if got := messages(a); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", version, got, want)
		}
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, version) || (version == "") != strings.Contains(got, "cannot tell which version") {
			t.Errorf("%s: logged %q", version, got)
		}
		if err := a.conditions.unready(); err != nil {
			t.Errorf("%s: not ready: %v", version, err)
		}
	}
}

// TestNodeEvent is an Event as the kubelet makes it, so that `kubectl describe
// node` shows it.
func TestNodeEvent(t *testing.T) {
	e := newEvent(nodeNotice("worker", reasonNoPodCIDR, "the node has no podCIDRs"), "worker", time.Unix(1_800_000_000, 0))
	want := corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: "worker", UID: "worker"}
	if e.Regarding != want || e.Namespace != "default" || e.Reason != "NoPodCIDR" || e.Action == "" || e.Note != "the node has no podCIDRs" {
		t.Errorf("%+v", e)
	}
}

// TestCannotMakeEvents says so once, until one could be made.
func TestCannotMakeEvents(t *testing.T) {
	refused := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if refused {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.WriteHeader(http.StatusCreated)
		if _, err := w.Write([]byte(`{"kind": "Event", "apiVersion": "events.k8s.io/v1"}`)); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	var log strings.Builder
	r, err := newRecorder(&rest.Config{Host: server.URL}, "worker", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		refused bool
		lines   int
	}{{false, 0}, {true, 1}, {true, 1}, {false, 1}, {true, 2}} {
		refused = step.refused
		r.deliver(t.Context(), nodeNotice("worker", reasonNoPodCIDR, "x"))
		if got := strings.Count(log.String(), "cannot make Events"); got != step.lines {
			t.Errorf("step %d: %d lines, want %d:\n%s", i, got, step.lines, log.String())
		}
	}
}
