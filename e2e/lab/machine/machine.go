package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Spec says what a machine is.
type Spec struct {
	// Name is its host name, and what its disk and cgroups are called.
	Name string
	// Bare machines have only a network namespace: no processes can be started
	// there.
	Bare bool
	// Log is the file that its init's errors are added to.
	Log string
	// Exited is called when a process ended that was not told to. It must not
	// wait for the machine.
	Exited func(Exit)
}

// Machine is a machine that was started. It is safe for concurrent use.
type Machine struct {
	spec    Spec
	cgroups cgroups
	cmd     *exec.Cmd
	gone    chan struct{} // closed when all its processes have ended

	mu      sync.Mutex
	stdin   io.WriteCloser
	last    int
	waiting map[int]chan reply
}

// Start starts a machine. It must be closed. Its disk is what the machine of
// that name before it left.
func (h *Host) Start(ctx context.Context, s Spec) (*Machine, error) {
	m := &Machine{spec: s, gone: make(chan struct{}), waiting: map[int]chan reply{}}
	err := h.start(ctx, m)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start machine %s: %w", s.Name, err), m.Close())
	}
	return m, nil
}

func (h *Host) start(ctx context.Context, m *Machine) error {
	b := boot{Name: m.spec.Name}
	verb, flags := verbBare, uintptr(syscall.CLONE_NEWNET)
	if !m.spec.Bare {
		verb, flags = verbEnter, syscall.CLONE_NEWNET|syscall.CLONE_NEWNS|syscall.CLONE_NEWPID|syscall.CLONE_NEWUTS|syscall.CLONE_NEWIPC
		var err error
		if b.Disk, err = h.disk(m.spec.Name); err != nil {
			return err
		}
		for _, g := range h.hierarchies {
			b.Hierarchies = append(b.Hierarchies, g.name)
		}
		m.cgroups, err = makeCgroups(h.hierarchies, h.config.Cgroup+m.spec.Name, h.config.Record)
		if err != nil {
			return err
		}
	}
	args := append([]string{filepath.Base(os.Args[0])}, h.config.Self...)
	// The program's file may be replaced while the machines are up.
	m.cmd = &exec.Cmd{Path: "/proc/self/exe", Args: append(args, verb, m.spec.Name)}
	m.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	// A Ctrl-C is meant for this program; the machines follow in good order.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Setsid: true}
	if err := h.fork(m); err != nil {
		return err
	}
	if m.spec.Bare {
		return nil
	}
	// The init waits for this byte in its first life, before it has a cgroup
	// namespace: the root of the namespace is the cgroup that it is in then.
	if err := m.cgroups.move(m.PID()); err != nil {
		return err
	}
	if _, err := m.stdin.Write([]byte{'\n'}); err != nil {
		return err
	}
	_, err := m.ask(ctx, request{Op: opBoot, Boot: &b})
	return err
}

// fork starts the machine's first process on the thread that has the disks.
func (h *Host) fork(m *Machine) error {
	log, err := os.OpenFile(m.spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	m.cmd.Stderr = log
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		return err
	}
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := h.do(m.cmd.Start); err != nil {
		return err
	}
	go m.follow(stdout)
	return nil
}

// follow reads what the init says until it ends.
func (m *Machine) follow(stdout io.Reader) {
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		var r reply
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			continue // by its end, the init was killed in the middle of a line
		}
		if r.Exit != nil {
			if m.spec.Exited != nil {
				m.spec.Exited(*r.Exit)
			}
			continue
		}
		m.mu.Lock()
		if c, ok := m.waiting[r.ID]; ok {
			c <- r
			delete(m.waiting, r.ID)
		}
		m.mu.Unlock()
	}
	// The init was killed, or ended by itself and wrote why to its log.
	_ = m.cmd.Wait()
	close(m.gone)
}

// ask sends a request and waits for the answer.
func (m *Machine) ask(ctx context.Context, r request) (reply, error) {
	answer := make(chan reply, 1)
	m.mu.Lock()
	m.last++
	r.ID = m.last
	m.waiting[r.ID] = answer
	err := json.NewEncoder(m.stdin).Encode(r)
	m.mu.Unlock()
	if err != nil {
		return reply{}, fmt.Errorf("machine %s: %w", m.spec.Name, err)
	}
	select {
	case a := <-answer:
		if a.Error != "" {
			return a, errors.New(a.Error)
		}
		return a, nil
	case <-m.gone:
		return reply{}, fmt.Errorf("machine %s is gone; %s may tell why", m.spec.Name, m.spec.Log)
	case <-ctx.Done():
		return reply{}, context.Cause(ctx)
	}
}

// StartProcess starts a process and, if it notifies, waits until it serves. It
// returns its PID as the machine sees it.
func (m *Machine) StartProcess(ctx context.Context, p Process) (int, error) {
	a, err := m.ask(ctx, request{Op: opStart, Process: &p})
	return a.PID, err
}

// StopProcess kills a process, and waits for its end. What it started itself
// stays, as it would on any machine.
func (m *Machine) StopProcess(ctx context.Context, name string) error {
	_, err := m.ask(ctx, request{Op: opStop, Name: name})
	return err
}

// PID is that of the machine's first process, as this program sees it.
func (m *Machine) PID() int { return m.cmd.Process.Pid }

// Gone is closed when the machine has ended.
func (m *Machine) Gone() <-chan struct{} { return m.gone }

// Command returns, not started, a program in the machine's namespaces.
func (m *Machine) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return Command(ctx, m.PID(), !m.spec.Bare, argv...)
}

// Path returns where this program finds a file of the machine.
func (m *Machine) Path(file string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", m.PID()), file)
}

// WriteFile writes a file of the machine, with the directories above it.
func (m *Machine) WriteFile(file string, data []byte) error {
	path := m.Path(file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// Others may wait for the file: it must not be there half-written.
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Close kills all that runs on the machine, at once, and removes its cgroups.
// Its disk stays.
func (m *Machine) Close() error {
	if m.cmd != nil && m.cmd.Process != nil {
		_ = m.cmd.Process.Kill() // it may have ended
		<-m.gone
	}
	return m.cgroups.remove()
}

// HostPID returns the PID that this program sees of a process that the machine's
// init started and sees as pid; 0 if it is not there.
func (m *Machine) HostPID(pid int) int {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", m.PID()))
	if err != nil {
		return 0
	}
	for _, list := range lists {
		children, err := os.ReadFile(list)
		if err != nil {
			continue // the thread ended
		}
		for child := range strings.FieldsSeq(string(children)) {
			// NSpid: 4711 42, from the outer namespace to the inner.
			status, err := os.ReadFile("/proc/" + child + "/status")
			_, after, ok := strings.Cut(string(status), "\nNSpid:")
			line, _, _ := strings.Cut(after, "\n")
			pids := strings.Fields(line)
			if err == nil && ok && len(pids) > 0 && pids[len(pids)-1] == strconv.Itoa(pid) {
				n, _ := strconv.Atoi(child) // the kernel's own words
				return n
			}
		}
	}
	return 0
}
