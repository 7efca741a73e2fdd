package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// heard is what a machine told, a line each.
type heard struct{ lines []string }

func (h *heard) add(format string, args ...any) {
	h.lines = append(h.lines, fmt.Sprintf(format, args...))
}

// standIn is a machine whose qemu is a script, in a directory of its own.
func standIn(t *testing.T, text string) (*machine, *heard, string) {
	t.Helper()
	qemu := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(qemu, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	h := &heard{}
	return &machine{dir: t.TempDir(), kernel: &Kernel{dir: "/kernel"}, programs: []Program{{Argv: []string{"one"}}, {Argv: []string{"two"}}}, Options: Options{
		Accelerator: TCG, Limit: time.Minute,
		Slow:   func(why error) { h.add("slow: %v", why) },
		Up:     func() { h.add("up") },
		Begin:  func(program int) { h.add("begin %d", program) },
		Output: func(program int, text string) { h.add("%d: %s", program, text) },
		Exited: func(program int, err error) { h.add("exited %d: %v", program, err) },
	}}, h, qemu
}

func TestMachine(t *testing.T) {
	m, h, qemu := standIn(t, `echo "$*" | grep -q -- '-kernel /kernel/vmlinuz -initrd initramfs.cpio .*-accel tcg' || exit 1
cat <<'END'
{"Kind":"up"}
{"Kind":"begin"}
{"Kind":"written","Text":"one\ntwo"}
{"Kind":"exited"}
{"Kind":"begin","Program":1}
{"Kind":"exited","Program":1,"Code":3}
{"Kind":"end","Code":6}
END`)
	if err := m.boot(t.Context(), qemu); err != nil {
		t.Fatal(err)
	}
	want := "up|begin 0|0: one\ntwo|exited 0: <nil>|begin 1|exited 1: exit status 3"
	if got := strings.Join(h.lines, "|"); got != want {
		t.Errorf("heard %q, want %q", got, want)
	}
}

func TestMachineFails(t *testing.T) {
	for _, tt := range []struct{ name, script, want string }{
		{"panic", `echo '{"Kind":"up"}'; printf 'Kernel panic\r\nCPU 0\r\n' >console.log`,
			"the machine went down before it had told everything\nthe end of its console:\n\tKernel panic\n\tCPU 0"},
		{"half a line", `printf '{"Kind":'`, "the machine went down"},
		{"garbled", "echo '{'; exec sleep 600", "garbled"},
		{"something lost", `echo '{"Kind":"end","Code":7}'; exec sleep 600`, "told 7 things, and 0 arrived"},
		{"guest", `echo '{"Kind":"failed","Text":"no loopback"}'; exec sleep 600`, "in the machine: no loopback"},
		{"qemu", "echo no such machine >&2; exit 1", "qemu: exit status 1\n\tno such machine"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, _, qemu := standIn(t, tt.script)
			if err := m.boot(t.Context(), qemu); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// TestMachineHangs is about one that no longer says anything.
func TestMachineHangs(t *testing.T) {
	m, _, qemu := standIn(t, `echo '{"Kind":"up"}'; echo '{"Kind":"begin"}'; echo stuck >console.log; sleep 600 & wait`)
	m.Limit = 50 * time.Millisecond
	began := time.Now()
	m.Begin = func(int) { m.watchdog.Reset(m.Limit) } // without grace
	err := m.boot(t.Context(), qemu)
	if err == nil || !strings.Contains(err.Error(), "the machine hangs: one does not end, which may take 50ms\nthe end of its console:\n\tstuck") {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("took %v", took)
	}
}

// TestMachineInterrupted leaves no process behind.
func TestMachineInterrupted(t *testing.T) {
	m, _, qemu := standIn(t, `trap '' INT TERM; echo '{"Kind":"up"}'; sleep 600 & echo $! >pid.new; mv pid.new pid; wait`)
	ctx, cancel := context.WithCancel(t.Context())
	m.Up = func() {
		for !exists(filepath.Join(m.dir, "pid")) {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}
	if err := m.boot(ctx, qemu); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	pid, err := os.ReadFile(filepath.Join(m.dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("a child of it goes on")
}

// TestFind emulates the processors where KVM is there and does not work, or is
// not there.
func TestFind(t *testing.T) {
	m, h, qemu := standIn(t, `case "$*" in *"-accel kvm"*) echo KVM internal error >&2; exec sleep 600;; esac
echo '{"Kind":"up"}'; echo '{"Kind":"end","Code":1}'`)
	m.Accelerator = Auto
	if err := m.boot(t.Context(), qemu); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(h.lines, "|"); got != "slow: KVM does not work here|up" && got != "slow: stat /dev/kvm: no such file or directory|up" {
		t.Errorf("heard %q", got)
	}
}

func TestRunWithoutQemu(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("TMPDIR", t.TempDir())
	err := Run(t.Context(), &Kernel{}, nil, Options{})
	if err == nil || !strings.Contains(err.Error(), "apt-get install qemu-system-x86") {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left %v (%v)", left, err)
	}
}

// TestRunAll is the guest's side.
func TestRunAll(t *testing.T) {
	var told bytes.Buffer
	g := newTeller(&told)
	dir := t.TempDir()
	if err := runAll(g, []Program{
		{Dir: dir, Argv: []string{"sh", "-c", "pwd; echo oops >&2; exit 3"}},
		{Dir: dir, Argv: []string{"no-such-program"}},
		{Dir: dir, Argv: []string{"sh", "-c", "kill -9 $$"}},
	}); err != nil {
		t.Fatal(err)
	}
	if err := g.tell(event{Kind: end}); err != nil {
		t.Fatal(err)
	}
	var text string
	var failures []string
	if err := readEvents(&told, func(e event) error {
		switch e.Kind {
		case written:
			text += e.Text
		case exited:
			failures = append(failures, e.failure().Error())
		case up, begin, failed, end:
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := dir + "\noops\n"; text != want {
		t.Errorf("wrote %q, want %q", text, want)
	}
	want := `exit status 3|exec: "no-such-program": executable file not found in $PATH|signal: killed`
	if got := strings.Join(failures, "|"); got != want {
		t.Errorf("failures %q, want %q", got, want)
	}
}
