package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestJudge(t *testing.T) {
	exit := errors.New("exit status 2")
	for _, tt := range []struct {
		name, output string
		err          error
		want         string
	}{
		{"all pass", "=== RUN   TestA\n=== RUN   TestA/b\n--- PASS: TestA (0.00s)\n    --- PASS: TestA/b (0.00s)\nPASS\n", nil, "[TestA] [] []"},
		{"one fails", "=== RUN   TestA\n--- FAIL: TestA (0.00s)\n=== RUN   TestB\n--- PASS: TestB (0.00s)\nFAIL\n", exit, "[TestB] [TestA] []"},
		{"skipped", "=== RUN   TestA\n--- SKIP: TestA (0.00s)\nPASS\n", nil, "[] [TestA] [TestA]"},
		{"a part skipped", "=== RUN   TestA\n=== RUN   TestA/b\n--- PASS: TestA (0.00s)\n    --- SKIP: TestA/b (0.00s)\nPASS\n", nil, "[] [TestA] [TestA/b]"},
		{"skipped in namespaces of its own", "=== RUN   TestA\n    a_test.go:1: in:\n        --- SKIP: TestA (0.00s)\n--- PASS: TestA (0.00s)\n", nil, "[] [TestA] [TestA]"},
		{"fails in namespaces of its own, as it should", "=== RUN   TestA\n        --- FAIL: TestA (0.00s)\n--- PASS: TestA (0.00s)\n", nil, "[TestA] [] []"},
		{"a panic", "=== RUN   TestA\npanic: oh\n", exit, "[] [TestA] []"},
		{"a failure after the tests", "=== RUN   TestA\n--- PASS: TestA (0.00s)\nPASS\n", exit, "[TestA] [pkg] []"},
		{"no tests", "testing: warning: no tests to run\nPASS\n", nil, "[] [pkg] []"},
	} {
		o := Judge("pkg", tt.output, tt.err)
		if got := fmt.Sprint(o.Passed, o.Failed, o.Skipped); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestBuild(t *testing.T) {
	repo, dir := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		"go.mod":        "module example.org/tiny\n\ngo 1.26.0\n",
		"a/b/b_test.go": "package b\n\nimport \"testing\"\n\nfunc TestIt(t *testing.T) {}\n",
		"none/none.go":  "package none\n",
		"bad/a_test.go": "package bad\n\nfunc f() { undefinedName() }\n",
	} {
		put(t, repo, name)
		if err := os.WriteFile(filepath.Join(repo, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Build(t.Context(), repo, "./a/b", dir, time.Minute, []string{"-test.run=It"})
	if err != nil {
		t.Fatal(err)
	}
	if err := static(p.Binary); err != nil {
		t.Error(err)
	}
	want := "a/b " + dir + "/a-b.test -test.v -test.paniconexit0 -test.timeout=1m0s -test.run=It"
	if got := p.Dir + " " + strings.Join(p.Argv, " "); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for pkg, want := range map[string]string{
		"none": "none: there are no tests", "bad": "undefinedName", "missing": "there is no directory", "../a": "not below the root",
	} {
		if _, err := Build(t.Context(), repo, pkg, dir, time.Minute, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", pkg, err, want)
		}
	}
}
