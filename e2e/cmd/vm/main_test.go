package main

import (
	"errors"
	"strings"
	"testing"
)

func TestArguments(t *testing.T) {
	for args, want := range map[string]string{
		"test":                       "no package is named",
		"test -- -test.run=A":        "no package is named",
		"exec":                       "requires at least 1 arg",
		"test --accel=fast x":        `--accel: "fast" is none of kvm, tcg and auto`,
		"test --timeout=0s x":        "--timeout: 0s is not a time",
		"test --kernel= x":           "--kernel: no kernel is named",
		"test --kernel=6 x":          `--kernel: "6" is no series such as 6.12`,
		"test --repo=/nowhere x":     "there is no directory /nowhere/x",
		"test ../x -- -test.short":   "not below the root",
		"boot":                       `unknown command "boot"`,
		"test --kernels=6.1 a-thing": "unknown flag: --kernels",
	} {
		cmd := newCommand()
		cmd.SetArgs(strings.Fields(args))
		var out strings.Builder
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("vm %s: %v, want %q", args, err, want)
		}
	}
}

func TestRound(t *testing.T) {
	var out strings.Builder
	r := newRound("6.1", []string{"good", "bad", "crash", "rest"}, false, &out)
	r.begin(0)
	r.output(0, "=== RUN   TestA\n--- PASS: ")
	r.output(0, "TestA (0.00s)\nPASS\n")
	r.exited(0, nil)
	r.begin(1)
	r.output(1, "=== RUN   TestB\n    why it failed\n--- FAIL: TestB (0.00s)\n=== RUN   TestC\n--- SKIP: TestC (0.00s)\n=== RUN   TestD\n--- PASS: TestD (0.00s)\n")
	r.exited(1, errors.New("exit status 1"))
	r.begin(2)
	r.output(2, "=== RUN   TestE\n")
	r.close(errors.New("the machine hangs"))
	if r.passed != 2 || r.failed != 4 {
		t.Errorf("%d passed, %d failed, want 2 and 4", r.passed, r.failed)
	}
	for _, want := range []string{
		"kernel 6.1: ok   good, 1 passed, in ",
		"why it failed\n",
		"kernel 6.1: FAIL bad, 1 passed, failed: TestB TestC, skipped: TestC (exit status 1), in ",
		"kernel 6.1: FAIL crash, 0 passed, failed: TestE (the machine ended), in ",
		"kernel 6.1: FAIL rest, not tested\nkernel 6.1: the machine hangs\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "--- PASS: TestA") {
		t.Error("shows what a package wrote that passed")
	}
}

// TestRoundLate has the machine fail when all packages had ended well.
func TestRoundLate(t *testing.T) {
	var out strings.Builder
	r := newRound("6.1", []string{"good"}, true, &out)
	r.begin(0)
	r.output(0, "=== RUN   TestA\n--- PASS: TestA (0.00s)\n")
	r.exited(0, nil)
	r.close(errors.New("something was lost"))
	if r.passed != 1 || r.failed != 1 || !strings.Contains(out.String(), "--- PASS: TestA") {
		t.Errorf("%d passed, %d failed, want 1 and 1:\n%s", r.passed, r.failed, out.String())
	}
}
