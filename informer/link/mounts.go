package link

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// mounts tells when something was mounted or unmounted. A network namespace gets
// its file by a mount, and loses it by the end of one. That the file is made
// before, or removed after, which inotify would tell, says nothing: it is no
// namespace then.
type mounts struct{ fd int }

func openMounts() (mounts, error) {
	const path = "/proc/thread-self/mountinfo"
	// The runtime's poller must not have this file: to poll it takes the change
	// away, see mounts_poll in fs/proc_namespace.c.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return mounts{}, fmt.Errorf("open %s: %w", path, err)
	}
	return mounts{fd: fd}, nil
}

// changed tells whether there was a change since the last call.
func (m mounts) changed() (bool, error) {
	fds := []unix.PollFd{{Fd: int32(m.fd), Events: unix.POLLPRI}}
	n, err := poll(fds, 0)
	return n > 0, err
}

func (m mounts) close() { _ = unix.Close(m.fd) }

// poll waits until one of the files is ready. A negative wait has no end.
func poll(fds []unix.PollFd, wait time.Duration) (int, error) {
	ms := -1
	if wait >= 0 {
		ms = int((wait + time.Millisecond - 1) / time.Millisecond)
	}
	for {
		n, err := unix.Poll(fds, ms)
		if err == nil {
			return n, nil
		}
		if err != unix.EINTR {
			return 0, fmt.Errorf("poll: %w", err)
		}
	}
}

// LinkChange is a change of what a Finder looks at.
type LinkChange struct {
	// Index is that of the interface in the agent's namespace that was added,
	// changed or removed. If it is 0, any may have been.
	Index int
	Name  string
	// Gone says that there is no such interface in this namespace any more.
	Gone bool
	// PortID is that of the netlink socket which asked for the change; 0 unless the
	// request had the flag NLM_F_ECHO.
	PortID uint32
	// Namespaces says that namespaces of pods came or went; Index is 0 then, and
	// the interfaces may be the same.
	Namespaces bool
}

// again is the least time between two looks at the directories: every volume of a
// pod is a mount too.
const again = 20 * time.Millisecond

// Run calls changed, one call at a time, after each change of an interface of this
// network namespace, and each time that namespaces came or went, until ctx ends.
// The first call, with an Index of 0, says that from now on nothing is missed. It
// fails if the kernel cannot be listened to.
//
// What happens inside the pods' namespaces makes no notification: who waits for an
// address must call Find again.
func (f *Finder) Run(ctx context.Context, changed func(LinkChange)) error {
	links, err := subscribeTo(unix.RTNLGRP_LINK)
	if err != nil {
		return fmt.Errorf("subscribe to changes of links: %w", err)
	}
	defer links.close()
	mounts, err := openMounts()
	if err != nil {
		return err
	}
	defer mounts.close()
	end, cancel, err := os.Pipe()
	if err != nil {
		return err
	}
	defer end.Close()
	defer cancel.Close()
	defer context.AfterFunc(ctx, func() { _ = cancel.Close() })()
	seen, err := f.look()
	if err != nil {
		return err
	}
	changed(LinkChange{})
	return f.listen(links, mounts, int32(end.Fd()), seen, changed)
}

// listen is Run until the pipe is closed. seen is the version of the set of
// namespaces that is known to the caller.
func (f *Finder) listen(links *events, mounts mounts, end int32, seen uint64, changed func(LinkChange)) error {
	var looked time.Time
	for {
		fds := []unix.PollFd{
			{Fd: end, Events: unix.POLLIN},
			{Fd: int32(links.socket.GetFd()), Events: unix.POLLIN},
			{Fd: int32(mounts.fd), Events: unix.POLLPRI},
		}
		wait := time.Until(looked.Add(again))
		if wait > 0 {
			fds[2].Fd = -1 // until then it is not looked at
		} else {
			wait = -1
		}
		if _, err := poll(fds, wait); err != nil {
			return err
		}
		if fds[0].Revents != 0 {
			return nil
		}
		if fds[1].Revents != 0 {
			if err := tell(links, changed); err != nil {
				return fmt.Errorf("listen to changes of links: %w", err)
			}
		}
		if fds[2].Revents != 0 {
			now, err := f.look()
			if err != nil {
				return err
			}
			looked = time.Now()
			if now != seen {
				seen = now
				changed(LinkChange{Namespaces: true})
			}
		}
	}
}

// tell reads the notifications that have come.
func tell(links *events, changed func(LinkChange)) error {
	messages, err := links.next()
	if err != nil {
		return err
	}
	if messages == nil {
		changed(LinkChange{})
	}
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWLINK && m.Header.Type != unix.RTM_DELLINK {
			continue
		}
		attrs, err := parseAttrs(m.Data, unix.SizeofIfInfomsg)
		if err != nil {
			return err
		}
		info := nl.DeserializeIfInfomsg(m.Data)
		// A bridge's message that a link is gone is about its port alone.
		c := LinkChange{Index: int(info.Index), Gone: m.Header.Type == unix.RTM_DELLINK && info.Family == unix.AF_UNSPEC, PortID: m.Header.Pid}
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_IFNAME {
				c.Name = unix.ByteSliceToString(a.Value)
			}
		}
		changed(c)
	}
	return nil
}
