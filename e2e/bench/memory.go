package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// MemoryOptions say what Memory measures.
type MemoryOptions struct {
	Shape Shape
	// Agent is the path of the selvage binary. Server is a command that serves
	// the cluster of a shape as an API server does (see Served).
	Agent  string
	Server []string
	// Churn is how long the pods live at Rate events a second.
	Churn time.Duration
	Rate  int
	// Settle is how long the agent is left alone before each reading.
	Settle time.Duration
}

// Served is what the server says on its output once it is ready, as one line
// of JSON. It gets the Shape as one line on its input. For each further line, a
// ChurnOrder, it lets the pods live and then says how many events there were.
// It ends with its input.
type Served struct {
	Pods int `json:"pods"`
	// PodBytes is the mean size of a pod in protobuf.
	PodBytes int `json:"podBytes"`
	Events   int `json:"events,omitempty"`
}

// ChurnOrder tells the server to let pods live.
type ChurnOrder struct {
	Rate   int           `json:"rate"`
	Length time.Duration `json:"length"`
}

// Memory is what a process holds, in KiB, as the kernel says in
// /proc/PID/status (proc_pid_status(5)).
type Memory struct {
	RSS  int `json:"rssKiB"`
	Peak int `json:"peakKiB"` // VmHWM
	Anon int `json:"anonKiB"` // RssAnon: what is not the binary's own file
}

// MemoryResult is what the agent needs.
type MemoryResult struct {
	Shape  Shape  `json:"shape"`
	Server Served `json:"server"`
	// SyncSeconds is from the agent's start until it was ready.
	SyncSeconds float64 `json:"syncSeconds"`
	// Synced is read Settle after that, Churned Settle after the churn.
	Synced  Memory `json:"synced"`
	Churned Memory `json:"churned"`
	// During has the RSS once a second while the churn went on.
	During []int `json:"duringKiB"`
	// Events is how many events the churn was made of.
	Events int `json:"events"`
}

const agentAddress = "127.0.0.1:9808"

// MeasureMemory runs the agent against an API server with the shape's cluster,
// both in processes and in a network namespace of their own.
func MeasureMemory(ctx context.Context, o MemoryOptions) (r MemoryResult, err error) {
	r.Shape = o.Shape
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ns, err := NewNamespace()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	dir, err := os.MkdirTemp("", "bench-policy-")
	if err != nil {
		return r, fmt.Errorf("make a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	kubeconfig := filepath.Join(dir, "kubeconfig")
	server, err := startServer(ctx, ns, append(o.Server, kubeconfig), o.Shape)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	r.Server = server.served

	agent := exec.CommandContext(ctx, "nsenter", "--net="+ns.Path(), o.Agent, "agent",
		"--node-name", Node, "--kubeconfig", kubeconfig, "--http-address", agentAddress, "--log-level", "warn")
	log := &tail{}
	agent.Stderr, agent.Stdout = log, log
	agent.Env = append(os.Environ(), "GOMEMLIMIT=", "GOGC=")
	start := time.Now()
	if err := agent.Start(); err != nil {
		return r, fmt.Errorf("start the agent: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- agent.Wait() }()
	defer func() {
		_ = agent.Process.Kill()
		<-exited
	}()
	if err := awaitReady(ctx, ns, exited); err != nil {
		return r, fmt.Errorf("%w; the agent says: %s", err, log)
	}
	r.SyncSeconds = time.Since(start).Seconds()
	return r, r.observe(ctx, o, server, agent.Process.Pid)
}

func (r *MemoryResult) observe(ctx context.Context, o MemoryOptions, server *server, pid int) (err error) {
	if err := sleep(ctx, o.Settle); err != nil {
		return err
	}
	if r.Synced, err = readMemory(pid); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		events, err := server.churn(ChurnOrder{o.Rate, o.Churn})
		r.Events = events
		done <- err
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for going := true; going; {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
			going = false
		case <-tick.C:
			m, err := readMemory(pid)
			if err != nil {
				return err
			}
			r.During = append(r.During, m.RSS)
		}
	}
	if err := sleep(ctx, o.Settle); err != nil {
		return err
	}
	r.Churned, err = readMemory(pid)
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// awaitReady waits until the agent's /readyz says yes.
func awaitReady(ctx context.Context, ns *Namespace, exited chan error) error {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = ns.Do(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}}
	defer client.CloseIdleConnections()
	deadline := time.Now().Add(2 * time.Minute)
	said := "nothing"
	for time.Now().Before(deadline) {
		select {
		case err := <-exited:
			exited <- err
			return fmt.Errorf("the agent ended: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+agentAddress+"/readyz", nil)
		if err != nil {
			return fmt.Errorf("make a request: %w", err)
		}
		resp, err := client.Do(req)
		if err != nil {
			continue // it does not listen yet
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		if err := resp.Body.Close(); err != nil {
			return fmt.Errorf("read /readyz: %w", err)
		}
		if resp.StatusCode == http.StatusOK {
			return nil
		}
		said = string(body)
	}
	return fmt.Errorf("the agent was not ready after two minutes: /readyz says %q", said)
}

// readMemory reads what the process holds. nsenter replaces itself by the
// command, so that its number is that of the command.
func readMemory(pid int) (m Memory, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, fmt.Errorf("read the agent's memory: %w", err)
	}
	fields := map[string]*int{"VmRSS": &m.RSS, "VmHWM": &m.Peak, "RssAnon": &m.Anon}
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		into := fields[name]
		if into == nil {
			continue
		}
		if *into, err = strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB")); err != nil {
			return m, fmt.Errorf("read the agent's memory: %w", err)
		}
	}
	if m.RSS == 0 || m.Peak == 0 {
		return m, errors.New("read the agent's memory: the process has none")
	}
	return m, nil
}

// server is the process that stands in for the API server.
type server struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	served Served
}

func startServer(ctx context.Context, ns *Namespace, command []string, s Shape) (*server, error) {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + ns.Path()}, command...)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the API server: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the API server: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the API server: %w", err)
	}
	srv := &server{cmd: cmd, in: in, out: bufio.NewReader(out)}
	if srv.served, err = srv.ask(s); err != nil {
		return nil, errors.Join(err, srv.stop())
	}
	return srv, nil
}

// ask sends one line and waits for one.
func (s *server) ask(order any) (answer Served, err error) {
	if err := json.NewEncoder(s.in).Encode(order); err != nil {
		return answer, fmt.Errorf("tell the API server: %w", err)
	}
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		return answer, fmt.Errorf("hear from the API server: %w", err)
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return answer, fmt.Errorf("understand the API server: %w", err)
	}
	return answer, nil
}

func (s *server) churn(o ChurnOrder) (int, error) {
	answer, err := s.ask(o)
	return answer.Events, err
}

func (s *server) stop() error {
	err := s.in.Close()
	if werr := s.cmd.Wait(); werr != nil {
		err = errors.Join(err, fmt.Errorf("the API server: %w", werr))
	}
	return err
}

// tail keeps the last of what was written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	if n := len(t.text) - 4096; n > 0 {
		t.text = t.text[n:]
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text))
}
