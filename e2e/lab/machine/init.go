package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// The lives of a machine's first process, by the argument of Main.
const (
	verbBare  = "bare"  // of a machine that is a network namespace only
	verbEnter = "enter" // until it has a cgroup namespace
	verbInit  = "init"  // from then on
)

// Main is the first process of a machine. args are the arguments that follow
// Config.Self. It returns when the program that started it is gone, or with the
// reason why this cannot become a machine.
func Main(args []string) error {
	if len(args) != 2 {
		return errors.New("a machine is started by its host only")
	}
	switch args[0] {
	case verbBare:
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	case verbEnter:
		return enter(args[1])
	case verbInit:
		return newInit(os.Stdout).serve(os.Stdin)
	}
	return fmt.Errorf("a machine has no %q", args[0])
}

// enter waits until the process was moved into its cgroups, makes a cgroup
// namespace whose root they are, and goes on as verbInit.
func enter(name string) error {
	var moved [1]byte
	if _, err := os.Stdin.Read(moved[:]); err != nil {
		return fmt.Errorf("the host went away: %w", err)
	}
	// The namespace is that of a thread, and of what it executes.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("cgroup namespace: %w", err)
	}
	argv := append(os.Args[:len(os.Args)-2:len(os.Args)-2], verbInit, name)
	return fmt.Errorf("execute itself again: %w", syscall.Exec("/proc/self/exe", argv, os.Environ()))
}

// initer is the state of a machine's init.
type initer struct {
	writing sync.Mutex
	out     *json.Encoder // guarded by writing

	// mu is held while a process is forked or reaped: nobody may reap it before
	// it is known here.
	mu        sync.Mutex
	processes map[string]*process // those that run
}

func newInit(out io.Writer) *initer {
	return &initer{out: json.NewEncoder(out), processes: map[string]*process{}}
}

// serve does what it is told until there is nobody to tell.
func (i *initer) serve(in io.Reader) error {
	// Signals would end this process and with it the machine: only the host may
	// do that. They are caught, not ignored, because that is inherited.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	go func() {
		for s := range signals {
			if s == syscall.SIGCHLD {
				i.reap()
			}
		}
	}()
	requests := json.NewDecoder(in)
	for {
		var r request
		err := requests.Decode(&r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		go i.handle(r)
	}
}

func (i *initer) handle(r request) {
	answer := reply{ID: r.ID}
	var err error
	switch {
	case r.Op == opBoot && r.Boot != nil:
		err = r.Boot.run()
	case r.Op == opStart && r.Process != nil:
		answer.PID, err = i.start(*r.Process)
	case r.Op == opStop:
		err = i.stop(r.Name)
	default:
		err = fmt.Errorf("unknown request %q", r.Op)
	}
	if err != nil {
		answer.Error = err.Error()
	}
	i.tell(answer)
}

// tell writes a line. If nobody reads, the end is near.
func (i *initer) tell(r reply) {
	i.writing.Lock()
	defer i.writing.Unlock()
	_ = i.out.Encode(r)
}

// reap takes note of all processes that ended. Orphans come to the first process
// of their PID namespace, so there are more than those that it started.
func (i *initer) reap() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		for name, p := range i.processes {
			if p.pid == pid {
				delete(i.processes, name)
				p.end(status)
				if !p.stopped {
					go i.tell(reply{Exit: &Exit{Name: name, Status: p.status}})
				}
			}
		}
	}
}
