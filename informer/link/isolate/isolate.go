// Package isolate runs tests in network namespaces of their own. It is for
// tests only.
package isolate

import (
	"bytes"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// Test runs the calling test once more, in a process with network and mount
// namespaces of its own, and reports its result. It returns true in that
// process: there, and only there, the test goes on. /run/netns is empty there,
// and what the test makes is gone with the process. Subtests must not call it.
func Test(t *testing.T) bool {
	t.Helper()
	const child = "SELVAGE_TEST_ISOLATED"
	if os.Getenv(child) == t.Name() {
		Sh(t, "mkdir -p /run/netns && mount -t tmpfs -o mode=755 none /run/netns && ip link set lo up")
		return true
	}
	if os.Geteuid() != 0 {
		const why = "making network namespaces needs root"
		if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
			t.Fatal("SELVAGE_REQUIRE_PRIVILEGED=1, but " + why)
		}
		t.Skip("SKIPPED, THE KERNEL WAS NOT TESTED: " + why)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), child+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("in namespaces of its own:\n%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatal("the test did not run in its own namespaces")
	}
	return false
}

// Sh runs a script and returns what it prints.
func Sh(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%s%v", script, out, err)
	}
	return string(out)
}
