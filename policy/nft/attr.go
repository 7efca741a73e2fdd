package nft

import (
	"bytes"
	"encoding/binary"

	"github.com/mdlayher/netlink"
)

// Sizes of netlink's and nfnetlink's own headers.
const (
	nlaHeaderLen = 4
	// nfgenmsgLen is the length of struct nfgenmsg, which begins every message.
	nfgenmsgLen = 4
)

// nlaTypeMask takes the flags for "nested" and "network byte order" away.
const nlaTypeMask = ^(netlink.Nested | netlink.NetByteOrder)

// attrs walks over netlink attributes without copying or allocating: a listing
// of 100,000 elements has a million of them. What it does not understand ends
// the walk, as nla_for_each_attr does in the kernel.
type attrs struct {
	rest []byte
	typ  uint16
	// data is the attribute's payload, whole the attribute with its header.
	// Both are parts of the message and may be written to.
	data  []byte
	whole []byte
}

func attributes(b []byte) attrs { return attrs{rest: b} }

func (a *attrs) next() bool {
	if len(a.rest) < nlaHeaderLen {
		return false
	}
	n := int(binary.NativeEndian.Uint16(a.rest))
	if n < nlaHeaderLen || n > len(a.rest) {
		return false
	}
	a.typ = binary.NativeEndian.Uint16(a.rest[2:]) & nlaTypeMask
	a.data = a.rest[nlaHeaderLen:n]
	aligned := min(align4(n), len(a.rest))
	a.whole = a.rest[:aligned]
	a.rest = a.rest[aligned:]
	return true
}

// uint32 is a value in network byte order, or 0 if it does not have four bytes.
func (a *attrs) uint32() uint32 {
	if len(a.data) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a.data)
}

// cstring is the text before the terminating zero.
func cstring(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// attribute is the payload of the first attribute of a type, or nil.
func attribute(b []byte, typ uint16) []byte {
	for a := attributes(b); a.next(); {
		if a.typ == typ {
			return a.data
		}
	}
	return nil
}

func align4(n int) int { return (n + 3) &^ 3 }

// appendAttr appends an attribute.
func appendAttr(b []byte, typ uint16, data ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(nlaHeaderLen+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	return pad4(b, len(data))
}

// appendString appends an attribute that holds a text and its terminating zero.
func appendString(b []byte, typ uint16, s string) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(nlaHeaderLen+len(s)+1))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, s...)
	b = append(b, 0)
	return pad4(b, len(s)+1)
}

// pad4 pads after n bytes of payload.
func pad4(b []byte, n int) []byte {
	for range align4(n) - n {
		b = append(b, 0)
	}
	return b
}

// beginNested opens a nested attribute; endNested closes the one that began at
// length at.
func beginNested(b []byte, typ uint16) (_ []byte, at int) {
	at = len(b)
	b = append(b, 0, 0)
	return binary.NativeEndian.AppendUint16(b, typ|netlink.Nested), at
}

func endNested(b []byte, at int) {
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
}
