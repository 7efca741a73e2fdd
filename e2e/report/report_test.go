package report

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2/types"
)

// spec is what ginkgo reports of an It.
func spec(name string, state types.SpecState, change ...func(*types.SpecReport)) types.SpecReport {
	s := types.SpecReport{LeafNodeType: types.NodeTypeIt, LeafNodeText: name, State: state, NumAttempts: 1, RunTime: 1500 * time.Millisecond}
	for _, c := range change {
		c(&s)
	}
	return s
}

// read writes a report as ginkgo does and reads it back.
func read(t *testing.T, suite string, r ...types.Report) []Spec {
	t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	specs, err := Read(file, suite, func(name string) string {
		if strings.Contains(name, "SCTP") {
			return "the kernel has no SCTP"
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
	return specs
}

func TestRead(t *testing.T) {
	retried := func(s *types.SpecReport) {
		s.NumAttempts = 2
		s.AdditionalFailures = []types.AdditionalFailure{{Failure: types.Failure{Message: "Failure recorded during attempt 1: too slow"}}}
	}
	wrong := func(s *types.SpecReport) { s.Failure.Message = "pod x reached pod y" }
	setup := spec("", types.SpecStatePassed, func(s *types.SpecReport) { s.LeafNodeType = types.NodeTypeBeforeSuite })
	specs := read(t, "cluster", types.Report{SpecReports: types.SpecReports{
		spec("b passes", types.SpecStatePassed),
		spec("a passes late", types.SpecStatePassed, retried),
		spec("c fails", types.SpecStateFailed, wrong),
		spec("d over SCTP", types.SpecStateSkipped),
		spec("e is not asked for", types.SpecStateSkipped),
		setup,
	}})
	var got []string
	for _, s := range specs {
		got = append(got, s.Name+": "+s.result())
	}
	want := []string{
		"a passes late: yes, second try (2 tries in 1 runs)", "b passes: yes",
		"c fails: **no** (1 tries in 1 runs)", "d over SCTP: left out: the kernel has no SCTP",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if p, f, l := Count(specs); p != 2 || f != 1 || l != 1 {
		t.Errorf("counted %d passed, %d failed, %d left out", p, f, l)
	}
	if !strings.Contains(specs[2].Failures[0], "pod x reached pod y") || !strings.Contains(specs[0].Failures[0], "too slow") {
		t.Errorf("failures: %q, %q", specs[2].Failures, specs[0].Failures)
	}
}

// TestSuiteFails has suites end badly without a spec that failed: none may
// count as a success.
func TestSuiteFails(t *testing.T) {
	died := types.Report{SpecialSuiteFailureReasons: []string{"process 2 disappeared"}, SpecReports: types.SpecReports{spec("a", types.SpecStatePassed)}}
	if _, failed, _ := Count(read(t, "s", died)); failed != 1 {
		t.Errorf("a suite that died has %d failures", failed)
	}
	setup := spec("cast", types.SpecStateFailed, func(s *types.SpecReport) { s.LeafNodeType = types.NodeTypeBeforeSuite })
	if _, failed, _ := Count(read(t, "s", types.Report{SpecReports: types.SpecReports{setup}})); failed != 1 {
		t.Errorf("a set-up that failed has %d failures", failed)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none"), "s", nil); err == nil {
		t.Error("a report that was never written is no error")
	}
}

func TestMerge(t *testing.T) {
	one := Spec{Suite: "cluster", Name: "a", Outcome: Passed, Runs: 1, Tries: 1, Took: time.Second}
	two := Spec{Suite: "cluster", Name: "a", Outcome: Failed, Runs: 1, Tries: 2, Took: 3 * time.Second, Failures: []string{"x"}}
	other := Spec{Suite: "upstream", Name: "z", Outcome: Passed, Runs: 1, Tries: 1}
	merged := Merge([]Spec{one, two, other, one})
	if len(merged) != 2 || merged[0].Name != "z" {
		t.Fatalf("merged to %+v", merged)
	}
	if m := merged[1]; m.Outcome != Failed || m.Runs != 3 || m.Tries != 4 || m.Took != 3*time.Second {
		t.Errorf("three runs, one of which failed, make %+v", m)
	}
}

// TestWrite has each run replace its own section, and no other's.
func TestWrite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "RESULTS.md")
	write := func(name, about string, specs ...Spec) string {
		t.Helper()
		if err := (Section{Name: name, About: about, Figures: []Figure{{"ready after", "9 s"}}, Specs: specs}).Write(file); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	write("vxlan", "first", Spec{Suite: "upstream", Name: "[sig] a | b", Outcome: Passed, Runs: 1, Tries: 1, Took: time.Second, Figures: []Figure{{"until in force", "7 ms"}}})
	before := write("host-gw", "second")
	after := write("vxlan", "third", Spec{Suite: "upstream", Name: "c", Outcome: Failed, Runs: 1, Tries: 2})
	if !strings.Contains(before, `| upstream | \[sig\] a \| b | yes | 1.0 |`) || !strings.Contains(before, "| ready after | 9 s |") ||
		!strings.Contains(before, `| \[sig\] a \| b | until in force | 7 ms |`) {
		t.Errorf("got\n%s", before)
	}
	if strings.Contains(after, "first") || !strings.Contains(after, "second") || !strings.Contains(after, "0 passed, 1 failed") {
		t.Errorf("got\n%s", after)
	}
	if strings.Index(after, "## vxlan") > strings.Index(after, "## host-gw") || strings.Count(after, "# Results") != 1 {
		t.Errorf("the order is not kept:\n%s", after)
	}
	if again := write("vxlan", "third", Spec{Suite: "upstream", Name: "c", Outcome: Failed, Runs: 1, Tries: 2}); again != after {
		t.Errorf("the same again gives\n%s\ninstead of\n%s", again, after)
	}
}
