package tc

import (
	"context"
	"errors"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Change is something that somebody, perhaps we ourselves, did to the traffic control
// of an interface.
type Change struct {
	// Index is the interface; 0 says that notifications were lost, so that it may be
	// any.
	Index int
	// Port is the netlink port of who did it: in most cases the ID of the process.
	Port uint32
}

// Monitor calls f for each change of traffic control in the caller's network
// namespace until ctx ends, but not for what c only looks at. It returns nil then, or
// why it cannot go on.
func (c *Conn) Monitor(ctx context.Context, f func(Change)) error {
	n, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: 1 << (unix.RTNLGRP_TC - 1)})
	if err != nil {
		return wrap("listen to traffic control", err)
	}
	defer context.AfterFunc(ctx, func() { _ = n.Close() })()
	for {
		messages, err := n.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			f(Change{})
			continue
		case err != nil:
			return wrap("listen to traffic control", errors.Join(err, n.Close()))
		}
		for _, m := range messages {
			if header, _, err := decodeTcmsg(m.Data); err == nil && m.Header.PID != c.netlink.PID() {
				f(Change{Index: header.index, Port: m.Header.PID})
			}
		}
	}
}
