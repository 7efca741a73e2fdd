package vm

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Outcome is what came of a test binary that ran with -test.v.
type Outcome struct {
	// Passed and Failed are the names of its tests, without subtests. Failed are
	// also those that skipped something, those that did not end, and, by the
	// name of the package, the binary itself if it failed for no test's sake.
	Passed, Failed []string
	// Skipped are all that were skipped, with subtests.
	Skipped []string
}

// Judge reads the output of a test binary, which ended with err. What was not
// tested has not passed, so a package without tests fails.
func Judge(pkg, output string, err error) Outcome {
	var o Outcome
	passed := map[string]bool{}
	run := regexp.MustCompile(`(?m)^=== RUN +(\S+)$`)
	for _, m := range run.FindAllStringSubmatch(output, -1) {
		passed[top(m[1])] = false
	}
	report := regexp.MustCompile(`(?m)^--- (PASS|FAIL): (\S+)`)
	for _, m := range report.FindAllStringSubmatch(output, -1) {
		passed[m[2]] = m[1] == "PASS"
	}
	// A test that runs itself once more logs what it did there, indented.
	skip := regexp.MustCompile(`(?m)^\s*--- SKIP: (\S+)`)
	for _, m := range skip.FindAllStringSubmatch(output, -1) {
		o.Skipped = append(o.Skipped, m[1])
		passed[top(m[1])] = false
	}
	for _, name := range slices.Sorted(maps.Keys(passed)) {
		if passed[name] {
			o.Passed = append(o.Passed, name)
		} else {
			o.Failed = append(o.Failed, name)
		}
	}
	if len(o.Failed) == 0 && (err != nil || len(o.Passed) == 0) {
		o.Failed = append(o.Failed, pkg)
	}
	return o
}

// top is the test that a subtest belongs to.
func top(name string) string {
	name, _, _ = strings.Cut(name, "/")
	return name
}
