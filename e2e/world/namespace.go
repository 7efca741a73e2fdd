package world

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Namespace is a network namespace. It is safe for concurrent use.
type Namespace struct {
	// ID is the name under /run/netns, as `ip netns exec` takes it.
	ID string

	handle netns.NsHandle
	nl     *netlink.Handle

	arrived *arrivals

	mu        sync.Mutex
	listeners map[listenerKey]io.Closer
}

// origin is the namespace that the process was started in, and to which a
// thread goes back after a visit.
var origin = sync.OnceValues(netns.Get)

// newNamespace makes a namespace whose loopback is up and whose IPv6 addresses
// are usable at once (no duplicate address detection, no router discovery).
func newNamespace(id string, arrived *arrivals) (*Namespace, error) {
	home, err := origin()
	if err != nil {
		return nil, fmt.Errorf("own network namespace: %w", err)
	}
	n := &Namespace{ID: id, handle: netns.None(), arrived: arrived, listeners: map[listenerKey]io.Closer{}}
	err = onThread(home, func() error {
		n.handle, err = netns.NewNamed(id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", id, err)
	}
	if n.nl, err = netlink.NewHandleAt(n.handle); err != nil {
		return nil, errors.Join(fmt.Errorf("netlink in %s: %w", id, err), n.Close())
	}
	for _, s := range []string{
		"net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0",
		"net.ipv6.conf.default.accept_ra=0", "net.ipv6.conf.default.router_solicitations=0",
		"net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
		"net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0",
		"net.ipv4.ping_group_range=0 2147483647",
	} {
		if err := n.Sysctl(s); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	if err := n.up("lo"); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Close removes the namespace. The kernel frees it, with all links in it, once
// the last socket and process in it is gone.
func (n *Namespace) Close() error {
	n.StopServing()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nl != nil {
		n.nl.Close()
		n.nl = nil
	}
	if !n.handle.IsOpen() {
		return nil
	}
	err := n.handle.Close()
	return errors.Join(err, netns.DeleteNamed(n.ID))
}

// FD is the namespace's file descriptor, valid until Close.
func (n *Namespace) FD() int { return int(n.handle) }

// Netlink is a route netlink handle inside the namespace.
func (n *Namespace) Netlink() *netlink.Handle { return n.nl }

// Do runs f on a thread that is inside the namespace. What f opens stays
// inside; f must not start goroutines that expect to be.
func (n *Namespace) Do(f func() error) error {
	home, err := origin()
	if err != nil {
		return err
	}
	return onThread(home, func() error {
		if err := netns.Set(n.handle); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.ID, err)
		}
		return f()
	})
}

// onThread runs f on a thread of its own and brings the thread home. A thread
// that cannot go home stays locked, which makes the runtime throw it away.
func onThread(home netns.NsHandle, f func() error) error {
	runtime.LockOSThread()
	err := f()
	if herr := netns.Set(home); herr != nil {
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", herr))
	}
	runtime.UnlockOSThread()
	return err
}

// Sysctl sets "name=value", a setting under net.
func (n *Namespace) Sysctl(setting string) error {
	name, value, _ := strings.Cut(setting, "=")
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	// /proc/sys/net shows the namespace of the thread that opens it.
	err := n.Do(func() error { return os.WriteFile(path, []byte(value), 0o644) })
	if err != nil {
		return fmt.Errorf("sysctl %s in %s: %w", setting, n.ID, err)
	}
	return nil
}

// Start starts a program inside the namespace. It dies with this process.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// A child inherits the namespace of the thread that forks it.
	return n.Do(cmd.Start)
}

// Run runs a program inside the namespace and returns its standard output. The
// error carries what the program wrote to standard error.
func (n *Namespace) Run(ctx context.Context, name string, args ...string) (string, error) {
	return n.run(ctx, "", name, args...)
}

// NFT loads a script with `nft -f`: one transaction.
func (n *Namespace) NFT(ctx context.Context, script string) error {
	_, err := n.run(ctx, script, "nft", "-f", "-")
	return err
}

func (n *Namespace) run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := n.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("%s %s in %s: %w: %s", name, strings.Join(args, " "), n.ID, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

func (n *Namespace) up(link string) error {
	l, err := n.nl.LinkByName(link)
	if err == nil {
		err = n.nl.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("link %s up in %s: %w", link, n.ID, err)
	}
	return nil
}
