package nft

import (
	"errors"
	"os"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// fault is what goes wrong with a batch.
type fault int

const (
	// noFault: all is well.
	noFault fault = iota
	// overrun: the batch is committed, but the answer is lost (ENOBUFS).
	overrun
	// tooLarge: the batch does not fit into the send buffer (EMSGSIZE).
	tooLarge
	// refusedExists: the kernel refuses the middle of the batch (EEXIST).
	refusedExists
	// silence: the batch is committed, but no answer comes.
	silence
	// lost: the batch does not get there, and no answer comes.
	lost
	// stale: the batch is committed, and the answer is an earlier batch's.
	stale
	// dialFails: no socket can be had afterwards, once, and the batch is lost.
	dialFails
)

var faultNames = map[fault]string{
	overrun: "ENOBUFS after commit", tooLarge: "EMSGSIZE", refusedExists: "EEXIST", silence: "timeout after commit",
	lost: "timeout before commit", stale: "stale ACK", dialFails: "no socket",
}

// faults makes sockets that go wrong with one batch, and counts what is sent.
type faults struct {
	ns int
	// at is the batch, counted from 0, that meets the fault.
	at    int
	fault fault

	batches, messages, dials int
	dialFails                bool
}

func (f *faults) dial() (Socket, error) {
	f.dials++
	if f.dialFails {
		f.dialFails = false
		return nil, os.NewSyscallError("socket", unix.EMFILE)
	}
	s, err := dial(f.ns)
	if err != nil {
		return nil, err
	}
	return &faulty{Socket: s, faults: f}, nil
}

// faulty is a socket that goes wrong.
type faulty struct {
	Socket
	faults *faults
	// now is the fault of the batch whose answer is to come, and seq the
	// sequence number that the answer is about.
	now fault
	seq uint32
}

func (s *faulty) SendMessages(msgs []netlink.Message) ([]netlink.Message, error) {
	if msgs[0].Header.Type != unix.NFNL_MSG_BATCH_BEGIN {
		return s.Socket.SendMessages(msgs)
	}
	f := s.faults
	n := f.batches
	f.batches++
	f.messages += len(msgs) - 2
	s.now = noFault
	if n == f.at {
		s.now = f.fault
	}
	switch s.now {
	case tooLarge:
		return nil, &netlink.OpError{Op: "send-messages", Err: os.NewSyscallError("sendmsg", unix.EMSGSIZE)}
	case lost, refusedExists, dialFails:
		for i := range msgs {
			msgs[i].Header.Sequence = uint32(1000 + i)
		}
		s.seq = msgs[len(msgs)/2].Header.Sequence
		f.dialFails = s.now == dialFails
		return msgs, nil
	}
	return s.Socket.SendMessages(msgs)
}

func (s *faulty) Receive() ([]netlink.Message, error) {
	now := s.now
	s.now = noFault
	switch now {
	case overrun, silence, stale:
		msgs, err := s.Socket.Receive()
		if err != nil {
			return nil, errors.Join(errors.New("the batch that was to be committed failed"), err)
		}
		switch now {
		case overrun:
			return nil, &netlink.OpError{Op: "receive", Err: os.NewSyscallError("recvmsg", unix.ENOBUFS)}
		case silence:
			return nil, &netlink.OpError{Op: "receive", Err: os.ErrDeadlineExceeded}
		}
		msgs[0].Header.Sequence -= 5
		return msgs, nil
	case lost, dialFails:
		return nil, &netlink.OpError{Op: "receive", Err: os.ErrDeadlineExceeded}
	case refusedExists:
		return nil, &netlink.OpError{Op: "receive", Err: unix.EEXIST, Sequence: s.seq}
	}
	return s.Socket.Receive()
}

// openFaulty returns a Conn for the namespace whose batches are counted and of
// which one goes wrong.
func (n *namespace) openFaulty(t testing.TB, at int, what fault) (*Conn, *faults) {
	t.Helper()
	f := &faults{ns: int(n.handle), at: at, fault: what}
	c, err := Open(Options{Dial: f.dial})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, f
}
