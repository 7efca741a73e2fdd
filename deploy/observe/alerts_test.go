package observe_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// rules is a file of Prometheus' rules.
type rules struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	} `json:"groups"`
}

type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// alerts are those of alerts.yaml, by name.
func alerts(t *testing.T) map[string]rule {
	t.Helper()
	var file rules
	readYAML(t, "alerts.yaml", &file)
	all := make(map[string]rule)
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if _, twice := all[r.Alert]; twice || r.Alert == "" {
				t.Errorf("the alert %q is there twice, or has no name", r.Alert)
			}
			all[r.Alert] = r
		}
	}
	return all
}

func readYAML(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// TestAlerts sees that each alert says how bad it is, what is wrong, and what to do, and
// that the runbook has a section for it, and for no other.
func TestAlerts(t *testing.T) {
	runbook, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	var sections []string
	for _, m := range regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatch(string(runbook), -1) {
		sections = append(sections, m[1])
	}
	all := alerts(t)
	slices.Sort(sections)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(all)), sections); diff != "" {
		t.Errorf("the alerts, and the sections of docs/runbook.md (-alerts +runbook):\n%s", diff)
	}
	for name, r := range all {
		if s := r.Labels["severity"]; len(r.Labels) != 1 || !slices.Contains([]string{"critical", "warning", "info"}, s) {
			t.Errorf("%s: labels %v", name, r.Labels)
		}
		keys := []string{"description", "runbook", "runbook_url", "summary"}
		if diff := cmp.Diff(keys, slices.Sorted(maps.Keys(r.Annotations))); diff != "" {
			t.Errorf("%s: annotations (-want +got):\n%s", name, diff)
		}
		for _, key := range keys[:2] {
			if !strings.HasSuffix(r.Annotations[key], ".") {
				t.Errorf("%s: %s is no sentence: %q", name, key, r.Annotations[key])
			}
		}
		want := "https://github.com/selvage-net/selvage/blob/main/docs/runbook.md#" + strings.ToLower(name)
		if got := r.Annotations["runbook_url"]; got != want {
			t.Errorf("%s: runbook_url %s, want %s", name, got, want)
		}
	}
}

// unitTests is a file for `promtool test rules`, as far as it matters here.
type unitTests struct {
	RuleFiles []string `json:"rule_files"`
	Tests     []struct {
		Name  string `json:"name"`
		Tests []struct {
			Alert string `json:"alertname"`
			Fires []any  `json:"exp_alerts"`
		} `json:"alert_rule_test"`
	} `json:"tests"`
}

// TestUnitTests sees that promtool tests of each alert that it fires, and that it does
// not. What is true of it, `make observe` finds out.
func TestUnitTests(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	fires, quiet := make(map[string]bool), make(map[string]bool)
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var file unitTests
		if err := yaml.Unmarshal(text, &file); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !slices.Equal(file.RuleFiles, []string{"../alerts.yaml"}) {
			t.Errorf("%s tests %v", name, file.RuleFiles)
		}
		for _, story := range file.Tests {
			for _, c := range story.Tests {
				if !strings.HasPrefix(story.Name, c.Alert+": ") {
					t.Errorf("%s: the test %q is about %s", name, story.Name, c.Alert)
				}
				fires[c.Alert] = fires[c.Alert] || len(c.Fires) > 0
				quiet[c.Alert] = quiet[c.Alert] || len(c.Fires) == 0
			}
		}
	}
	for name := range alerts(t) {
		if !fires[name] || !quiet[name] {
			t.Errorf("%s: tested that it fires: %v, and that it does not: %v", name, fires[name], quiet[name])
		}
	}
}
