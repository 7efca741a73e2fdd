package artifacts

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// grace is the time between asking a program to end and ending it.
const grace = 3 * time.Second

// tail is how many lines of a compiler's output an error shows.
const tail = 25

// command is a program to run.
type command struct {
	dir  string
	env  []string // on top of our own
	argv []string
	// line is called with each line that goes to standard error, and says
	// whether it was understood. The last ones that were not are the error's.
	line func(string) bool
}

// temporary has the program keep its temporary files in dir, which is made. The
// Go tool leaves them behind if it is interrupted: the caller removes them.
func (c command) temporary(dir string) (command, error) {
	c.env = append(slices.Clone(c.env), "TMPDIR="+dir, "GOTMPDIR="+dir)
	return c, os.MkdirAll(dir, 0o755)
}

// run runs the program and returns what it wrote to standard output. If ctx
// ends, so do the program and all that it started: first by an interrupt, which
// lets it clean up, and then for good.
func (c command) run(ctx context.Context) (stdout string, err error) {
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	cmd.Dir, cmd.Env = c.dir, append(os.Environ(), c.env...)
	// A group of its own: a terminal's Ctrl-C reaches us alone, and one signal
	// of ours reaches all of them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = grace
	var out strings.Builder
	cmd.Stdout = &out
	r, w := io.Pipe()
	cmd.Stderr = w
	last := make(chan []string)
	go func() { last <- c.read(r) }()
	err = cmd.Run()
	if cmd.Process != nil && ctx.Err() != nil {
		// What did not mind the interrupt.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	_ = w.Close() // never fails
	lines := <-last
	if err != nil {
		return "", fmt.Errorf("%s: %w%s", strings.Join(c.short(), " "), err, indent(lines))
	}
	return out.String(), nil
}

// read hands the lines of r to c.line and returns the last ones it did not take.
func (c command) read(r io.Reader) []string {
	var last []string
	lines := bufio.NewReader(r)
	for {
		text, err := lines.ReadString('\n')
		text = strings.TrimRight(text, "\n")
		if text != "" && (c.line == nil || !c.line(text)) {
			if len(last) == tail {
				last = last[1:]
			}
			last = append(last, text)
		}
		if errors.Is(err, io.EOF) {
			return last
		}
		if err != nil {
			return append(last, err.Error())
		}
	}
}

// short are the first words of a command: of the Go tool's the rest is flags and
// packages.
func (c command) short() []string { return c.argv[:min(2, len(c.argv))] }

func indent(lines []string) string {
	var s strings.Builder
	for _, l := range lines {
		s.WriteString("\n\t" + l)
	}
	return s.String()
}
