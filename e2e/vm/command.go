package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// grace is the time that a program has to end after it was told to.
const grace = 3 * time.Second

// Of a program's output, and of a console, an error shows so many lines. What a
// kernel says as it crashes is long, with the reason at its beginning.
const (
	outputTail  = 25
	consoleTail = 70
)

// output runs a program in a directory and returns what it wrote to standard
// output. What it wrote to standard error is in the error.
func output(ctx context.Context, dir string, argv ...string) (string, error) {
	cmd := command(ctx, dir, argv...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			// What a program says that was ended is no reason.
			return "", context.Cause(ctx)
		}
		return "", fmt.Errorf("%s: %w%s", strings.Join(argv[:min(2, len(argv))], " "), err, lastLines(errs.String(), outputTail))
	}
	return out.String(), nil
}

// command is a program that ends, with all that it started, when ctx does.
func command(ctx context.Context, dir string, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// apt is read by this program, not by people.
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C")
	// A group of its own: a terminal's Ctrl-C reaches us alone, and one signal
	// of ours reaches all of them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = grace
	return cmd
}

// lastLines are the last n of a text, each indented on a line of its own.
func lastLines(text string, n int) string {
	text = strings.TrimRight(strings.ReplaceAll(text, "\r", ""), "\n")
	if text == "" {
		return ""
	}
	lines := strings.Split(text, "\n")
	return "\n\t" + strings.Join(lines[max(0, len(lines)-n):], "\n\t")
}
