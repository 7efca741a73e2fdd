package machine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary is the program that starts machines, and their init; and, if
// a variable says so, a program that starts a machine to be killed.
const asHost = "SELVAGE_TEST_AS_HOST"

func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "machine":
		err = Main(os.Args[2:])
	case len(os.Args) > 1 && os.Args[1] == "serve-late":
		err = serveLate()
	case os.Getenv(asHost) != "":
		err = hostUntilKilled(os.Getenv(asHost))
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// require skips a test that needs privileges, or fails it where a skip would
// hide that it never ran.
func require(t *testing.T) {
	t.Helper()
	var why string
	missing, err := MissingControllers("cpuset", "memory", "pids")
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case os.Geteuid() != 0:
		why = "machines need root"
	case len(missing) > 0:
		why = "machines need cgroup v1"
	default:
		return
	}
	if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
		t.Fatal("NOT RUN: " + why)
	}
	t.Skip("SKIPPED, NOT TESTED: " + why)
}

func config(dir string) Config {
	return Config{
		Disks: filepath.Join(dir, "disks"), Size: "16m", Record: filepath.Join(dir, "cgroups"),
		Cgroup: fmt.Sprintf("selvage-test-%d-", os.Getpid()), Self: []string{"machine"},
	}
}

func newHost(t *testing.T, dir string) *Host {
	t.Helper()
	require(t)
	c := config(dir)
	if err := os.Mkdir(c.Disks, 0o755); err != nil {
		t.Fatal(err)
	}
	h, err := NewHost(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func start(t *testing.T, h *Host, s Spec) *Machine {
	t.Helper()
	m, err := h.Start(t.Context(), s)
	if err != nil {
		if log, rerr := os.ReadFile(s.Log); rerr == nil {
			t.Logf("the init said: %s", log)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// sh runs a line of shell on a machine.
func sh(t *testing.T, m *Machine, line string) string {
	t.Helper()
	out, err := m.Command(t.Context(), "/bin/sh", "-c", line).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v: %s", line, err, out)
	}
	return strings.TrimSpace(string(out))
}

func shell(dir, name, script string) Process {
	return Process{
		Name: name, Argv: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		Log: filepath.Join(dir, name+".log"),
	}
}

// TestNamespaces looks at a machine from within.
func TestNamespaces(t *testing.T) {
	dir := t.TempDir()
	h := newHost(t, dir)
	m := start(t, h, Spec{Name: "m1", Log: filepath.Join(dir, "init.log")})
	for _, c := range []struct{ line, want string }{
		{"hostname", "m1"},
		{"cat /etc/hostname", "m1"},
		{"ls /var/lib /var/log /opt /run", "/opt:\n\n/run:\nsysctl\n\n/var/lib:\n\n/var/log:"},
		{"ls /sys/class/net", "lo"},
		{"cat /proc/1/cgroup | grep -v ^0: | cut -d: -f3 | sort -u", "/"},
		{"cat /proc/sys/kernel/panic", "10"},
		{"echo 77 > /proc/sys/kernel/panic; cat /proc/sys/kernel/panic", "77"},
		{"cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/bridge/bridge-nf-call-iptables", "1\n1"},
		{"ls -d /sys/fs/cgroup/memory/tasks", "/sys/fs/cgroup/memory/tasks"},
	} {
		if got := sh(t, m, c.line); got != c.want {
			t.Errorf("%s: got %q, want %q", c.line, got, c.want)
		}
	}
	if got, _ := os.ReadFile("/proc/sys/kernel/panic"); strings.TrimSpace(string(got)) == "77" {
		t.Error("the machine changed a sysctl of the host")
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if sh(t, m, "cat /proc/sys/kernel/random/boot_id") == strings.TrimSpace(string(boot)) {
		t.Error("the machine has the host's boot ID")
	}
	if n := len(strings.Fields(sh(t, m, "cd /proc; ls -d [0-9]*"))); n > 4 {
		t.Errorf("the machine sees %d processes", n)
	}
}

// TestReboot has a machine keep its disk and nothing else.
func TestReboot(t *testing.T) {
	dir := t.TempDir()
	h := newHost(t, dir)
	spec := Spec{Name: "m1", Log: filepath.Join(dir, "init.log")}
	m := start(t, h, spec)
	if err := m.WriteFile("/var/lib/x/kept", []byte("1")); err != nil {
		t.Fatal(err)
	}
	sh(t, m, "echo 2 > /etc/kept; echo 3 > /run/lost; ip link add x type veth; mkdir /sys/fs/cgroup/memory/below")
	id := sh(t, m, "cat /etc/machine-id")
	boot := sh(t, m, "cat /proc/sys/kernel/random/boot_id")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	other := start(t, h, Spec{Name: "m2", Log: spec.Log})
	m = start(t, h, spec)
	if got := sh(t, m, "cat /var/lib/x/kept /etc/kept"); got != "12" && got != "1\n2" {
		t.Errorf("the disk has %q", got)
	}
	if got := sh(t, m, "ls /run /sys/class/net; ls -d /sys/fs/cgroup/memory/below || true"); strings.Contains(got, "lost") || strings.Contains(got, "x@") ||
		!strings.Contains(got, "cannot access") {
		t.Errorf("after the reboot there is %q", got)
	}
	if sh(t, m, "cat /etc/machine-id") != id || sh(t, m, "cat /proc/sys/kernel/random/boot_id") == boot {
		t.Error("a reboot must change the ID of the boot, and not of the machine")
	}
	if got := sh(t, other, "ls /var/lib; cat /etc/machine-id"); got == id || strings.Contains(got, "x") {
		t.Errorf("another machine has %q", got)
	}
	if _, err := os.Stat("/etc/kept"); err == nil {
		t.Error("the machine wrote to the host's /etc")
	}
}

// TestProcesses starts and stops processes, and lets some end.
func TestProcesses(t *testing.T) {
	dir := t.TempDir()
	h := newHost(t, dir)
	exits := make(chan Exit, 10)
	m := start(t, h, Spec{Name: "m1", Log: filepath.Join(dir, "init.log"), Exited: func(e Exit) { exits <- e }})
	ctx := t.Context()

	pid, err := m.StartProcess(ctx, shell(dir, "sleeper", "echo hello; exec sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.StartProcess(ctx, shell(dir, "sleeper", "true")); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("started twice: %v", err)
	}
	eventually(t, "the log", func() bool {
		log, _ := os.ReadFile(filepath.Join(dir, "sleeper.log"))
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", m.HostPID(pid)))
		return string(log) == "hello\n" && string(comm) == "sleep\n"
	})
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", m.HostPID(pid))); err != nil || string(comm) != "sleep\n" {
		t.Errorf("process %d there is %d here, and %q: %v", pid, m.HostPID(pid), comm, err)
	}
	if err := m.StopProcess(ctx, "sleeper"); err != nil {
		t.Error(err)
	}
	if m.HostPID(pid) != 0 {
		t.Error("a process that ended has a PID")
	}
	if err := m.StopProcess(ctx, "sleeper"); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("stopped twice: %v", err)
	}
	// An orphan is reaped and is nobody's exit.
	if _, err := m.StartProcess(ctx, shell(dir, "parent", "(sleep 0.1; exit 5) & exit 3")); err != nil {
		t.Fatal(err)
	}
	if e := <-exits; e != (Exit{Name: "parent", Status: "exit status 3"}) {
		t.Errorf("got %+v", e)
	}
	if _, err := m.StartProcess(ctx, shell(dir, "killed", "kill -9 $$")); err != nil {
		t.Fatal(err)
	}
	if e := <-exits; e != (Exit{Name: "killed", Status: "signal: killed"}) {
		t.Errorf("got %+v", e)
	}
	if _, err := m.StartProcess(ctx, Process{Name: "none", Argv: []string{"/no/such"}, Log: filepath.Join(dir, "none.log")}); !errorHas(err, "/no/such") {
		t.Errorf("started what is not there: %v", err)
	}
	eventually(t, "the end of the zombies", func() bool { return !strings.Contains(sh(t, m, "cat /proc/[0-9]*/stat"), " Z ") })
}

// eventually waits for what cannot be waited for otherwise.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func errorHas(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }

// serveLate is a process that says something before it says that it serves.
func serveLate() error {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	if _, err := conn.Write([]byte("STATUS=READY=1 soon")); err != nil {
		return err
	}
	time.Sleep(200 * time.Millisecond)
	if err := os.WriteFile("/run/served", nil, 0o644); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("STATUS=now\nREADY=1\n")); err != nil {
		return err
	}
	time.Sleep(time.Hour) // until it is killed
	return nil
}

// TestNotify waits for a process to serve, or to end before.
func TestNotify(t *testing.T) {
	dir := t.TempDir()
	h := newHost(t, dir)
	m := start(t, h, Spec{Name: "m1", Log: filepath.Join(dir, "init.log")})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	late := Process{Name: "late", Argv: []string{self, "serve-late"}, Log: filepath.Join(dir, "late.log"), Notify: true}
	if _, err := m.StartProcess(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.Path("/run/served")); err != nil {
		t.Error("it was taken for ready before it said so")
	}
	fails := shell(dir, "fails", "exit 7")
	fails.Notify = true
	if _, err := m.StartProcess(t.Context(), fails); !errorHas(err, "ended before it served: exit status 7") {
		t.Errorf("got %v", err)
	}
	hangs := shell(dir, "hangs", "sleep 1000")
	hangs.Notify = true
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := m.StartProcess(ctx, hangs); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	// A machine that goes away answers nobody.
	failed := make(chan error)
	hangs.Name = "hangs2"
	go func() {
		_, err := m.StartProcess(t.Context(), hangs)
		failed <- err
	}()
	time.Sleep(50 * time.Millisecond)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errorHas(err, "is gone") {
		t.Errorf("got %v", err)
	}
}

// hostUntilKilled is another program that starts a machine.
func hostUntilKilled(dir string) error {
	h, err := NewHost(config(dir))
	if err != nil {
		return err
	}
	bare, err := h.Start(context.Background(), Spec{Name: "wire", Bare: true, Log: filepath.Join(dir, "init.log")})
	if err != nil {
		return err
	}
	m, err := h.Start(context.Background(), Spec{Name: "m1", Log: filepath.Join(dir, "init.log")})
	if err != nil {
		return err
	}
	if _, err := m.StartProcess(context.Background(), shell(dir, "sleeper", "setsid sleep 1000 & setsid sleep 1000; true")); err != nil {
		return err
	}
	fmt.Println(bare.PID(), m.PID())
	time.Sleep(time.Hour)
	return nil
}

// TestKilled kills the program that started machines: nothing is left but the
// directories of cgroups, and Sweep removes them.
func TestKilled(t *testing.T) {
	require(t)
	dir := t.TempDir()
	c := config(dir)
	if err := os.Mkdir(c.Disks, 0o755); err != nil {
		t.Fatal(err)
	}
	before := mounts(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{asHost + "=" + dir, "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var wire, m1 int
	if _, err := fmt.Sscan(line, &wire, &m1); err != nil {
		t.Fatal(err)
	}
	var pids []int
	eventually(t, "the processes of the machine", func() bool {
		pids = append([]int{wire, m1}, descendants(t, m1)...)
		return len(pids) == 5
	})
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	eventually(t, "the end of all processes", func() bool { return !slices.ContainsFunc(pids, alive) })
	if after := mounts(t); after != before {
		t.Errorf("mounts: %s\nbefore: %s", after, before)
	}
	removed, err := Sweep(c.Record)
	if err != nil || len(removed) < 3 {
		t.Errorf("removed %v: %v", removed, err)
	}
	for _, d := range removed {
		if _, err := os.Stat(d); err == nil {
			t.Errorf("%s is still there", d)
		}
	}
	if again, err := Sweep(c.Record); len(again) > 0 || err != nil {
		t.Errorf("removed again: %v: %v", again, err)
	}
}

// mounts returns the mounts of this process, without the names of network
// namespaces: the tests of other packages, which run at the same time, mount and
// unmount those.
func mounts(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var kept strings.Builder
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) < 5 || !strings.HasPrefix(fields[4], "/run/netns") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// descendants returns the processes below pid. Those that it adopted are among
// them.
func descendants(t *testing.T, pid int) []int {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for _, f := range tasks {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for _, field := range strings.Fields(string(text)) {
			var child int
			if _, err := fmt.Sscan(field, &child); err == nil {
				all = append(append(all, child), descendants(t, child)...)
			}
		}
	}
	return all
}
