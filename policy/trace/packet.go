package trace

import (
	"net/netip"

	"github.com/selvage-net/selvage/policy"
)

// ICMPv6 is the protocol whose messages have a type that rules can look at.
const ICMPv6 policy.Protocol = 58

// Packet is a packet at a hook: its own header, and what conntrack made of it.
type Packet struct {
	Saddr, Daddr netip.Addr
	// Protocol is the transport protocol of the header.
	Protocol   policy.Protocol
	ICMPv6Type uint8
	HopLimit   uint8
	Iifname    string

	// Flow is the packet's conntrack entry, nil if it has none.
	Flow *Flow
	// Untracked tells a packet without entry that conntrack was told to leave
	// alone from one that it calls invalid.
	Untracked bool
}

// Flow is a conntrack entry as one of its packets sees it.
type Flow struct {
	// State is one of StateNew, StateEstablished and StateRelated.
	State uint32
	// Reply is the direction of this packet.
	Reply bool
	Mark  uint32
	// Protocol is the flow's; that of an ICMP error in it is another.
	Protocol policy.Protocol
	// OriginalSaddr and ReplySaddr are the sources of the two tuples.
	OriginalSaddr, ReplySaddr netip.Addr
	// ReplyProtoSrc is the source port of the reply tuple; for ICMP it is the
	// identifier, for a protocol that conntrack does not know it is 0.
	ReplyProtoSrc uint16
}

// number returns a field that is a number, and whether the packet has it.
func (p *Packet) number(f policy.Field, mark uint32) (v uint32, ok bool) {
	if f == policy.FieldCtState {
		return p.state(), true
	}
	switch f {
	case policy.FieldL4Proto:
		return uint32(p.Protocol), true
	case policy.FieldICMPv6Type:
		return uint32(p.ICMPv6Type), p.Protocol == ICMPv6
	case policy.FieldHopLimit:
		return uint32(p.HopLimit), p.Saddr.Is6()
	}
	// nft_ct_get_eval: without an entry everything but the state breaks.
	if p.Flow == nil {
		return 0, false
	}
	switch f {
	case policy.FieldCtMark:
		return mark, true
	case policy.FieldCtDirection:
		if p.Flow.Reply {
			return 1, true
		}
		return 0, true
	case policy.FieldCtProtocol:
		return uint32(p.Flow.Protocol), true
	case policy.FieldCtReplyProtoSrc:
		return uint32(p.Flow.ReplyProtoSrc), true
	}
	return 0, false
}

func (p *Packet) state() uint32 {
	switch {
	case p.Flow != nil:
		return p.Flow.State
	case p.Untracked:
		return policy.StateUntracked
	}
	return policy.StateInvalid
}

// addr returns a field that is an address, and whether the packet has it.
func (p *Packet) addr(f policy.Field) (a netip.Addr, ok bool) {
	switch f {
	case policy.FieldSaddr:
		return p.Saddr, true
	case policy.FieldDaddr:
		return p.Daddr, true
	}
	if p.Flow == nil {
		return a, false
	}
	if f == policy.FieldCtOriginalSaddr {
		a = p.Flow.OriginalSaddr
	} else {
		a = p.Flow.ReplySaddr
	}
	// NFT_CT_SRC_IP and NFT_CT_SRC_IP6 break if the flow is of the other family.
	return a, a.Is4() == p.Saddr.Is4()
}

// key returns the key that a look-up of fields uses.
func (p *Packet) key(fields ...policy.Field) (key string, ok bool) {
	for i, f := range fields {
		switch {
		case isAddr(f):
			a, ok := p.addr(f)
			if !ok {
				return "", false
			}
			key += policy.AddrKey(a)
		default:
			v, ok := p.number(f, 0)
			if !ok {
				return "", false
			}
			key += policy.ServiceKey(uint16(v))
			if i > 0 || len(fields) > 1 {
				key += "\x00\x00" // a register has four bytes
			}
		}
	}
	return key, true
}

func isAddr(f policy.Field) bool {
	switch f {
	case policy.FieldSaddr, policy.FieldDaddr, policy.FieldCtOriginalSaddr, policy.FieldCtReplySaddr:
		return true
	}
	return false
}
