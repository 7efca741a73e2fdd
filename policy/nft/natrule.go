package nft

import (
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// natRule is what is of interest in a rule that somebody else has made. iptables-nft
// and nft(8) write the same things in different ways.
type natRule struct {
	// masquerades: it does so itself. jump is the chain that it leads to.
	masquerades bool
	jump        string
	// families are those that the rule applies to.
	families [len(policy.Families)]bool
	// source is the block that the packet must come from. If there is none, negated
	// says that there is one that it must not come from, and unclear how many matches
	// may be about the source in a way that is not understood.
	source  netip.Prefix
	negated bool
	unclear int
	// toward: the packet must go to a certain block.
	toward bool
}

// inbound tells whether the rule is about what others send to a block that is not
// theirs. flannel has such a rule, for what comes from the node to its pods.
func (r *natRule) inbound() bool { return r.negated && !r.source.IsValid() && r.toward }

// part is a part of a packet that a register holds.
type part uint8

const (
	partOther part = iota
	partSaddr
	partDaddr
	partFamily
)

// natRuleReader reads a rule expression by expression.
type natRuleReader struct {
	natRule
	// regs say what the registers hold, masks what of it was cut off.
	regs  map[uint32]part
	masks map[uint32][]byte
}

// readNATRule reads the expressions of a rule, as the kernel lists them, in a table of
// the family with that number.
func readNATRule(nfproto byte, b []byte) natRule {
	r := natRuleReader{regs: map[uint32]part{}, masks: map[uint32][]byte{}}
	r.families[policy.IPv4] = nfproto != unix.NFPROTO_IPV6
	r.families[policy.IPv6] = nfproto != unix.NFPROTO_IPV4
	for list := attributes(b); list.next(); {
		var name string
		var data []byte
		for a := attributes(list.data); a.next(); {
			switch a.typ {
			case unix.NFTA_EXPR_NAME:
				name = cstring(a.data)
			case unix.NFTA_EXPR_DATA:
				data = a.data
			}
		}
		r.expression(name, data)
	}
	return r.natRule
}

func (r *natRuleReader) expression(name string, data []byte) {
	const nameOfExtension = 1 // NFTA_MATCH_NAME and NFTA_TARGET_NAME
	switch name {
	case "masq":
		r.masquerades = true
	case "target":
		r.masquerades = r.masquerades || cstring(attribute(data, nameOfExtension)) == "MASQUERADE"
	case "immediate":
		if e, err := decodeImmediate(data); err == nil {
			r.jump = e.(*expr.Verdict).Chain
		}
	case "counter", "log", "limit":
	case "match":
		if cstring(attribute(data, nameOfExtension)) != "comment" {
			r.unclear++
		}
	case "meta":
		r.meta(data)
	case "payload":
		r.payload(data)
	case "bitwise":
		r.bitwise(data)
	case "cmp":
		r.compare(data)
	case "lookup":
		// Of a set it is not known here what is in it. A look-up by the source has
		// been counted when that was loaded.
	default:
		r.unclear++
	}
}

// meta takes in what is known of a packet besides its bytes.
func (r *natRuleReader) meta(data []byte) {
	var m expr.Meta
	if err := expr.Unmarshal(0, data, &m); err != nil {
		r.unclear++
		return
	}
	switch m.Key {
	case expr.MetaKeyNFPROTO:
		r.regs[m.Register] = partFamily
	case expr.MetaKeyOIF, expr.MetaKeyOIFNAME, expr.MetaKeyL4PROTO, expr.MetaKeyPROTOCOL:
		r.regs[m.Register] = partOther
	default:
		// A mark may stand for the source.
		if !m.SourceRegister {
			r.unclear++
		}
		r.regs[m.Register] = partOther
	}
}

// family is the one that the rule applies to, if it is one.
func (r *natRuleReader) family() (f policy.Family, one bool) {
	if r.families[policy.IPv4] {
		return policy.IPv4, !r.families[policy.IPv6]
	}
	return policy.IPv6, true
}

func (r *natRuleReader) payload(data []byte) {
	var p expr.Payload
	if err := expr.Unmarshal(0, data, &p); err != nil {
		r.unclear++
		return
	}
	r.regs[p.DestRegister] = partOther
	delete(r.masks, p.DestRegister)
	if p.Base != expr.PayloadBaseNetworkHeader {
		return
	}
	f, one := r.family()
	saddr, size := saddrOffset(f), uint32(f.Bits()/8)
	switch {
	case !one:
		r.unclear++
	case p.Offset == saddr:
		// It is unclear until it is compared.
		r.unclear++
		r.regs[p.DestRegister] = partSaddr
	case p.Offset == saddr+size:
		r.regs[p.DestRegister] = partDaddr
	case p.Offset < saddr+size && p.Offset+p.Len > saddr:
		r.unclear++
	}
}

func (r *natRuleReader) bitwise(data []byte) {
	var b expr.Bitwise
	if err := expr.Unmarshal(0, data, &b); err != nil || !isZero(b.Xor) || len(b.Mask) == 0 {
		r.unclear++
		return
	}
	r.regs[b.DestRegister] = r.regs[b.SourceRegister]
	r.masks[b.DestRegister] = b.Mask
}

func (r *natRuleReader) compare(data []byte) {
	var c expr.Cmp
	if err := expr.Unmarshal(0, data, &c); err != nil || len(c.Data) == 0 {
		r.unclear++
		return
	}
	equal := c.Op == expr.CmpOpEq
	switch r.regs[c.Register] {
	case partFamily:
		for _, f := range policy.Families {
			r.families[f] = r.families[f] && (c.Data[0] == nfproto(f)) == equal
		}
	case partDaddr:
		r.toward = r.toward || equal
	case partSaddr:
		source, ok := r.block(c.Data, r.masks[c.Register])
		if !ok || !equal && c.Op != expr.CmpOpNeq {
			return
		}
		r.unclear--
		if equal {
			r.source = source
		} else {
			r.negated = true
		}
	}
}

// block is the block of addresses that begin with some bytes, under a mask if there
// is one. nft(8) may compare the source together with what follows it in the packet.
func (r *natRuleReader) block(data, mask []byte) (netip.Prefix, bool) {
	f, _ := r.family()
	whole := make([]byte, f.Bits()/8)
	n := copy(whole, data)
	bits := 8 * n
	if mask != nil {
		var contiguous bool
		if bits, contiguous = maskBits(mask[:min(n, len(mask))]); !contiguous {
			return netip.Prefix{}, false
		}
	}
	return prefix(whole, bits), true
}
