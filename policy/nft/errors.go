package nft

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

var (
	// ErrPermission says that the process may not change nftables.
	ErrPermission = errors.New("changing nftables needs CAP_NET_ADMIN: run as root, or give the container the capability NET_ADMIN")
	// ErrUnsupported says that the kernel lacks something. What is wrapped
	// around it says what.
	ErrUnsupported = errors.New("the kernel lacks a part of nftables that is needed")
	// ErrRefused says that the kernel refused a batch as a whole: nothing of
	// it is in force, and the same batch would be refused again.
	ErrRefused = errors.New("refused by the kernel")
	// ErrUnknown says that a batch may or may not have been committed.
	ErrUnknown = errors.New("it is not known whether the kernel took the batch")
)

// An ObjectError says which object of a batch the kernel refused. It wraps
// ErrRefused and the error of the system call.
type ObjectError struct {
	// Op is what was to be done and Object to what, as in
	// `nft add rule ip selvage forward`.
	Op, Object string
	// Err is a *netlink.OpError; errors.Is finds the errno in it.
	Err error
}

func (e *ObjectError) Error() string {
	return fmt.Sprintf("%s %s: %v: %v", e.Op, e.Object, ErrRefused, e.Err)
}

// Unwrap returns what the error is made of.
func (e *ObjectError) Unwrap() []error { return []error{ErrRefused, e.Err} }

// refused makes an error of what the kernel says about the message with the
// error's sequence number.
func refused(batch []netlink.Message, err *netlink.OpError) error {
	for i := range batch {
		m := &batch[i]
		if m.Header.Sequence == err.Sequence {
			op, object := describe(m)
			return &ObjectError{Op: op, Object: object, Err: err}
		}
	}
	return fmt.Errorf("%w, and the error is about an earlier batch: %w", ErrUnknown, err)
}

// describe names what a message is about, from the message itself.
func describe(m *netlink.Message) (op, object string) {
	kinds := map[int]struct{ op, kind string }{
		unix.NFT_MSG_NEWTABLE: {"add", "table"}, unix.NFT_MSG_DELTABLE: {"delete", "table"},
		unix.NFT_MSG_NEWCHAIN: {"add", "chain"}, unix.NFT_MSG_DELCHAIN: {"delete", "chain"},
		unix.NFT_MSG_NEWRULE: {"add", "rule"}, unix.NFT_MSG_DELRULE: {"flush", "chain"},
		unix.NFT_MSG_NEWSET: {"add", "set"}, unix.NFT_MSG_DELSET: {"delete", "set"},
		unix.NFT_MSG_NEWOBJ: {"add", "counter"}, unix.NFT_MSG_DELOBJ: {"delete", "counter"},
		unix.NFT_MSG_NEWSETELEM: {"add", "element"}, unix.NFT_MSG_DELSETELEM: {"delete", "element"},
	}
	typ := int(m.Header.Type & 0xff)
	k, ok := kinds[typ]
	if !ok || m.Header.Type != messageType(typ) || len(m.Data) < nfgenmsgLen {
		return "commit", "batch"
	}
	words := []string{k.kind, familyOf(m).String()}
	// Table and name have the same numbers in all kinds of messages, but for
	// chains: there it is NFTA_CHAIN_NAME.
	name := uint16(unix.NFTA_SET_NAME)
	if typ == unix.NFT_MSG_NEWCHAIN || typ == unix.NFT_MSG_DELCHAIN {
		name = unix.NFTA_CHAIN_NAME
	}
	for a := attributes(m.Data[nfgenmsgLen:]); a.next(); {
		if a.typ == unix.NFTA_SET_TABLE || a.typ == name && k.kind != "table" {
			words = append(words, cstring(a.data))
		}
	}
	return k.op, strings.Join(words, " ")
}
