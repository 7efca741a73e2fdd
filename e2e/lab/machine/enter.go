package machine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command returns, not started, a program in the namespaces of the process pid:
// in all that a machine has, or in its network namespace only. The program and
// what it starts are killed when ctx ends.
//
// It needs nsenter of util-linux: a program that would enter by itself could not
// be handed out as a command.
func Command(ctx context.Context, pid int, all bool, argv ...string) *exec.Cmd {
	args := []string{"--target", strconv.Itoa(pid), "--net"}
	if all {
		args = append(args, "--mount", "--pid", "--uts", "--ipc", "--cgroup")
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(append(args, "--"), argv...)...)
	if len(argv) == 0 {
		cmd.Err = errors.New("no program to run")
	}
	// To enter a PID namespace is to fork, so the program is a grandchild: only
	// by the group can both be killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second // whatever else holds its output
	return cmd
}

// Dial opens a connection from the network namespace of the process pid.
// address must be literal: names are not looked up there.
func Dial(ctx context.Context, pid int, network, address string) (conn net.Conn, err error) {
	err = inNetworkOf(pid, func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// inNetworkOf runs f on a thread in the network namespace of the process pid.
// Sockets that f opens stay there.
func inNetworkOf(pid int, f func() error) error {
	target, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer target.Close()
	done := make(chan error, 1)
	go func() {
		// A thread that cannot go home stays locked, and ends with the goroutine.
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network namespace of process %d: %w", pid, err)
			return
		}
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
