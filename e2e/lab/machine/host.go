package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Config is what the machines of a host have in common.
type Config struct {
	// Disks is an empty directory that the disks are mounted on, where only the
	// machines see them.
	Disks string
	// Size bounds the disks together, as tmpfs takes it: "6g".
	Size string
	// Record is the file that the cgroups are written down in.
	Record string
	// Cgroup begins the names of the machines' cgroups.
	Cgroup string
	// Self is the command line that leads to Main in this program, without the
	// program itself.
	Self []string
}

// Host starts machines. It is safe for concurrent use.
type Host struct {
	config      Config
	hierarchies []hierarchy
	// work is done by a thread whose mount namespace has the disks; what it
	// forks has them, too.
	work  chan func()
	ended chan struct{}
}

// NewHost makes a host that must be closed.
func NewHost(c Config) (*Host, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	h := &Host{config: c, hierarchies: hs, work: make(chan func()), ended: make(chan struct{})}
	ready := make(chan error)
	go OnThread(func() { h.serve(ready) })
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("a mount namespace for the disks: %w", err)
	}
	return h, nil
}

// serve is the thread's life.
func (h *Host) serve(ready chan<- error) {
	defer close(h.ended)
	if err := h.mountDisks(); err != nil {
		ready <- err
		return
	}
	close(ready)
	for f := range h.work {
		f()
	}
}

// OnThread runs f on a thread that ends with it, and with it the namespaces that
// f gave the thread and nobody else is in.
func OnThread(f func()) {
	done := make(chan struct{})
	go func() {
		// A thread that is never unlocked ends with its goroutine.
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// But not the first one: keep it busy while another is found.
			OnThread(f)
			runtime.UnlockOSThread()
		} else {
			f()
		}
		close(done)
	}()
	<-done
}

// mountDisks gives the calling thread a mount namespace with the disks.
func (h *Host) mountDisks() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount / private", err)
	}
	err := unix.Mount("disks", h.config.Disks, "tmpfs", 0, "mode=755,size="+h.config.Size)
	return os.NewSyscallError("mount tmpfs", err)
}

// do runs f on the thread that has the disks.
func (h *Host) do(f func() error) error {
	err := errors.New("the host of the machines is closed")
	done := make(chan struct{})
	select {
	case h.work <- func() { err = f(); close(done) }:
		<-done
	case <-h.ended:
	}
	return err
}

// Close removes the disks. All machines must be closed, and none be started any
// more.
func (h *Host) Close() error {
	close(h.work)
	<-h.ended
	return nil
}

// disk returns the directory of a machine's disk, and makes it if it is new.
func (h *Host) disk(name string) (string, error) {
	dir := filepath.Join(h.config.Disks, name)
	err := h.do(func() error {
		for _, d := range diskDirs() {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
				return err
			}
		}
		return nil
	})
	return dir, err
}
