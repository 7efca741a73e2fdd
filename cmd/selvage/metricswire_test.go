package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/metrics"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nft"
)

// TestRulesetMetric shows what is in the kernel, and not what a sync that failed has
// compiled.
func TestRulesetMetric(t *testing.T) {
	a, e, _ := newTestAgent()
	e.err = errors.New("no luck")
	_ = a.sync(t.Context(), initial(thisNode))
	if n, err := testutil.GatherAndCount(a.metrics.Gatherer(), "selvage_ruleset"); err != nil || n != 0 {
		t.Errorf("%d series after a failure, %v", n, err)
	}
	e.err = nil
	if err := a.sync(t.Context(), batch()); err != nil {
		t.Fatal(err)
	}
	if n, err := testutil.GatherAndCount(a.metrics.Gatherer(), "selvage_ruleset"); err != nil || n != 6 {
		t.Errorf("%d series, %v", n, err)
	}
}

// TestSourceErrors counts each failure by its cause, and not its end.
func TestSourceErrors(t *testing.T) {
	a, _, _ := newTestAgent()
	observe := a.observer()
	for _, tr := range []*informer.Trouble{
		trouble(informer.Pods, informer.Unanswered, errors.New("connection refused")), nil,
		trouble(informer.Pods, informer.Unanswered, errors.New("connection refused")),
		trouble(informer.Pods, informer.Forbidden, forbidden("pods")),
	} {
		observe.Trouble(informer.Pods, tr)
	}
	families, err := a.metrics.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		if f.GetName() != "selvage_source_errors_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			var values []string
			for _, l := range m.GetLabel() {
				values = append(values, l.GetName()+"="+l.GetValue())
			}
			got[strings.Join(values, " ")] = m.GetCounter().GetValue()
		}
	}
	want := map[string]float64{"cause=unanswered kind=pods": 2, "cause=forbidden kind=pods": 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
	if err := a.source.missing(); err == nil || !strings.Contains(err.Error(), "no role") {
		t.Errorf("the agent was not told: %v", err)
	}
}

// TestPolicyCounts gives the metrics connections that were allowed and packets that were
// denied, and no bytes.
func TestPolicyCounts(t *testing.T) {
	failed := errors.New("no luck")
	got, err := policyCounts(nft.PolicyCounts{
		Policies: []nft.PolicyCount{{
			PolicyRef: policy.PolicyRef{Namespace: "shop", Name: "web"}, Direction: "ingress",
			Allowed: nft.Count{Packets: 1, Bytes: 100}, Denied: nft.Count{Packets: 2, Bytes: 200},
		}},
		Denied: []nft.DeniedCount{{Namespace: "shop", Direction: "ingress", Count: nft.Count{Packets: 3, Bytes: 300}}},
	}, failed)
	want := metrics.PolicyCounts{
		Policies: []metrics.PolicyCount{{Namespace: "shop", Policy: "web", Direction: "ingress", Allowed: 1, Denied: 2}},
		Denied:   []metrics.DeniedCount{{Namespace: "shop", Direction: "ingress", Packets: 3}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	if !errors.Is(err, failed) {
		t.Errorf("the error is %v", err)
	}
}
