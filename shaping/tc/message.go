package tc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The handles and parents of traffic control, see include/uapi/linux/pkt_sched.h.
const (
	rootHandle  = 0x5e1a0000 // of a token bucket filter of ours
	rootClass   = rootHandle | 1
	leafHandle  = 0x5e1b0000 // of the fq_codel below it
	hookHandle  = 0xffff0000 // of clsact and ingress
	parentRoot  = 0xffffffff // TC_H_ROOT
	parentHook  = 0xfffffff1 // TC_H_CLSACT, TC_H_INGRESS
	hookIngress = 0xfffffff2 // TC_H_MIN_INGRESS of clsact
	hookEgress  = 0xfffffff3 // TC_H_MIN_EGRESS
)

// Attributes that x/sys does not have, see include/uapi/linux/rtnetlink.h,
// pkt_sched.h and pkt_cls.h.
const (
	tcaKind    = 1
	tcaOptions = 2
	tcaStats2  = 7

	tcaStatsBasic   = 1
	tcaStatsQueue   = 3
	tcaStatsPackets = 8 // TCA_STATS_PKT64

	tcaTbfParms   = 1
	tcaTbfRate64  = 4
	tcaTbfPrate64 = 5
	tcaTbfBurst   = 6
	tcaTbfPburst  = 7

	tcaFQTarget   = 1
	tcaFQLimit    = 2
	tcaFQInterval = 3
	tcaFQFlows    = 5
	tcaFQQuantum  = 6
	tcaFQMemory   = 9

	tcaU32Sel = 5
	tcaU32Act = 7

	tcaActKind     = 1
	tcaActOptions  = 2
	tcaMirredParms = 2
)

// tcmsg is struct tcmsg.
type tcmsg struct {
	index                int
	handle, parent, info uint32
}

const sizeofTcmsg = 20

func (m tcmsg) encode() []byte {
	b := make([]byte, sizeofTcmsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(int32(m.index)))
	binary.NativeEndian.PutUint32(b[8:], m.handle)
	binary.NativeEndian.PutUint32(b[12:], m.parent)
	binary.NativeEndian.PutUint32(b[16:], m.info)
	return b
}

// decodeTcmsg reads the header of a message about traffic control, and returns a
// decoder for its attributes.
func decodeTcmsg(data []byte) (tcmsg, *netlink.AttributeDecoder, error) {
	if len(data) < sizeofTcmsg {
		return tcmsg{}, nil, fmt.Errorf("a message of %d bytes", len(data))
	}
	m := tcmsg{
		index:  int(int32(binary.NativeEndian.Uint32(data[4:]))),
		handle: binary.NativeEndian.Uint32(data[8:]),
		parent: binary.NativeEndian.Uint32(data[12:]),
		info:   binary.NativeEndian.Uint32(data[16:]),
	}
	ad, err := netlink.NewAttributeDecoder(data[sizeofTcmsg:])
	return m, ad, err
}

// absent tells whether an error means that there is none.
func absent(err error) bool { return errors.Is(err, unix.ENOENT) }

// removed is absent for a request to remove: where there is no queueing discipline at
// all, the kernel calls the request invalid.
func removed(err error) bool { return absent(err) || errors.Is(err, unix.EINVAL) }

// qdisc is a queueing discipline as the kernel describes it.
type qdisc struct {
	tcmsg
	kind string
	// options are those of its kind, not decoded.
	options []byte
	stats   Counters
}

// Counters are what a queue counts. They begin anew with the queue.
type Counters struct {
	// Bytes and Packets were sent; Bytes are whole frames.
	Bytes, Packets uint64
	// Drops were refused for want of room. Overlimits counts how often the bucket
	// had too few tokens for the next packet.
	Drops, Overlimits uint32
	// Backlog are the bytes that wait, Queued the packets.
	Backlog, Queued uint32
}

func decodeQdisc(data []byte) (qdisc, error) {
	m, ad, err := decodeTcmsg(data)
	if err != nil {
		return qdisc{}, err
	}
	q := qdisc{tcmsg: m}
	for ad.Next() {
		switch ad.Type() {
		case tcaKind:
			q.kind = ad.String()
		case tcaOptions:
			q.options = ad.Bytes()
		case tcaStats2:
			ad.Nested(q.stats.decode)
		}
	}
	return q, ad.Err()
}

// decode reads struct gnet_stats_basic and gnet_stats_queue. The number of packets
// has 32 bits there; kernels since 5.5 add one of 64.
func (c *Counters) decode(ad *netlink.AttributeDecoder) error {
	wide := false
	for ad.Next() {
		b := ad.Bytes()
		switch ad.Type() {
		case tcaStatsBasic:
			if len(b) >= 12 {
				c.Bytes = binary.NativeEndian.Uint64(b)
				if !wide {
					c.Packets = uint64(binary.NativeEndian.Uint32(b[8:]))
				}
			}
		case tcaStatsPackets:
			if len(b) == 8 {
				c.Packets, wide = binary.NativeEndian.Uint64(b), true
			}
		case tcaStatsQueue:
			if len(b) >= 20 {
				c.Queued, c.Backlog = binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:])
				c.Drops, c.Overlimits = binary.NativeEndian.Uint32(b[8:]), binary.NativeEndian.Uint32(b[16:])
			}
		}
	}
	return nil
}
