package machine

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// notifyDir has the sockets by which processes tell that they serve.
const notifyDir = "/run/notify"

// process is one that runs.
type process struct {
	pid   int
	ended chan struct{}
	// status is how it ended; set before ended is closed.
	status string
	// stopped says that it was told to end. Guarded by initer.mu.
	stopped bool
}

// end notes how the process ended.
func (p *process) end(s syscall.WaitStatus) {
	switch {
	case s.Signaled():
		p.status = "signal: " + s.Signal().String()
	default:
		p.status = fmt.Sprintf("exit status %d", s.ExitStatus())
	}
	close(p.ended)
}

// start starts a process and, if it notifies, waits until it serves.
func (i *initer) start(s Process) (int, error) {
	if len(s.Argv) == 0 {
		return 0, fmt.Errorf("process %s: no program", s.Name)
	}
	var ready <-chan struct{}
	if s.Notify {
		l, err := listenReady(s.Name)
		if err != nil {
			return 0, fmt.Errorf("process %s: %w", s.Name, err)
		}
		defer l.close()
		s.Env = append(slices.Clone(s.Env), "NOTIFY_SOCKET="+l.path)
		ready = l.ready
	}
	p, err := i.fork(s)
	if err != nil {
		return 0, fmt.Errorf("process %s: %w", s.Name, err)
	}
	if !s.Notify {
		return p.pid, nil
	}
	select {
	case <-ready:
		return p.pid, nil
	case <-p.ended:
		return 0, fmt.Errorf("process %s ended before it served: %s", s.Name, p.status)
	}
}

// fork starts a process that is known from its first moment.
func (i *initer) fork(s Process) (*process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	if err := os.MkdirAll(filepath.Dir(s.Log), 0o755); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, ok := i.processes[s.Name]; ok {
		return nil, errors.New("it runs already")
	}
	pid, err := syscall.ForkExec(s.Argv[0], s.Argv, &syscall.ProcAttr{
		Dir: "/", Env: s.Env,
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, &os.PathError{Op: "execute", Path: s.Argv[0], Err: err}
	}
	p := &process{pid: pid, ended: make(chan struct{})}
	i.processes[s.Name] = p
	return p, nil
}

// stop kills a process and waits for its end.
func (i *initer) stop(name string) error {
	i.mu.Lock()
	p, ok := i.processes[name]
	if ok {
		p.stopped = true
		// It cannot have been reaped: that needs the lock.
		if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
			i.mu.Unlock()
			return fmt.Errorf("kill process %s: %w", name, err)
		}
	}
	i.mu.Unlock()
	if !ok {
		return fmt.Errorf("process %s does not run", name)
	}
	<-p.ended
	return nil
}

// readiness waits for a process to tell that it serves.
type readiness struct {
	path  string
	conn  *net.UnixConn
	ready chan struct{}
}

func listenReady(name string) (*readiness, error) {
	if err := os.MkdirAll(notifyDir, 0o755); err != nil {
		return nil, err
	}
	r := &readiness{path: filepath.Join(notifyDir, name), ready: make(chan struct{})}
	if err := os.Remove(r.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var err error
	if r.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: r.path, Net: "unixgram"}); err != nil {
		return nil, err
	}
	go r.read()
	return r, nil
}

// read waits for the word. Processes say other things, too.
func (r *readiness) read() {
	buf := make([]byte, 4096)
	for {
		n, err := r.conn.Read(buf)
		if err != nil {
			return
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
			close(r.ready)
			return
		}
	}
}

func (r *readiness) close() { _ = r.conn.Close() } // nothing is written to it
