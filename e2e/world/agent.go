package world

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// AgentAddress is where each agent serves its metrics, inside its node.
const AgentAddress = "127.0.0.1:9470"

// agentPatience is how long an agent may take to become ready or to program a
// change, on a machine that has other things to do.
const agentPatience = 20 * time.Second

// Agent is `selvage agent` on a node, which reads manifests. It is for one
// goroutine.
type Agent struct {
	Node *Node
	// Binary is the program, Manifests the directory that it reads.
	Binary, Manifests string
	// Args are more flags for it.
	Args []string
	// Log is the file that the agent writes to, over all its lives.
	Log string

	cmd  *exec.Cmd
	done chan error
}

// Start starts the agent. It dies with this process, but not by a Ctrl-C that
// is meant for it.
func (a *Agent) Start() error {
	out, err := os.OpenFile(a.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	a.cmd = exec.Command(a.Binary, append([]string{"agent", "--node-name", a.Node.Name, "--manifests", a.Manifests, "--http-address", AgentAddress}, a.Args...)...)
	a.cmd.Stdout, a.cmd.Stderr = out, out
	// In a process group of its own, Ctrl-C reaches the demo alone.
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := a.Node.Start(a.cmd); err != nil {
		return fmt.Errorf("start the agent of %s: %w", a.Node.Name, err)
	}
	cmd, done := a.cmd, make(chan error, 1)
	a.done = done
	go func() { done <- cmd.Wait() }()
	return nil
}

// Kill ends the agent the hard way and waits until it is gone.
func (a *Agent) Kill() error {
	if a.cmd == nil {
		return nil
	}
	err := a.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("kill the agent of %s: %w", a.Node.Name, err)
	}
	<-a.done
	a.cmd = nil
	return nil
}

// get reads a page from the agent, from inside its node.
func (a *Agent) get(ctx context.Context, path string) (status int, body string, err error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return a.Node.DialTCP(ctx, netip.Addr{}, netip.MustParseAddrPort(address))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+AgentAddress+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// until asks the agent again and again until ok says yes to a page.
func (a *Agent) until(ctx context.Context, what, path string, ok func(status int, body string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, agentPatience)
	defer cancel()
	var last string
	for {
		status, body, err := a.get(ctx, path)
		if err == nil && ok(status, body) {
			return nil
		}
		if err == nil {
			last = fmt.Sprintf("%d %s", status, firstLine(body))
		} else if ctx.Err() == nil {
			last = err.Error()
		}
		select {
		case err := <-a.done:
			a.cmd = nil
			if err == nil {
				err = errors.New("exit code 0")
			}
			return fmt.Errorf("the agent of %s ended: %w", a.Node.Name, err)
		case <-ctx.Done():
			return fmt.Errorf("the agent of %s is not %s after %v: %s", a.Node.Name, what, agentPatience, last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// WaitReady waits until the agent says that everything is programmed.
func (a *Agent) WaitReady(ctx context.Context) error {
	return a.until(ctx, "ready", "/readyz", func(status int, _ string) bool { return status == http.StatusOK })
}

// WaitMetric waits until a metric, with the labels as they are written, has a value.
func (a *Agent) WaitMetric(ctx context.Context, series string, value int) error {
	return a.until(ctx, fmt.Sprintf("at %s %d", series, value), "/metrics", func(_ int, body string) bool {
		return metric(body, series) == value
	})
}

// metric returns the value of a metric, or -1.
func metric(page, name string) int {
	lines := bufio.NewScanner(strings.NewReader(page))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				return int(v)
			}
		}
	}
	return -1
}

// LogTail returns the last lines of the agent's log.
func (a *Agent) LogTail(n int) []string {
	data, err := os.ReadFile(a.Log)
	if err != nil {
		return []string{err.Error()}
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return lines[max(0, len(lines)-n):]
}
