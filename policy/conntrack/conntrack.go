// Package conntrack takes a generation back from the flows that still carry
// it, before it is used again.
//
// The generation under which a flow was judged is kept in a few bits of its
// conntrack mark. After the last generation comes the first again, and a flow
// that was idle the whole time still carries it: it would pass for judged
// although the rules have changed since. So before a generation comes into
// force, no flow may carry it.
//
// The messages are laid out here, because github.com/ti-mo/conntrack cannot
// write a mark under a mask, nor a mark of 0, and anything else would overwrite
// what others keep in the same mark.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// The messages and attributes of linux/netfilter/nfnetlink_conntrack.h.
const (
	msgNew = unix.NFNL_SUBSYS_CTNETLINK << 8 // IPCTNL_MSG_CT_NEW is 0
	msgGet = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1

	attrTupleOrig = 1
	attrMark      = 8
	attrZone      = 18
	attrMarkMask  = 21
)

const (
	// timeout is how long an answer of the kernel is waited for.
	timeout = 10 * time.Second
	// perSend is how many flows are changed by one system call.
	perSend = 256
	// maxRounds is how often the table is looked through at most. A look can
	// miss flows while the table is resized; it should never find any twice.
	maxRounds = 4
)

// ErrContended says that flows got the value again while it was taken from
// them: something else writes to the bits of the mask.
var ErrContended = errors.New("other software writes to the same bits of the conntrack mark: choose other bits")

// Table is the conntrack table of a network namespace. It opens a socket for
// each call, and may be used by several goroutines at once.
type Table struct {
	// NetNS is a file descriptor of the namespace, or 0 for that of the
	// calling thread.
	NetNS int
}

// Reclaim clears the bits of mark.Mask in the marks of all flows, of both
// families and in all zones, that have mark.Value there, and returns how many
// it changed. It changes no other bit, and no other flow. The kernel picks the
// flows and changes the bits (ctnetlink_alloc_filter and ctnetlink_change_mark
// in net/netfilter/nf_conntrack_netlink.c), so that a mark that is written at
// the same moment by a packet is not lost.
func (t Table) Reclaim(mark policy.Mark) (int, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: t.NetNS, MessageBufferSize: 64 << 10})
	if err != nil {
		return 0, fmt.Errorf("open a netlink socket for conntrack: %w", err)
	}
	n, err := reclaim(c, mark)
	return n, errors.Join(err, c.Close())
}

func reclaim(c *netlink.Conn, mark policy.Mark) (int, error) {
	// An error need not repeat the message that it is about.
	if err := c.SetOption(netlink.CapAcknowledge, true); err != nil {
		return 0, err
	}
	total := 0
	for range maxRounds {
		updates, err := find(c, mark)
		if err != nil {
			return total, fmt.Errorf("look for flows that carry mark %#x under %#x: %w", mark.Value, mark.Mask, err)
		}
		if len(updates) == 0 {
			return total, nil
		}
		for len(updates) > 0 {
			n := min(perSend, len(updates))
			done, err := update(c, updates[:n])
			total += done
			if err != nil {
				return total, fmt.Errorf("take mark %#x under %#x from a flow: %w", mark.Value, mark.Mask, err)
			}
			updates = updates[n:]
		}
	}
	return total, ErrContended
}

// find returns the messages that take the mark from those who carry it.
func find(c *netlink.Conn, mark policy.Mark) ([]netlink.Message, error) {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.Uint32(attrMark, mark.Value)
	ae.Uint32(attrMarkMask, mark.Mask)
	filter, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	if _, err := c.Send(netlink.Message{
		Header: netlink.Header{Type: msgGet, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, filter...),
	}); err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	var updates []netlink.Message
	for flow, err := range c.ReceiveIter() {
		if err != nil {
			return nil, err
		}
		m, ok, err := clearing(flow.Data, mark)
		if err != nil {
			return nil, err
		}
		if ok {
			updates = append(updates, m)
		}
	}
	return updates, nil
}

// clearing makes the message that clears a flow's bits out of what the kernel
// says of the flow: what identifies it, the tuple and the zone, is sent back as
// it came. ok is false for a flow that does not carry the mark.
func clearing(flow []byte, mark policy.Mark) (m netlink.Message, ok bool, err error) {
	if len(flow) < 4 {
		return m, false, fmt.Errorf("a flow of %d bytes", len(flow))
	}
	ad, err := netlink.NewAttributeDecoder(flow[4:])
	if err != nil {
		return m, false, err
	}
	ad.ByteOrder = binary.BigEndian
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	var value uint32
	for ad.Next() {
		switch ad.Type() {
		case attrTupleOrig:
			ae.Bytes(attrTupleOrig|netlink.Nested, ad.Bytes())
			ok = true
		case attrZone:
			ae.Uint16(attrZone, ad.Uint16())
		case attrMark:
			value = ad.Uint32()
		}
	}
	if err := ad.Err(); err != nil {
		return m, false, err
	}
	if !ok || value&mark.Mask != mark.Value {
		return m, false, nil
	}
	ae.Uint32(attrMark, 0)
	ae.Uint32(attrMarkMask, mark.Mask)
	attrs, err := ae.Encode()
	if err != nil {
		return m, false, err
	}
	return netlink.Message{
		Header: netlink.Header{Type: msgNew, Flags: netlink.Request},
		Data:   append([]byte{flow[0], unix.NFNETLINK_V0, 0, 0}, attrs...),
	}, true, nil
}

// update sends messages of which the last is acknowledged; of the others the
// kernel reports errors. A flow that has ended meanwhile is none.
func update(c *netlink.Conn, msgs []netlink.Message) (done int, err error) {
	msgs[len(msgs)-1].Header.Flags |= netlink.Acknowledge
	msgs, err = c.SendMessages(msgs)
	if err != nil {
		return 0, err
	}
	done = len(msgs)
	last := msgs[len(msgs)-1].Header.Sequence
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return 0, err
	}
	for {
		replies, err := c.Receive()
		var oe *netlink.OpError
		switch {
		case errors.As(err, &oe) && errors.Is(err, unix.ENOENT):
			done--
			if oe.Sequence == last {
				return done, nil
			}
		case err != nil:
			return 0, err
		case len(replies) > 0 && replies[0].Header.Sequence == last:
			return done, nil
		}
	}
}
