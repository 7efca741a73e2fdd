package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// maxElementList is how much fits into one list of elements: the length of an
// attribute, its header included, is a 16-bit number (struct nlattr).
const maxElementList = 1<<16 - 1 - nlaHeaderLen

// The flags of an element (enum nft_set_elem_flags in nf_tables.h).
const (
	elemIntervalEnd = 0x1
	elemCatchall    = 0x2
)

// openInterval is the user data that nft(8) gives to the first address or port
// of an interval that reaches to the last one there is, and so has no end.
// nft lists such an interval as it was written only if it finds the mark
// (NFTNL_UDATA_SET_ELEM_FLAGS with SET_ELEM_F_INTERVAL_OPEN).
func openInterval() [6]byte {
	u := [6]byte{0: 1, 1: 4}
	binary.NativeEndian.PutUint32(u[2:], 1)
	return u
}

var errElement = errors.New("is not an element of the set")

// elementWriter lays out lists of elements. It does so itself, other than the
// rest, because the library's SetAddElements lets a list of more than 64 KiB
// wrap around and lose elements without an error, and allocates ten times for
// each element.
type elementWriter struct {
	set *policy.Set
	// typ is unix.NFT_MSG_NEWSETELEM or unix.NFT_MSG_DELSETELEM.
	typ int

	msgs []netlink.Message
	// buf is the message being written; list is where its list of elements
	// begins, or 0 before the first element.
	buf  []byte
	list int
}

// appendElements appends the messages that add elements to a set or delete
// them from it.
func appendElements(msgs []netlink.Message, f policy.Family, s *policy.Set, typ int, elements []policy.Element) ([]netlink.Message, error) {
	w := elementWriter{set: s, typ: typ, msgs: msgs}
	size := keyLen(f, s)
	for i := range elements {
		e := &elements[i]
		if err := checkElement(s, size, e); err != nil {
			return nil, fmt.Errorf("%s %s: element %d: %w", f, s.Name, i, err)
		}
		w.begin(f, e, len(elements)-i)
		w.element(e)
	}
	w.end()
	return w.msgs, nil
}

func checkElement(s *policy.Set, size int, e *policy.Element) error {
	switch {
	case e.Key == "" && !s.Interval:
		// A catch-all; only ever deleted.
		return nil
	case len(e.Key) != size,
		s.Interval != (e.To != ""),
		s.Interval && (len(e.To) != size || e.To < e.Key),
		!s.Verdicts && e.Verdict != (policy.Verdict{}):
		return fmt.Errorf("%q to %q with verdict %q %w", e.Key, e.To, e.Verdict, errElement)
	}
	if s.Verdicts {
		if _, ok := verdictCode(e.Verdict); !ok {
			return fmt.Errorf("verdict %d with chain %q cannot be a map's", e.Verdict.Kind, e.Verdict.Chain)
		}
	}
	return nil
}

// keyLen is the length of a set's key in bytes.
func keyLen(f policy.Family, s *policy.Set) int {
	n := typeLen(f, s.Key[0])
	if s.Key[1] != 0 {
		n = align4(n) + align4(typeLen(f, s.Key[1]))
	}
	return n
}

func typeLen(f policy.Family, t policy.Type) int {
	switch t {
	case policy.TypeAddr:
		return f.Bits() / 8
	case policy.TypeService:
		return 2
	}
	return 0
}

// elementSize is an upper bound of what an element takes up, both ends counted.
func elementSize(e *policy.Element) int {
	const attributesAround = 48
	n := attributesAround + align4(len(e.Key))
	if e.To != "" {
		n *= 2
	}
	return n + align4(len(e.Verdict.Chain)+1)
}

// begin makes room for an element, in a new message if the present one is full.
// Both ends of an interval stay together. left is how many elements are to come.
func (w *elementWriter) begin(f policy.Family, e *policy.Element, left int) {
	size := elementSize(e)
	if w.list != 0 && len(w.buf)-w.list+size > maxElementList {
		w.end()
	}
	if w.list != 0 {
		return
	}
	w.buf = make([]byte, 0, min(left*size, maxElementList)+len(w.set.Name)+64)
	w.buf = append(w.buf, nfproto(f), unix.NFNETLINK_V0, 0, 0)
	w.buf = appendString(w.buf, unix.NFTA_SET_ELEM_LIST_TABLE, policy.TableName)
	w.buf = appendString(w.buf, unix.NFTA_SET_ELEM_LIST_SET, w.set.Name)
	w.buf, w.list = beginNested(w.buf, unix.NFTA_SET_ELEM_LIST_ELEMENTS)
}

func (w *elementWriter) end() {
	if w.list == 0 {
		return
	}
	endNested(w.buf, w.list)
	flags := netlink.Request
	if w.typ == unix.NFT_MSG_NEWSETELEM {
		flags |= netlink.Create
	}
	w.msgs = append(w.msgs, netlink.Message{Header: netlink.Header{Type: messageType(w.typ), Flags: flags}, Data: w.buf})
	w.buf, w.list = nil, 0
}

func (w *elementWriter) element(e *policy.Element) {
	b, elem := beginNested(w.buf, unix.NFTA_LIST_ELEM)
	if e.Key == "" {
		b = appendAttr(b, unix.NFTA_SET_ELEM_FLAGS, 0, 0, 0, elemCatchall)
	} else {
		b = appendKey(b, e.Key)
	}
	if w.set.Verdicts && w.typ == unix.NFT_MSG_NEWSETELEM {
		b = appendElementVerdict(b, e.Verdict)
	}
	if w.set.Interval && isLast(e.To) && w.typ == unix.NFT_MSG_NEWSETELEM {
		u := openInterval()
		b = appendAttr(b, unix.NFTA_SET_ELEM_USERDATA, u[:]...)
	}
	endNested(b, elem)
	if w.set.Interval && !isLast(e.To) {
		b, elem = beginNested(b, unix.NFTA_LIST_ELEM)
		b = appendAttr(b, unix.NFTA_SET_ELEM_FLAGS, 0, 0, 0, elemIntervalEnd)
		b = appendKey(b, e.To)
		increment(b[len(b)-align4(len(e.To)):][:len(e.To)])
		endNested(b, elem)
	}
	w.buf = b
}

func appendKey(b []byte, key string) []byte {
	b, at := beginNested(b, unix.NFTA_SET_ELEM_KEY)
	b = binary.NativeEndian.AppendUint16(b, uint16(nlaHeaderLen+len(key)))
	b = binary.NativeEndian.AppendUint16(b, unix.NFTA_DATA_VALUE)
	b = pad4(append(b, key...), len(key))
	endNested(b, at)
	return b
}

func appendElementVerdict(b []byte, v policy.Verdict) []byte {
	code, _ := verdictCode(v)
	b, data := beginNested(b, unix.NFTA_SET_ELEM_DATA)
	b, verdict := beginNested(b, unix.NFTA_DATA_VERDICT)
	u := uint32(code)
	b = appendAttr(b, unix.NFTA_VERDICT_CODE, byte(u>>24), byte(u>>16), byte(u>>8), byte(u))
	if v.Chain != "" {
		b = appendString(b, unix.NFTA_VERDICT_CHAIN, v.Chain)
	}
	endNested(b, verdict)
	endNested(b, data)
	return b
}

// isLast tells whether there is no address or port after key.
func isLast(key string) bool {
	for i := range len(key) {
		if key[i] != 0xff {
			return false
		}
	}
	return true
}

// increment adds one to a number in network byte order: an interval's end is
// the first key that is not in it.
func increment(b []byte) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i]++
		if b[i] != 0 {
			return
		}
	}
}

// decrement is the reverse of increment.
func decrement(key string) string {
	b := []byte(key)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]--
		if b[i] != 0xff {
			break
		}
	}
	return string(b)
}
