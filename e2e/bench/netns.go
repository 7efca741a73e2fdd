package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace without a name: only the open file keeps it
// alive, so that nothing is left behind however the program ends.
type Namespace struct {
	file *os.File
}

// NewNamespace makes a network namespace with its loopback up.
func NewNamespace() (*Namespace, error) {
	var ns Namespace
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return fmt.Errorf("open the new network namespace: %w", err)
		}
		ns.file = f
		return nil
	})
	if err != nil {
		return nil, err
	}
	h, err := ns.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find the loopback: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("set the loopback up: %w", err)
	}
	return &ns, nil
}

// FD returns the descriptor of the namespace.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Path is a path by which a child process can enter the namespace, as long as
// this process lives.
func (n *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD())
}

// Close gives the namespace up; the kernel removes it with its last user.
func (n *Namespace) Close() error { return n.file.Close() }

// Do calls f on a thread that is in the namespace. Sockets that f opens stay
// in the namespace and can be used from everywhere.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// Netlink returns a handle for the namespace's links, addresses and routes.
func (n *Namespace) Netlink() (*netlink.Handle, error) {
	var h *netlink.Handle
	err := n.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return h, nil
}

// Sysctl sets kernel parameters of the namespace, named by their path below
// /proc/sys/net.
func (n *Namespace) Sysctl(values map[string]string) error {
	return n.Do(func() error {
		for name, value := range values {
			if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0o600); err != nil {
				return fmt.Errorf("set a sysctl: %w", err)
			}
		}
		return nil
	})
}

// onThread calls f on a thread of its own, which ends with it: nobody else can
// find himself in the namespace that f went to.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // without unlock: the runtime ends the thread
		done <- f()
	}()
	return <-done
}
