package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/world"
)

// TestLeavesNothing stops the demo in the middle, politely and by force, and
// looks for what it left.
func TestLeavesNothing(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	build(t, "../../..", "./cmd/selvage", filepath.Join(dir, "selvage"))
	build(t, ".", ".", filepath.Join(dir, "demo"))
	for _, tc := range []struct {
		name   string
		signal syscall.Signal
		code   int
	}{{"Ctrl-C", syscall.SIGINT, 130}, {"terminated", syscall.SIGTERM, 130}, {"killed", syscall.SIGKILL, -1}} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := exec.Command(filepath.Join(dir, "demo"))
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			mine := fmt.Sprintf("selvage-%d-", cmd.Process.Pid)
			for lines := bufio.NewScanner(stdout); lines.Scan(); {
				if strings.HasPrefix(lines.Text(), "4 of ") {
					break
				}
			}
			if len(left(t, mine)) == 0 || len(processes(t, filepath.Join(dir, "selvage"))) != 2 {
				t.Error("nothing to leave: the test says nothing")
			}
			if err := cmd.Process.Signal(tc.signal); err != nil {
				t.Fatal(err)
			}
			err = cmd.Wait()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != tc.code {
				t.Errorf("ended with %v, want exit code %d", err, tc.code)
			}
			if tc.signal == syscall.SIGKILL {
				// The agents die with it; the rest is for the next run.
				if _, err := world.Sweep(); err != nil {
					t.Error(err)
				}
			}
			if l := left(t, mine); len(l) > 0 {
				t.Errorf("left: %v", l)
			}
			gone := func() bool { return len(processes(t, filepath.Join(dir, "selvage"))) == 0 }
			for deadline := time.Now().Add(10 * time.Second); !gone() && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			if !gone() {
				t.Error("agents run on")
			}
		})
	}
}

// build builds a program, with the flags of the Makefile so that its cache
// serves.
func build(t *testing.T, module, program, binary string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-C", module, "-trimpath", "-buildvcs=false", "-o", binary, program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", program, err, out)
	}
}

// left are the namespaces and directories of a demo.
func left(t *testing.T, prefix string) []string {
	t.Helper()
	var all []string
	for _, dir := range []string{"/run/netns", os.TempDir()} {
		found, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// processes are those that run a program.
func processes(t *testing.T, binary string) []string {
	t.Helper()
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, exe := range exes {
		if target, err := os.Readlink(exe); err == nil && target == binary {
			found = append(found, exe)
		}
	}
	return found
}
