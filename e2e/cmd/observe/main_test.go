package main

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/selvage-net/selvage/e2e/observe"
)

// TestStages sees that each alert is provoked once, or that it is said why not.
func TestStages(t *testing.T) {
	rules, err := observe.ReadRules("../../..")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, a := range rules.Alerts() {
		want = append(want, a.Name)
	}
	got := slices.Collect(maps.Keys(unprovoked()))
	for _, s := range new(run).stages() {
		for _, p := range s.provocations {
			if p.how == "" || p.do == nil || len(p.alerts) == 0 {
				t.Errorf("stage %s: how: %q, alerts: %v", s.name, p.how, p.alerts)
			}
			got = append(got, p.alerts...)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the alerts, and what is provoked (-alerts +provoked):\n%s", diff)
	}
}

// TestTold has only sentences pass that make sense.
func TestTold(t *testing.T) {
	fired := map[string]observe.Fired{
		"Good":    {Annotations: map[string]string{"description": "Node n1 is gone."}},
		"NoValue": {Annotations: map[string]string{"description": "Node <no value> is gone."}},
		"NoLabel": {Annotations: map[string]string{"description": "Of node  is nothing known."}},
	}
	for name, good := range map[string]bool{"Good": true, "NoValue": false, "NoLabel": false, "Missing": false} {
		if err := told(fired, name); (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
