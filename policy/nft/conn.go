package nft

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// DefaultTimeout is how long the kernel's answer is waited for. The kernel
// answers before it returns from the call that sends the batch, so that
// only an answer that was lost can be waited for that long.
const DefaultTimeout = 10 * time.Second

// readBuffer is how much the kernel may have to say at once: an
// acknowledgement, an error for each of some thousand messages, or a piece of
// a listing.
const readBuffer = 4 << 20

// maxChunk is how large a batch may become that need not be atomic. The kernel
// copies it as a whole and holds the lock of nftables while it works on it.
const maxChunk = 4 << 20

// Socket is what a Conn needs of a netlink socket. *netlink.Conn is one.
type Socket interface {
	SendMessages([]netlink.Message) ([]netlink.Message, error)
	Receive() ([]netlink.Message, error)
	SetReadDeadline(time.Time) error
	SetWriteBuffer(bytes int) error
	Close() error
}

// Options say how a Conn is made.
type Options struct {
	// NetNS is a file descriptor of the network namespace to work in, or 0
	// for the one of the calling thread when a socket is opened.
	NetNS int
	// Timeout is how long an answer is waited for; 0 means DefaultTimeout.
	Timeout time.Duration
	// Dial replaces the socket, for tests. If nil, it is opened by netlink.
	Dial func() (Socket, error)
	// Logger is told what is remarkable but no error. May be nil.
	Logger *slog.Logger
}

// A Conn reads and changes the tables `ip selvage` and `ip6 selvage` of one
// network namespace. It opens its socket when it needs it and closes it after
// any error. It must not be used by two goroutines at once, and should not be
// used by a goroutine that is locked to its thread: that makes it seven times
// slower.
type Conn struct {
	opts    Options
	encoder *encoder
	socket  Socket
	// writeBuffer is the size that the socket's send buffer was set to.
	writeBuffer int
	known       known
	// last is what the counters had counted that the last Apply or Replace deleted.
	last familyCounts
}

// Open returns a Conn. It does not talk to the kernel yet; Check does.
func Open(opts Options) (*Conn, error) {
	if opts.Timeout == 0 {
		opts.Timeout = DefaultTimeout
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Dial == nil {
		opts.Dial = func() (Socket, error) { return dial(opts.NetNS) }
	}
	e, err := newEncoder()
	if err != nil {
		return nil, err
	}
	return &Conn{opts: opts, encoder: e}, nil
}

func dial(netns int) (Socket, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{
		NetNS: netns,
		// The kernel fills what it is given, up to 32 KiB, when it lists
		// (netlink_recvmsg in net/netlink/af_netlink.c).
		MessageBufferSize: 64 << 10,
	})
	if err != nil {
		return nil, err
	}
	// An error need not repeat the message that it is about, of up to 64 KiB:
	// the sequence number tells. Extended acknowledgements would add the offset
	// of the attribute, but netlink.Conn cannot read them together with this.
	if err := c.SetOption(netlink.CapAcknowledge, true); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err := c.SetReadBuffer(readBuffer); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close closes the socket. The Conn can still be used; it opens another one.
func (c *Conn) Close() error {
	s := c.socket
	c.socket, c.writeBuffer, c.known = nil, 0, known{}
	if s == nil {
		return nil
	}
	return s.Close()
}

// open opens the socket if there is none.
func (c *Conn) open() error {
	if c.socket != nil {
		return nil
	}
	s, err := c.opts.Dial()
	if err != nil {
		return fmt.Errorf("open a netlink socket for nftables: %w", err)
	}
	c.socket = s
	return nil
}

// fail closes the socket because of err and returns err with its cause named.
func (c *Conn) fail(err error) error {
	if cerr := c.Close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("close the netlink socket: %w", cerr))
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w (%w)", ErrPermission, err)
	}
	return err
}

// batchHeader begins or ends a batch.
func batchHeader(typ int) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request},
		// struct nfgenmsg, whose last field is the subsystem.
		Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES},
	}
}

// commit sends messages as one transaction and waits until it is in force. The
// socket must be open. On error, nothing of it is in force unless the error is
// ErrUnknown.
func (c *Conn) commit(msgs []netlink.Message) error {
	return c.transact(msgs, true)
}

// transact sends messages as one batch. Without an end the kernel checks the
// batch and takes all of it back, as for `nft --check`.
func (c *Conn) transact(msgs []netlink.Message, end bool) error {
	batch := make([]netlink.Message, 0, len(msgs)+2)
	batch = append(batch, batchHeader(unix.NFNL_MSG_BATCH_BEGIN))
	batch = append(batch, msgs...)
	batch[len(batch)-1].Header.Flags |= netlink.Acknowledge
	last := len(batch) - 1
	if end {
		batch = append(batch, batchHeader(unix.NFNL_MSG_BATCH_END))
	}
	if err := c.reserve(batch); err != nil {
		return err
	}
	batch, err := c.socket.SendMessages(batch)
	if err != nil {
		// The kernel takes a datagram whole or not at all, and EMSGSIZE and
		// ENOBUFS say not at all.
		return fmt.Errorf("send a batch of %d messages: %w", len(msgs), err)
	}
	return c.acknowledged(batch, batch[last].Header.Sequence)
}

// reserve makes the send buffer as large as the batch, or else sending it
// fails with EMSGSIZE (netlink_sendmsg in net/netlink/af_netlink.c).
func (c *Conn) reserve(batch []netlink.Message) error {
	size := 0
	for i := range batch {
		size += unix.NLMSG_HDRLEN + align4(len(batch[i].Data))
	}
	if size <= c.writeBuffer {
		return nil
	}
	size = max(size+size/4, 1<<20)
	if err := c.socket.SetWriteBuffer(size); err != nil {
		return fmt.Errorf("set the netlink socket's send buffer to %d bytes: %w", size, err)
	}
	c.writeBuffer = size
	return nil
}

// acknowledged waits for the acknowledgement of the message with sequence
// number last. The kernel reports errors in the order of the messages, so that
// the first one is the cause.
func (c *Conn) acknowledged(batch []netlink.Message, last uint32) error {
	if err := c.socket.SetReadDeadline(time.Now().Add(c.opts.Timeout)); err != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	replies, err := c.socket.Receive()
	var oe *netlink.OpError
	switch {
	case errors.As(err, &oe) && oe.Sequence != 0:
		return refused(batch, oe)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: no answer within %s: %w", ErrUnknown, c.opts.Timeout, err)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	case len(replies) != 1 || replies[0].Header.Type != netlink.Error || replies[0].Header.Sequence != last:
		return fmt.Errorf("%w: the answer is to another batch", ErrUnknown)
	}
	return nil
}

// Check says whether nftables can be changed and whether the kernel knows all
// that rulesets are made of, by having it check a sample, but for what
// CheckLog and CheckMasquerade ask for. It changes nothing. The error is ErrPermission,
// ErrUnsupported, or what else went wrong.
func (c *Conn) Check() error {
	return c.check(sample(), "load the modules nf_tables, nft_ct, nft_counter, nft_objref, nft_reject_ipv4 and nft_reject_ipv6, or use a kernel (4.18 or later) that has them")
}

// CheckLog is Check for what policy.Config.Log says that the kernel has. Without it
// policies are enforced and what they deny is counted all the same.
func (c *Conn) CheckLog() error {
	return c.check(logSample(), "load the modules nft_log, nft_limit and nfnetlink_log, or use a kernel that has them")
}

// CheckMasquerade is Check for what policy.Config.Masquerade says that the kernel
// has. Without it policies are enforced all the same.
func (c *Conn) CheckMasquerade() error {
	return c.check(masqueradeSample(), "load the modules nft_chain_nat and nft_masq, or before kernel 5.2 nft_chain_nat_ipv4, "+
		"nft_chain_nat_ipv6, nft_masq_ipv4 and nft_masq_ipv6, or use a kernel that has them")
}

// check has the kernel check a change; remedy is what to do if it lacks something.
func (c *Conn) check(sample *policy.Change, remedy string) error {
	if err := c.open(); err != nil {
		return c.fail(unsupported(err, remedy))
	}
	m, err := c.encoder.change(sample, &known{})
	if err != nil {
		return err
	}
	if err := c.transact(append(m.Prepare, m.Switch...), false); err != nil {
		return c.fail(unsupported(err, remedy))
	}
	return nil
}

// unsupported finds the errors by which a kernel says that it does not know
// something: no NETLINK_NETFILTER (EPROTONOSUPPORT), no nftables (EOPNOTSUPP,
// or EINVAL outside of a batch), no such expression, chain type or set (ENOENT,
// EINVAL).
func unsupported(err error, remedy string) error {
	for _, e := range []error{unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EOPNOTSUPP, unix.ENOENT, unix.EINVAL} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %s (%w)", ErrUnsupported, remedy, err)
		}
	}
	return err
}

// Cleanup deletes both tables in one transaction. removed is false if there
// was nothing to delete, and then nothing was sent.
func (c *Conn) Cleanup() (removed bool, err error) {
	if err := c.open(); err != nil {
		return false, c.fail(err)
	}
	for _, f := range policy.Families {
		present, _, err := c.readTable(f)
		if err != nil {
			c.encoder.take()
			return false, c.fail(err)
		}
		if present {
			c.encoder.conn.DelTable(table(f))
		}
	}
	msgs := c.encoder.take()
	if len(msgs) == 0 {
		return false, nil
	}
	c.known = known{}
	if err := c.commit(msgs); err != nil {
		return false, c.fail(fmt.Errorf("delete the tables: %w", err))
	}
	return true, nil
}
