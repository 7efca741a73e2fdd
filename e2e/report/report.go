// Package report turns what ginkgo says of its runs into one table, and keeps
// that table in a Markdown file.
package report

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2/types"
)

// Outcome is how a spec ended.
type Outcome string

// The outcomes. A spec that was left out has a reason, not a result.
const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	LeftOut Outcome = "left out"
)

// Spec is one row of the table. If a suite ran several times, its specs stand
// for all of these runs.
type Spec struct {
	Suite   string
	Name    string
	Outcome Outcome
	// Runs is how often the spec was run in suites that ran, and Tries how
	// often including the second tries that a loaded machine made necessary.
	Runs, Tries int
	// Took is the longest of the runs.
	Took time.Duration
	// Failures are what went wrong, first tries that a second made good
	// included.
	Failures []string
	// Why says why the spec was left out.
	Why string
	// Figures are what the spec measured.
	Figures []Figure
}

// Figure is something that was measured.
type Figure struct {
	Name, Value string
}

// Read returns the specs of a file that ginkgo wrote for --json-report, sorted
// by name. A suite that failed outside of its specs, in BeforeSuite or because
// a process died, has an extra spec that says so. why tells the reason for
// which a spec was filtered out.
func Read(file, suite string, why func(name string) string) ([]Spec, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("report of the suite %s: %w", suite, err)
	}
	var reports []types.Report
	if err := json.Unmarshal(data, &reports); err != nil {
		return nil, fmt.Errorf("report of the suite %s: %s: %w", suite, file, err)
	}
	var specs []Spec
	for _, r := range reports {
		failed := false
		for _, s := range r.SpecReports {
			if row, ok := newSpec(suite, s, why); ok {
				specs = append(specs, row)
				failed = failed || row.Outcome == Failed
			}
		}
		if !r.SuiteSucceeded && !failed {
			specs = append(specs, Spec{
				Suite: suite, Name: "the suite itself", Outcome: Failed, Runs: 1, Tries: 1, Took: r.RunTime,
				Failures: []string{strings.Join(append(r.SpecialSuiteFailureReasons, "it ended without success"), "; ")},
			})
		}
	}
	slices.SortFunc(specs, byName)
	return specs, nil
}

func byName(a, b Spec) int {
	if c := strings.Compare(a.Suite, b.Suite); c != 0 {
		return -c // upstream's first
	}
	return strings.Compare(a.Name, b.Name)
}

// newSpec returns the row of a report. Set-up and tear-down have one only if
// they failed.
func newSpec(suite string, s types.SpecReport, why func(string) string) (Spec, bool) {
	row := Spec{Suite: suite, Name: s.FullText(), Outcome: Passed, Runs: 1, Tries: max(1, s.NumAttempts), Took: s.RunTime}
	if s.LeafNodeType != types.NodeTypeIt {
		row.Name = "[" + s.LeafNodeType.String() + "] " + s.FullText()
	}
	switch {
	case s.State.Is(types.SpecStateFailureStates):
		row.Outcome = Failed
		row.Failures = append(row.Failures, failure(s.Failure))
	case s.LeafNodeType != types.NodeTypeIt:
		return Spec{}, false
	case s.State.Is(types.SpecStateSkipped | types.SpecStatePending):
		row.Outcome, row.Runs, row.Tries, row.Took = LeftOut, 0, 0, 0
		if row.Why = s.Failure.Message; row.Why == "" {
			row.Why = why(row.Name)
		}
		if row.Why == "" {
			return Spec{}, false // not asked for
		}
	}
	for _, f := range s.AdditionalFailures {
		row.Failures = append(row.Failures, failure(f.Failure))
	}
	for _, e := range s.ReportEntries {
		if e.Visibility != types.ReportEntryVisibilityNever {
			row.Figures = append(row.Figures, Figure{e.Name, e.StringRepresentation()})
		}
	}
	return row, true
}

func failure(f types.Failure) string {
	return strings.TrimSpace(f.Message) + "\n" + f.Location.String()
}

// Merge makes one row of the rows of the same spec in several runs.
func Merge(specs []Spec) []Spec {
	var merged []Spec
	at := make(map[[2]string]int)
	for _, s := range specs {
		key := [2]string{s.Suite, s.Name}
		i, ok := at[key]
		if !ok {
			at[key] = len(merged)
			merged = append(merged, s)
			continue
		}
		m := &merged[i]
		m.Runs, m.Tries, m.Took = m.Runs+s.Runs, m.Tries+s.Tries, max(m.Took, s.Took)
		m.Failures = append(m.Failures, s.Failures...)
		m.Figures = append(m.Figures, s.Figures...)
		if s.Outcome == Failed || m.Outcome == LeftOut {
			m.Outcome = s.Outcome
		}
	}
	slices.SortStableFunc(merged, byName)
	return merged
}

// Count returns how many specs passed, failed and were left out.
func Count(specs []Spec) (passed, failed, leftOut int) {
	for _, s := range specs {
		switch s.Outcome {
		case Passed:
			passed++
		case Failed:
			failed++
		case LeftOut:
			leftOut++
		}
	}
	return passed, failed, leftOut
}
