package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// resultPort is the guest's second serial port.
const resultPort = "/dev/ttyS1"

// InGuest tells whether this process is the first one of a machine.
func InGuest() bool { return os.Getpid() == 1 && os.Args[0] == guestInit }

// Guest is the work of a machine's first process: it runs the programs of the
// plan and switches the machine off. What they leave behind ends with it. It
// does not return.
func Guest() {
	if err := guest(); err != nil {
		// The console, which is all that there may be.
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		// The kernel panics when this process ends, and that ends the machine.
		fmt.Fprintln(os.Stderr, "guest: switch off:", err)
	}
	os.Exit(1)
}

func guest() error {
	if err := mountAll(); err != nil {
		return err
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	t := newTeller(port)
	if err := work(t); err != nil {
		if err := t.tell(event{Kind: failed, Text: err.Error()}); err != nil {
			return err
		}
	}
	if err := t.tell(event{Kind: end}); err != nil {
		return err
	}
	// Wait until all of it is out.
	return unix.IoctlSetInt(int(port.Fd()), unix.TCSBRK, 1)
}

func mountAll() error {
	for _, m := range []struct{ kind, dir, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/tmp", "mode=1777"},
	} {
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

// openPort opens the port for the results, which must arrive as they are
// written.
func openPort() (*os.File, error) {
	port, err := os.OpenFile(resultPort, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	settings, err := unix.IoctlGetTermios(int(port.Fd()), unix.TCGETS)
	if err == nil {
		settings.Oflag &^= unix.OPOST
		err = unix.IoctlSetTermios(int(port.Fd()), unix.TCSETS, settings)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("settings of %s: %w", resultPort, err), port.Close())
	}
	return port, nil
}

// work prepares the machine and runs what the plan says.
func work(t *teller) error {
	text, err := os.ReadFile(guestPlan)
	if err != nil {
		return err
	}
	var p plan
	if err := json.Unmarshal(text, &p); err != nil {
		return err
	}
	for _, setting := range []string{"PATH=/usr/bin", "HOME=/root", "SELVAGE_REQUIRE_PRIVILEGED=1"} {
		name, value, _ := strings.Cut(setting, "=")
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	// It fails if one of the modules is not there, which is no error, and does
	// not say so. What it says is one.
	if out, err := exec.Command("modprobe", append([]string{"-a", "-q"}, p.Modules...)...).CombinedOutput(); err != nil && len(out) > 0 {
		return fmt.Errorf("load modules: %w: %s", err, out)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("loopback device: %w: %s", err, out)
	}
	if err := t.tell(event{Kind: up}); err != nil {
		return err
	}
	return runAll(t, p.Programs)
}

// runAll runs the programs, one after the other.
func runAll(t *teller, programs []Program) error {
	for i, p := range programs {
		if err := t.tell(event{Kind: begin, Program: i}); err != nil {
			return err
		}
		cmd := exec.Command(p.Argv[0], p.Argv[1:]...)
		cmd.Dir = p.Dir
		w := writer{t, i}
		cmd.Stdout, cmd.Stderr = w, w
		// A child of it may keep its output open for longer than it lives.
		cmd.WaitDelay = grace
		err := cmd.Run()
		e := event{Kind: exited, Program: i, Code: cmd.ProcessState.ExitCode()}
		switch {
		case errors.Is(err, exec.ErrWaitDelay):
			e.Text = "a child of it lives on, with its output"
		case err != nil:
			e.Text = err.Error()
		}
		if err := t.tell(e); err != nil {
			return err
		}
	}
	return nil
}
