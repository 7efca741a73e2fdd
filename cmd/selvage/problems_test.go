package main

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/time/rate"
	"k8s.io/client-go/tools/events"

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

func TestEvents(t *testing.T) {
	r := events.NewFakeRecorder(10)
	event := eventFunc(r, rate.NewLimiter(0, 2))
	for range 5 {
		event(policy.Problem{Namespace: "ns", Name: "a", UID: "1", Err: errors.New("100% wrong")})
	}
	close(r.Events)
	var got []string
	for e := range r.Events {
		got = append(got, e)
	}
	if len(got) != 2 || !strings.HasPrefix(got[0], "Warning NotCompiled 100% wrong; ") {
		t.Errorf("%d events past a limit of 2: %q", len(got), got)
	}
}
