package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lockName is an abstract unix socket (see unix(7)): it belongs to a network
// namespace, as nftables does, needs no file system, and goes with the process
// that has it, however that ends.
const lockName = "@selvage.dev/agent"

// errRunning says that there is an agent already.
var errRunning = errors.New("an agent runs already on this node")

// lock makes the caller the only one who writes the tables in this network
// namespace until release is called or the process ends.
func lock() (release func(), err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: lockName})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%w%s: there can be one only: stop that one first, or in a cluster find it with "+
			"`kubectl get pods -A -o wide | grep selvage`, and remove all installations of Selvage but one", errRunning, holder())
	}
	if err != nil {
		return nil, fmt.Errorf("take the lock %s: %w", lockName, err)
	}
	go func() { // holder connects to learn who it is; nothing is said
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	return func() { _ = l.Close() }, nil
}

// patience is how long an agent waits for the end of another one. A pod that is
// deleted without grace may have a successor before its processes have ended.
const patience = 5 * time.Second

// awaitLock is lock, with patience.
func awaitLock(ctx context.Context) (release func(), err error) {
	for deadline := time.Now().Add(patience); ; {
		release, err = lock()
		if !errors.Is(err, errRunning) || time.Now().After(deadline) {
			return release, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// holder tells which process has the lock, if that can be found out.
func holder() string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", lockName)
	if err != nil {
		return ""
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return ""
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil || err != nil {
		return ""
	}
	if cred.Pid == 0 { // its process namespace cannot be seen from here
		return " (in another container)"
	}
	return fmt.Sprintf(" (process %d)", cred.Pid)
}
