package observe

import (
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

// Rules is a file of Prometheus' rules.
type Rules struct {
	Groups []Group `json:"groups"`
}

// Group is a group of them.
type Group struct {
	Name  string  `json:"name"`
	Rules []Alert `json:"rules"`
}

// Alert is a rule that alerts.
type Alert struct {
	Name string `json:"alert"`
	Expr string `json:"expr"`
	// For is how long Expr has to hold, as Prometheus writes it; empty for not at all.
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// RulesFile is where a repository has its alerts.
func RulesFile(repo string) string {
	return filepath.Join(repo, "deploy", "observe", "alerts.yaml")
}

// ReadRules reads the alerts of a repository.
func ReadRules(repo string) (Rules, error) {
	var r Rules
	text, err := os.ReadFile(RulesFile(repo))
	if err != nil {
		return r, err
	}
	if err := yaml.UnmarshalStrict(text, &r); err != nil {
		return r, fmt.Errorf("%s: %w", RulesFile(repo), err)
	}
	return r, nil
}

// Alerts are those of all groups, in their order.
func (r Rules) Alerts() []Alert {
	var all []Alert
	for _, g := range r.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// Hastened returns the rules with a wait of their own for all that wait at all.
func (r Rules) Hastened(wait string) Rules {
	var all Rules
	for _, g := range r.Groups {
		h := Group{Name: g.Name}
		for _, a := range g.Rules {
			if a.For != "" {
				a.For = wait
			}
			h.Rules = append(h.Rules, a)
		}
		all.Groups = append(all.Groups, h)
	}
	return all
}
