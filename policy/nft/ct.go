package nft

import (
	"encoding/binary"
	"errors"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// The keys of `ct original ip saddr` and `ct original ip6 saddr` (enum
// nft_ct_keys in linux/netfilter/nf_tables.h), since kernel 4.17.
const (
	ctKeySrcIP  expr.CtKey = 19
	ctKeySrcIP6 expr.CtKey = 21
)

// The directions of a flow (enum ip_conntrack_dir).
const (
	dirOriginal uint32 = 0
	dirReply    uint32 = 1
)

// ctTuple returns an expression that loads part of a flow's tuple.
//
// expr.Ct cannot say what is meant here, in two ways: it writes the direction
// as four bytes in network order, of which the kernel reads the first alone, so
// that a reply becomes an original; and it leaves the direction out for the keys
// NFT_CT_SRC_IP and NFT_CT_SRC_IP6, without which the kernel refuses them. So
// the expression made here is the one for the older key NFT_CT_SRC, and
// fixTuples gives its attributes their final form in the finished message.
func ctTuple(key expr.CtKey, direction, reg uint32) *expr.Ct {
	return &expr.Ct{Key: key, Register: reg, Direction: direction}
}

var errCtLayout = errors.New("a ct expression does not have the attributes that it should have")

// fixTuples rewrites the ct expressions of a NEWRULE message in place: the key
// for addresses into that of the family, and the direction into the one byte
// that the kernel reads. No attribute changes its place or the space it takes.
func fixTuples(f policy.Family, msg *netlink.Message) error {
	rule := attributes(msg.Data[nfgenmsgLen:])
	for rule.next() {
		if rule.typ != unix.NFTA_RULE_EXPRESSIONS {
			continue
		}
		list := attributes(rule.data)
		for list.next() {
			if err := fixTuple(f, list.data); err != nil {
				return err
			}
		}
	}
	return nil
}

func fixTuple(f policy.Family, b []byte) error {
	isCt := false
	for e := attributes(b); e.next(); {
		switch e.typ {
		case unix.NFTA_EXPR_NAME:
			isCt = cstring(e.data) == "ct"
		case unix.NFTA_EXPR_DATA:
			if !isCt {
				continue
			}
			for ct := attributes(e.data); ct.next(); {
				switch ct.typ {
				case unix.NFTA_CT_KEY:
					if len(ct.data) != 4 {
						return errCtLayout
					}
					if expr.CtKey(binary.BigEndian.Uint32(ct.data)) == expr.CtKeySRC {
						binary.BigEndian.PutUint32(ct.data, uint32(srcKey(f)))
					}
				case unix.NFTA_CT_DIRECTION:
					if len(ct.data) != 4 {
						return errCtLayout
					}
					direction := binary.BigEndian.Uint32(ct.data)
					binary.NativeEndian.PutUint16(ct.whole, nlaHeaderLen+1)
					copy(ct.data, []byte{byte(direction), 0, 0, 0})
				}
			}
		}
	}
	return nil
}

func srcKey(f policy.Family) expr.CtKey {
	if f == policy.IPv4 {
		return ctKeySrcIP
	}
	return ctKeySrcIP6
}

// decodeCt reads a ct expression as the kernel lists it, into the form that
// ctTuple and fieldOf make. The library's own reading fails on the direction's
// one byte and does not see a source register.
func decodeCt(f policy.Family, b []byte) (*expr.Ct, bool) {
	e := &expr.Ct{}
	for ct := attributes(b); ct.next(); {
		switch ct.typ {
		case unix.NFTA_CT_KEY:
			e.Key = expr.CtKey(ct.uint32())
		case unix.NFTA_CT_DREG:
			e.Register = ct.uint32()
		case unix.NFTA_CT_SREG:
			e.Register, e.SourceRegister = ct.uint32(), true
		case unix.NFTA_CT_DIRECTION:
			if len(ct.data) != 1 {
				return nil, false
			}
			e.Direction = uint32(ct.data[0])
		}
	}
	switch e.Key {
	case srcKey(f):
		e.Key = expr.CtKeySRC
	case expr.CtKeySRC, ctKeySrcIP, ctKeySrcIP6:
		return nil, false
	}
	return e, true
}
