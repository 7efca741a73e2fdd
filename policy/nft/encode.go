package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// The registers that nft(8) uses. Register 1 holds 16 bytes. The second field
// of a concatenation follows the first, padded to 4 bytes: after an IPv4 address
// that is NFT_REG32_01, after an IPv6 address register 2. The kernel lists them
// under the same numbers (nft_dump_register in net/netfilter/nf_tables_api.c).
const (
	reg1      = unix.NFT_REG_1
	regAfter4 = unix.NFT_REG32_01
	regAfter6 = unix.NFT_REG_2
)

// ipProtoICMPv6 is on which `icmpv6 type` depends.
const ipProtoICMPv6 = unix.IPPROTO_ICMPV6

// rejectICMP codes for "administratively prohibited": ICMP_PKT_FILTERED in
// linux/icmp.h and ICMPV6_ADM_PROHIBITED in linux/icmpv6.h.
const (
	codeProhibited4 = 13
	codeProhibited6 = 1
)

// field says how a policy.Field is loaded into a register and compared.
type field struct {
	load expr.Any
	// size is the length of its value in bytes.
	size int
	// host is true if the value is in the byte order of the machine: what
	// conntrack keeps as a number, as against what comes from a packet.
	host bool
	// key is what a set of this field has in its key, if there can be one.
	key policy.Type
}

// fieldOf returns how field fd is loaded into register reg in a table of family f.
func fieldOf(f policy.Family, fd policy.Field, reg uint32) (field, bool) {
	bytes := uint32(f.Bits() / 8)
	switch fd {
	case policy.FieldCtState:
		// [ ct load state => reg 1 ]
		return field{load: &expr.Ct{Key: expr.CtKeySTATE, Register: reg}, size: 4, host: true}, true
	case policy.FieldCtMark:
		// [ ct load mark => reg 1 ]
		return field{load: &expr.Ct{Key: expr.CtKeyMARK, Register: reg}, size: 4, host: true}, true
	case policy.FieldCtDirection:
		// [ ct load direction => reg 1 ]
		return field{load: &expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg}, size: 1}, true
	case policy.FieldCtProtocol:
		// [ ct load protocol => reg 1 ]
		return field{load: &expr.Ct{Key: expr.CtKeyPROTOCOL, Register: reg}, size: 1}, true
	case policy.FieldCtOriginalSaddr:
		// [ ct load src_ip => reg 1 , dir original ]
		return field{load: ctTuple(expr.CtKeySRC, dirOriginal, reg), size: int(bytes), key: policy.TypeAddr}, true
	case policy.FieldCtReplySaddr:
		// [ ct load src_ip => reg 1 , dir reply ]
		return field{load: ctTuple(expr.CtKeySRC, dirReply, reg), size: int(bytes), key: policy.TypeAddr}, true
	case policy.FieldCtReplyProtoSrc:
		// [ ct load proto_src => reg 1 , dir reply ]
		return field{load: ctTuple(expr.CtKeyPROTOSRC, dirReply, reg), size: 2, key: policy.TypeService}, true
	case policy.FieldSaddr:
		// [ payload load 4b @ network header + 12 => reg 1 ]
		return field{load: networkHeader(saddrOffset(f), bytes, reg), size: int(bytes), key: policy.TypeAddr}, true
	case policy.FieldDaddr:
		// [ payload load 4b @ network header + 16 => reg 1 ]
		return field{load: networkHeader(saddrOffset(f)+bytes, bytes, reg), size: int(bytes), key: policy.TypeAddr}, true
	case policy.FieldL4Proto:
		// [ meta load l4proto => reg 1 ]
		return field{load: &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, size: 1}, true
	case policy.FieldICMPv6Type:
		// [ payload load 1b @ transport header + 0 => reg 1 ]
		return field{load: &expr.Payload{Base: expr.PayloadBaseTransportHeader, Len: 1, DestRegister: reg}, size: 1}, true
	case policy.FieldHopLimit:
		if f != policy.IPv6 {
			return field{}, false
		}
		// [ payload load 1b @ network header + 7 => reg 1 ]
		return field{load: networkHeader(hopLimitOffset, 1, reg), size: 1}, true
	case policy.FieldIifname:
		// [ meta load iifname => reg 1 ]
		return field{load: &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}, size: unix.IFNAMSIZ}, true
	}
	return field{}, false
}

// hopLimitOffset is that of hop_limit in struct ipv6hdr.
const hopLimitOffset = 7

// saddrOffset is where the source address is in the IP header; the destination
// address follows it.
func saddrOffset(f policy.Family) uint32 {
	if f == policy.IPv4 {
		return 12
	}
	return 8
}

func networkHeader(offset, length, reg uint32) *expr.Payload {
	return &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length, DestRegister: reg}
}

// value is v as the kernel compares it with the field.
func (fd *field) value(v uint32) []byte {
	switch {
	case fd.size == 1:
		return []byte{byte(v)}
	case fd.size == 2:
		return binary.BigEndian.AppendUint16(nil, uint16(v))
	case fd.host:
		return binary.NativeEndian.AppendUint32(nil, v)
	}
	return nil
}

// fits tells whether v is within the field's size.
func (fd *field) fits(v uint32) bool {
	return fd.size >= 4 || v>>(8*fd.size) == 0
}

// encodeRule returns the expressions of a rule in a table of family f: those
// that nft(8) makes of r.Text(f).
func encodeRule(f policy.Family, r *policy.Rule) ([]expr.Any, error) {
	exprs := make([]expr.Any, 0, 3*len(r.Match)+4)
	var err error
	for i := range r.Match {
		if r.Match[i].Field == policy.FieldICMPv6Type && !looksAtICMPv6(r.Match[:i]) {
			exprs = append(exprs,
				// [ meta load l4proto => reg 1 ]
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
				// [ cmp eq reg 1 0x0000003a ]
				equal([]byte{ipProtoICMPv6}),
			)
		}
		if exprs, err = appendMatch(exprs, f, &r.Match[i]); err != nil {
			return nil, err
		}
	}
	if exprs, err = appendSample(exprs, f, &r.Sample); err != nil {
		return nil, err
	}
	if r.Log != (policy.Log{}) {
		if !canLog(&r.Log) {
			return nil, fmt.Errorf("a rule cannot log to group %d with prefix %q and %d bytes", r.Log.Group, r.Log.Prefix, r.Log.Snaplen)
		}
		// [ log prefix deny-unknown group 24090 snaplen 128 qthreshold 0 ]
		exprs = append(exprs, &expr.Log{
			Key: logKeys, Group: r.Log.Group, Snaplen: r.Log.Snaplen, Data: []byte(r.Log.Prefix),
		})
	}
	if r.Counter {
		// [ counter pkts 0 bytes 0 ]
		exprs = append(exprs, &expr.Counter{})
	}
	if r.Count != "" {
		// [ objref type 1 name deny-unknown ]
		exprs = append(exprs, &expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: r.Count})
	}
	if r.Stamp.Mask != 0 {
		exprs = append(exprs,
			// [ ct load mark => reg 1 ]
			&expr.Ct{Key: expr.CtKeyMARK, Register: reg1},
			// [ bitwise reg 1 = ( reg 1 & ~mask ) ^ value ]
			bitwise(binary.NativeEndian.AppendUint32(nil, ^r.Stamp.Mask), binary.NativeEndian.AppendUint32(nil, r.Stamp.Value)),
			// [ ct set mark with reg 1 ]
			&expr.Ct{Key: expr.CtKeyMARK, Register: reg1, SourceRegister: true},
		)
	}
	return appendVerdict(exprs, f, r.Verdict)
}

// logKeys are the attributes that a log expression has here.
const logKeys = 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN

// maxLogPrefix is NF_LOG_PREFIXLEN without the terminating zero.
const maxLogPrefix = 127

// appendSample updates the element of a dynamic set, which goes on only within its
// own limit.
func appendSample(exprs []expr.Any, f policy.Family, s *policy.Sample) ([]expr.Any, error) {
	if *s == (policy.Sample{}) {
		return exprs, nil
	}
	fd, ok := fieldOf(f, s.Key, reg1)
	if !ok || !canSample(s) {
		return nil, fmt.Errorf("field %d cannot be sampled in set %q with %d packets per second, %d at once", s.Key, s.Set, s.Rate, s.Burst)
	}
	// [ dynset update reg_key 1 set sampled-egress-v4 expr [ limit rate 2/second burst 5 type packets flags 0x0 ] ]
	return append(exprs, fd.load, &expr.Dynset{
		SrcRegKey: reg1, SetName: s.Set, Operation: unix.NFT_DYNSET_OP_UPDATE,
		Exprs: []expr.Any{sampleLimit(s.Rate, s.Burst)},
	}), nil
}

func canLog(l *policy.Log) bool {
	return l.Group != 0 && l.Prefix != "" && len(l.Prefix) <= maxLogPrefix && l.Snaplen != 0
}

func canSample(s *policy.Sample) bool {
	return s.Set != "" && (s.Key == policy.FieldSaddr || s.Key == policy.FieldDaddr) && s.Rate != 0 && s.Burst != 0
}

func sampleLimit(rate, burst uint32) *expr.Limit {
	return &expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(rate), Unit: expr.LimitTimeSecond, Burst: burst}
}

// looksAtICMPv6 tells whether one of the matches implies that the packet is
// ICMPv6, which need not be asked twice.
func looksAtICMPv6(matches []policy.Match) bool {
	return slices.ContainsFunc(matches, func(m policy.Match) bool { return m.Field == policy.FieldICMPv6Type })
}

func appendMatch(exprs []expr.Any, f policy.Family, m *policy.Match) ([]expr.Any, error) {
	fd, ok := fieldOf(f, m.Field, reg1)
	if !ok {
		return nil, fmt.Errorf("the %s family has no field %d", f, m.Field)
	}
	switch m.Op {
	case policy.OpEqual:
		v := fd.value(m.Value)
		if m.Field == policy.FieldIifname && m.Name != "" && len(m.Name) < unix.IFNAMSIZ {
			v = make([]byte, unix.IFNAMSIZ)
			copy(v, m.Name)
		}
		if v == nil || !fd.fits(m.Value) {
			break
		}
		// [ cmp eq reg 1 0x00000006 ]
		return append(exprs, fd.load, equal(v)), nil
	case policy.OpBits:
		if m.Field != policy.FieldCtState {
			break
		}
		return append(exprs, fd.load,
			// [ bitwise reg 1 = ( reg 1 & 0x00000006 ) ^ 0x00000000 ]
			bitwise(fd.value(m.Value), make([]byte, 4)),
			// [ cmp neq reg 1 0x00000000 ]
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
		), nil
	case policy.OpMasked:
		if m.Field != policy.FieldCtMark {
			break
		}
		return append(exprs, fd.load,
			// [ bitwise reg 1 = ( reg 1 & 0x000030c4 ) ^ 0x00000000 ]
			bitwise(fd.value(m.Arg), make([]byte, 4)),
			// [ cmp eq reg 1 0x00000004 ]
			equal(fd.value(m.Value)),
		), nil
	case policy.OpRange:
		if fd.host || fd.size > 2 || !fd.fits(m.Value) || !fd.fits(m.Arg) {
			break
		}
		return append(exprs, fd.load,
			// [ cmp gte reg 1 0x0000bb01 ]
			&expr.Cmp{Op: expr.CmpOpGte, Register: reg1, Data: fd.value(m.Value)},
			// [ cmp lte reg 1 0x0000bd01 ]
			&expr.Cmp{Op: expr.CmpOpLte, Register: reg1, Data: fd.value(m.Arg)},
		), nil
	case policy.OpPrefix:
		if fd.key != policy.TypeAddr || !m.Prefix.IsValid() || m.Prefix.Addr().BitLen() != f.Bits() {
			break
		}
		return appendPrefix(exprs, &fd, m.Prefix), nil
	case policy.OpIn, policy.OpNotIn, policy.OpVerdict:
		return appendLookup(exprs, f, &fd, m)
	}
	return nil, fmt.Errorf("field %d of the %s family cannot be compared by operation %d with %d, %d, %q, %s", m.Field, f, m.Op, m.Value, m.Arg, m.Name, m.Prefix)
}

// appendPrefix compares the address as nft(8) does: whole bytes without a
// mask, and of the packet's header only the bytes that matter are loaded.
func appendPrefix(exprs []expr.Any, fd *field, p netip.Prefix) []expr.Any {
	addr := p.Masked().Addr().AsSlice()
	if n := p.Bits() / 8; n > 0 && p.Bits()%8 == 0 {
		if payload, ok := fd.load.(*expr.Payload); ok {
			// [ payload load 1b @ network header + 12 => reg 1 ]
			payload.Len = uint32(n)
		}
		// [ cmp eq reg 1 0x0000000a ]
		return append(exprs, fd.load, equal(addr[:n]))
	}
	mask := make([]byte, len(addr))
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(exprs, fd.load,
		// [ bitwise reg 1 = ( reg 1 & 0x00f0ffff ) ^ 0x00000000 ]
		bitwise(mask, make([]byte, len(addr))),
		// [ cmp eq reg 1 0x0000000a ]
		equal(addr),
	)
}

func appendLookup(exprs []expr.Any, f policy.Family, fd *field, m *policy.Match) ([]expr.Any, error) {
	if fd.key == 0 || m.Name == "" {
		return nil, fmt.Errorf("there are no sets of field %d", m.Field)
	}
	exprs = append(exprs, fd.load)
	if m.And != policy.FieldNone {
		second, ok := fieldOf(f, m.And, regAfter(fd.size))
		if !ok || second.key == 0 || m.Op != policy.OpIn {
			return nil, fmt.Errorf("field %d cannot follow field %d in the key of set %q", m.And, m.Field, m.Name)
		}
		// [ ct load proto_src => reg 9 , dir reply ]
		exprs = append(exprs, second.load)
	}
	// [ lookup reg 1 set sel-v4 ], negated [ lookup reg 1 set sel-v4 0x1 ], or, with
	// a verdict, [ lookup reg 1 set pods-v4 dreg 0 ]
	return append(exprs, &expr.Lookup{
		SourceRegister: reg1, SetName: m.Name, Invert: m.Op == policy.OpNotIn,
		IsDestRegSet: m.Op == policy.OpVerdict, DestRegister: unix.NFT_REG_VERDICT,
	}), nil
}

// regAfter is the register that follows a field of the given size in register 1.
func regAfter(size int) uint32 {
	if size == 16 {
		return regAfter6
	}
	return regAfter4
}

func appendVerdict(exprs []expr.Any, f policy.Family, v policy.Verdict) ([]expr.Any, error) {
	switch v.Kind {
	case policy.VerdictNone:
		return exprs, nil
	case policy.VerdictReset:
		// [ reject type 1 code 0 ]
		return append(exprs, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}), nil
	case policy.VerdictProhibit:
		// [ reject type 0 code 13 ]
		code := uint8(codeProhibited4)
		if f == policy.IPv6 {
			code = codeProhibited6
		}
		return append(exprs, &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code}), nil
	case policy.VerdictMasquerade:
		if v.Chain != "" {
			break
		}
		// [ masq flags 0x10 ]
		return append(exprs, &expr.Masq{FullyRandom: true}), nil
	}
	code, ok := verdictCode(v)
	if !ok {
		return nil, fmt.Errorf("verdict %d with chain %q cannot be a rule's", v.Kind, v.Chain)
	}
	// [ immediate reg 0 goto -> egress ]
	return append(exprs, &expr.Verdict{Kind: expr.VerdictKind(code), Chain: v.Chain}), nil
}

// verdictCode is the kernel's code of a verdict that a rule and a verdict map
// can both give (enum nft_verdicts, and NF_DROP and NF_ACCEPT).
func verdictCode(v policy.Verdict) (code int32, ok bool) {
	switch v.Kind {
	case policy.VerdictAccept:
		return int32(expr.VerdictAccept), v.Chain == ""
	case policy.VerdictDrop:
		return int32(expr.VerdictDrop), v.Chain == ""
	case policy.VerdictReturn:
		return int32(expr.VerdictReturn), v.Chain == ""
	case policy.VerdictJump:
		return int32(expr.VerdictJump), v.Chain != ""
	case policy.VerdictGoto:
		return int32(expr.VerdictGoto), v.Chain != ""
	}
	return 0, false
}

func equal(data []byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: data}
}

func bitwise(mask, xor []byte) *expr.Bitwise {
	return &expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: uint32(len(mask)), Mask: mask, Xor: xor}
}
