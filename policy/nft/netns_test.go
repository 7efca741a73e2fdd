package nft

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
)

// namespace is a network namespace of a test's own.
type namespace struct {
	handle netns.NsHandle
}

// newNamespace makes a network namespace that goes away with the test.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		privileged(t, "needs root to make network namespaces")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	handle, err := netns.New()
	if err != nil {
		privileged(t, "cannot make a network namespace: "+err.Error())
	}
	if err := netns.Set(home); err != nil {
		// The thread must not be used for anything else, and is the only one.
		panic(err)
	}
	n := &namespace{handle: handle}
	t.Cleanup(n.close)
	return n
}

// close gives the namespace up; NsHandle remembers that it was closed.
func (n *namespace) close() {
	if n.handle.IsOpen() {
		n.handle.Close()
	}
}

// privileged skips a test that this process may not run, or fails it where
// none may be skipped.
func privileged(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
		t.Fatalf("SELVAGE_REQUIRE_PRIVILEGED=1, but this test %s", why)
	}
	t.Skipf("SKIPPED: %s (%s)", t.Name(), why)
}

// do runs f on a thread that is in the namespace.
func (n *namespace) do(t testing.TB, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	if err := netns.Set(n.handle); err != nil {
		t.Fatal(err)
	}
	f()
	if err := netns.Set(home); err != nil {
		panic(err)
	}
}

// run runs a command in the namespace and returns its output.
func (n *namespace) run(t testing.TB, stdin string, name string, args ...string) string {
	t.Helper()
	out, err := n.try(t, stdin, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// try is run for commands that may fail.
func (n *namespace) try(t testing.TB, stdin string, name string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	var err error
	n.do(t, func() {
		cmd := exec.Command(name, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
		err = cmd.Run()
	})
	return out.String(), err
}

// nft runs nft(8) on commands.
func (n *namespace) nft(t testing.TB, commands string) {
	t.Helper()
	n.run(t, commands, "nft", "-f", "-")
}

// list is the ruleset as nft(8) shows it, without counts. The sets and chains
// of a table, which nft shows in the order in which they were made, are sorted.
func (n *namespace) list(t testing.TB) string {
	t.Helper()
	tables := strings.SplitAfter(n.run(t, "", "nft", "-s", "list", "ruleset"), "\n}\n")
	for i, table := range tables {
		head, body, ok := strings.Cut(table, "{\n")
		if !ok {
			continue
		}
		blocks := strings.Split(strings.TrimSuffix(body, "\n}\n"), "\n\n")
		slices.Sort(blocks)
		tables[i] = head + "{\n" + strings.Join(blocks, "\n\n") + "\n}\n"
	}
	return strings.Join(tables, "")
}

// open returns a Conn for the namespace.
func (n *namespace) open(t testing.TB) *Conn {
	t.Helper()
	c, err := Open(Options{NetNS: int(n.handle)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
