package observe

import (
	"os"
	"path/filepath"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"sigs.k8s.io/yaml"
)

// TestOperator reads the objects of the Prometheus operator with the operator's own
// types: a field that these do not have is an error.
func TestOperator(t *testing.T) {
	dir := filepath.Join(repo, "deploy", "observe")
	for file, object := range map[string]any{
		"operator/podmonitor.yaml":             &monitoringv1.PodMonitor{},
		"operator/prometheusrule.yaml":         &monitoringv1.PrometheusRule{},
		"operator-service/servicemonitor.yaml": &monitoringv1.ServiceMonitor{},
	} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict(text, object); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if rules, ok := object.(*monitoringv1.PrometheusRule); ok {
			checkGroups(t, rules)
		}
	}
}

// checkGroups asserts that there is something, and that Prometheus can read its times.
func checkGroups(t *testing.T, rules *monitoringv1.PrometheusRule) {
	t.Helper()
	if len(rules.Spec.Groups) == 0 {
		t.Error("there are no rules")
	}
	for _, g := range rules.Spec.Groups {
		for _, r := range g.Rules {
			if r.For == nil {
				continue
			}
			if _, err := model.ParseDuration(string(*r.For)); err != nil {
				t.Errorf("%s: %v", r.Alert, err)
			}
		}
	}
}
