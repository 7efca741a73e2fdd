package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/traffic"
	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/shaping"
)

func TestAnnotationsAreWhatTheAgentReads(t *testing.T) {
	c := &cluster{dir: t.TempDir()}
	if err := c.write(clusterManifests()...); err != nil {
		t.Fatal(err)
	}
	for _, rate := range []shaping.Rate{0, 10_000_000, 100_000_000} {
		if err := c.annotate(rate); err != nil {
			t.Fatal(err)
		}
		s, err := informer.Load(c.dir)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(s.Pods, func(p *policy.Pod) bool { return p.Name == shaped })
		if i < 0 {
			t.Fatalf("%s is not in the cluster", shaped)
		}
		pod := shaping.Pod{Key: shaping.Key{Namespace: s.Pods[i].Namespace, Name: shaped}, Annotations: s.Pods[i].Annotations}
		m := shaping.NewModel(shaping.Limits{})
		m.SetPod(pod)
		if got, want := m.Limits(pod.Key), (shaping.Limits{{Rate: rate}, {Rate: rate}}); got != want || len(m.Problems()) > 0 {
			t.Errorf("annotated with %s: limits %v, problems %v", rate, got, m.Problems())
		}
	}
}

func TestFlowsAreJudged(t *testing.T) {
	const rate = 10_000_000
	for _, tc := range []struct {
		flow   flowResult
		passed []bool
	}{
		{flowResult{Goodput: 1e9, First: 1e9}, nil},
		{flowResult{Limit: rate, Goodput: 9.9e6, First: 10.2e6, P95: 18}, []bool{true, true, true}},
		{flowResult{Limit: rate, Goodput: 7.9e6, First: 11.6e6, P95: 1000}, []bool{false, false, false}},
		{flowResult{Limit: rate, Goodput: 10.6e6, First: 1e6, P95: 99}, []bool{false, true, true}},
	} {
		var passed []bool
		for _, c := range tc.flow.checks() {
			passed = append(passed, c.Passed)
		}
		if !slices.Equal(passed, tc.passed) {
			t.Errorf("%+v: %v", tc.flow, tc.flow.checks())
		}
	}
	text := flowTable([]flowResult{{Limit: rate, Direction: "egress", Goodput: 9.87e6, First: 10.1e6, P50: 12.345, P95: 1000}})
	for _, part := range []string{"10M", "from admin", "9.9", "98.7 %", "1.01 times", "12.35 ms", "1000.00 ms"} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in\n%s", part, text)
		}
	}
	for line := range strings.Lines(indent(text)) {
		if n := len([]rune(line)); n > 101 {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
}

func TestTransferIsJudged(t *testing.T) {
	// The new limit is seen after 300 ms; the old one's last bytes do not matter.
	s := traffic.Series{Bytes: make([]uint64, 600)}
	for i := range s.Bytes {
		rate := 10e6
		switch at := time.Duration(i) * traffic.Bin; {
		case at >= 4300*time.Millisecond:
			rate = 2e9
		case at >= 2300*time.Millisecond:
			rate = 50e6
		}
		s.Bytes[i] = uint64(rate * traffic.Bin.Seconds() / 8)
	}
	changes := []change{{0, 10_000_000}, {2 * time.Second, 50_000_000}, {4 * time.Second, 0}}
	tr := transfer{Changes: changes, Rates: s.Coarse(graphBin), series: s}
	if checks := tr.checks(); len(checks) != 3 || slices.ContainsFunc(checks, failed) {
		t.Errorf("%+v", checks)
	}
	for i := range changes {
		other := slices.Clone(changes)
		other[i].Limit = 200_000_000 // which the flow does not get
		if i == 2 {
			other[1].After = 4400 * time.Millisecond // too late to be seen
			other[2] = change{5900 * time.Millisecond, 0}
		}
		if checks := (&transfer{Changes: other, series: s}).checks(); !slices.ContainsFunc(checks, failed) {
			t.Errorf("%v: %+v", other, checks)
		}
	}
	graph := tr.graph(false)
	for line := range strings.Lines(graph) {
		if n := len([]rune(line)); n > 98 {
			t.Errorf("a line of %d columns", n)
		}
	}
	if !strings.Contains(graph, "4.00 s: the annotations are gone") || strings.Contains(graph, "\x1b") {
		t.Errorf("the graph is\n%s", graph)
	}
	if !strings.Contains(tr.graph(true), "\x1b") {
		t.Error("no colour in the graph")
	}
	if got := (&transfer{}).graph(false); got != "nothing arrived" {
		t.Errorf("the graph of nothing is\n%s", got)
	}
}
