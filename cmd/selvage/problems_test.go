package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/client-go/rest"

	"github.com/selvage-net/selvage/policy"
)

func TestProblems(t *testing.T) {
	var log strings.Builder
	var events []string
	p := problems{log: slog.New(slog.NewTextHandler(&log, nil)),
		event: func(p policy.Problem) { events = append(events, p.Name) }}
	a1 := policy.Problem{Namespace: "ns", Name: "a", Err: errors.New("first")}
	a2 := policy.Problem{Namespace: "ns", Name: "a", Err: errors.New("second")}
	b := policy.Problem{Namespace: "ns", Name: "b", Err: errors.New("third")}
	for i, step := range []struct {
		now    []policy.Problem
		count  int
		log    []string // parts of the lines, in any order
		events string
	}{
		{nil, 0, nil, ""},
		{[]policy.Problem{a1, b}, 2, []string{"first", "third"}, "ab"},
		{[]policy.Problem{b, a1}, 2, nil, ""},
		{[]policy.Problem{a2, b, a1}, 2, []string{`"first; second"`}, "a"},
		{[]policy.Problem{a1, a2, a1, b}, 2, nil, ""},
		{[]policy.Problem{b}, 1, []string{"ns/a"}, ""},
		{nil, 0, []string{"ns/b"}, ""},
	} {
		log.Reset()
		events = nil
		if n := p.set(step.now); n != step.count {
			t.Errorf("step %d: %d policies, want %d", i, n, step.count)
		}
		if got := strings.Count(log.String(), "\n"); got != len(step.log) {
			t.Errorf("step %d: logged %d lines, want %d:\n%s", i, got, len(step.log), log.String())
		}
		for _, want := range step.log {
			if !strings.Contains(log.String(), want) {
				t.Errorf("step %d: %q is not in the log:\n%s", i, want, log.String())
			}
		}
		if len(events) != len(step.events) || len(events) == 1 && events[0] != step.events {
			t.Errorf("step %d: events on %q, want %q", i, events, step.events)
		}
	}
}

// TestEvent has an API server get the Event.
func TestEvent(t *testing.T) {
	got := make(chan eventsv1.Event, 3)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var e eventsv1.Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil || r.Method != http.MethodPost || r.URL.Path != "/apis/events.k8s.io/v1/namespaces/ns/events" {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		if err := json.NewEncoder(w).Encode(e); err != nil {
			t.Error(err)
		}
		got <- e
	}))
	defer server.Close()
	r, err := newRecorder(&rest.Config{Host: server.URL}, "worker", slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	r.limit = rate.NewLimiter(0, 1)
	for range 3 { // of which two are too many
		r.send(policyNotice(policy.Problem{Namespace: "ns", Name: "a", UID: "1-2-3", Err: errors.New("no such port")}))
	}
	e := <-got
	want := corev1.ObjectReference{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: "ns", Name: "a", UID: "1-2-3"}
	if e.Regarding != want || e.Type != corev1.EventTypeWarning || e.Reason != "NotCompiled" || e.ReportingController != "selvage.dev/agent" ||
		!strings.HasPrefix(e.Note, "no such port; ") {
		t.Errorf("%+v", e)
	}
	server.Close() // waits for requests that go on
	if len(got) > 0 {
		t.Errorf("%d more Events than the limit", len(got))
	}
}

// TestEventFits keeps to what the API's validation allows.
func TestEventFits(t *testing.T) {
	now := time.Unix(1_800_000_000, 5)
	e := newEvent(policyNotice(policy.Problem{Namespace: "ns", Name: strings.Repeat("n", 200), Err: errors.New(strings.Repeat("x", 3000))}), "worker", now)
	if len(e.Note) != maxNote || !strings.HasSuffix(e.Note, "x...") {
		t.Errorf("note of %d bytes", len(e.Note))
	}
	if len(e.Name) > 253 || e.EventTime.IsZero() || e.ReportingInstance != "worker" || e.Action == "" {
		t.Errorf("%+v", e)
	}
}
