package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// decodeRule is the reverse of encodeRule, from the attributes as the kernel
// lists them. Whatever encodeRule does not make becomes a foreign rule.
func decodeRule(f policy.Family, b []byte) policy.Rule {
	exprs, err := decodeExprs(f, b)
	if err != nil {
		return foreignRule(err.Error())
	}
	return ruleOf(f, exprs)
}

func ruleOf(f policy.Family, exprs []expr.Any) policy.Rule {
	d := ruleDecoder{family: f, rest: exprs}
	for d.match() {
	}
	d.statements()
	if len(d.rest) > 0 {
		return foreignRule(fmt.Sprintf("expression %d of %d", len(exprs)-len(d.rest)+1, len(exprs)))
	}
	return d.rule
}

// decodeExprs reads the expressions of a rule.
func decodeExprs(f policy.Family, b []byte) ([]expr.Any, error) {
	var exprs []expr.Any
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
		e, err := decodeExpr(f, name, data)
		if err != nil {
			return nil, err
		}
		exprs = append(exprs, e)
	}
	return exprs, nil
}

func decodeExpr(f policy.Family, name string, data []byte) (expr.Any, error) {
	var e expr.Any
	switch name {
	case "ct":
		if ct, ok := decodeCt(f, data); ok {
			return ct, nil
		}
		return nil, fmt.Errorf("a ct expression of another kind")
	case "immediate":
		return decodeImmediate(data)
	case "masq":
		return decodeMasq(data)
	case "counter":
		// What was counted is of no interest here.
		return &expr.Counter{}, nil
	case "meta":
		e = &expr.Meta{}
	case "payload":
		e = &expr.Payload{}
	case "cmp":
		e = &expr.Cmp{}
	case "bitwise":
		e = &expr.Bitwise{}
	case "lookup":
		e = &expr.Lookup{}
	case "reject":
		e = &expr.Reject{}
	case "objref":
		e = &expr.Objref{}
	case "dynset":
		return decodeDynset(data)
	case "log":
		return decodeLog(data)
	default:
		return nil, fmt.Errorf("a %q expression", name)
	}
	if err := expr.Unmarshal(nfproto(f), data, e); err != nil {
		return nil, fmt.Errorf("a %q expression: %w", name, err)
	}
	return e, nil
}

// decodeImmediate reads a verdict; immediate data for a register is not ours.
func decodeImmediate(data []byte) (expr.Any, error) {
	for a := attributes(data); a.next(); {
		if a.typ != unix.NFTA_IMMEDIATE_DATA {
			continue
		}
		for v := attributes(a.data); v.next(); {
			if v.typ != unix.NFTA_DATA_VERDICT {
				continue
			}
			verdict := decodeVerdict(v.data)
			if code, ok := verdictCode(verdict); ok {
				return &expr.Verdict{Kind: expr.VerdictKind(code), Chain: verdict.Chain}, nil
			}
		}
	}
	return nil, fmt.Errorf("an immediate expression of another kind")
}

// decodeLog reads a log expression. The kernel leaves out what is zero. The library's
// own reading takes what it is given for as long as it should be.
func decodeLog(data []byte) (expr.Any, error) {
	e := &expr.Log{}
	for a := attributes(data); a.next(); {
		switch {
		case a.typ == unix.NFTA_LOG_GROUP && len(a.data) == 2:
			e.Group = binary.BigEndian.Uint16(a.data)
		case a.typ == unix.NFTA_LOG_PREFIX:
			e.Data = []byte(cstring(a.data))
		case a.typ == unix.NFTA_LOG_SNAPLEN:
			e.Snaplen = a.uint32()
		default:
			return nil, fmt.Errorf("a log expression of another kind")
		}
		e.Key |= 1 << a.typ
	}
	return e, nil
}

// decodeDynset reads an update of a set whose elements have one limit. The library's
// own reading overlooks what it does not know, and fails on the padding that some
// machines have in limits.
func decodeDynset(data []byte) (expr.Any, error) {
	e := &expr.Dynset{}
	for a := attributes(data); a.next(); {
		switch {
		case a.typ == unix.NFTA_DYNSET_SET_NAME:
			e.SetName = cstring(a.data)
		case a.typ == unix.NFTA_DYNSET_OP:
			e.Operation = a.uint32()
		case a.typ == unix.NFTA_DYNSET_SREG_KEY:
			e.SrcRegKey = a.uint32()
		case a.typ == unix.NFTA_DYNSET_EXPR && cstring(attribute(a.data, unix.NFTA_EXPR_NAME)) == "limit":
			e.Exprs = append(e.Exprs, decodeLimit(attribute(a.data, unix.NFTA_EXPR_DATA)))
		case a.typ == unix.NFTA_DYNSET_FLAGS && a.uint32() == 0,
			// The kernel always says how long the rule wants elements to stay; 0 leaves
			// that to the set.
			a.typ == unix.NFTA_DYNSET_TIMEOUT && len(bytes.Trim(a.data, "\x00")) == 0,
			a.typ == unix.NFTA_DYNSET_SET_ID, a.typ == unix.NFTA_DYNSET_PAD:
		default:
			return nil, fmt.Errorf("a dynset expression of another kind")
		}
	}
	return e, nil
}

func decodeLimit(data []byte) *expr.Limit {
	l := &expr.Limit{
		Rate: number64(data, unix.NFTA_LIMIT_RATE), Unit: expr.LimitTime(number64(data, unix.NFTA_LIMIT_UNIT)),
	}
	for a := attributes(data); a.next(); {
		switch a.typ {
		case unix.NFTA_LIMIT_BURST:
			l.Burst = a.uint32()
		case unix.NFTA_LIMIT_TYPE:
			l.Type = expr.LimitType(a.uint32())
		case unix.NFTA_LIMIT_FLAGS:
			l.Over = a.uint32() != 0
		}
	}
	return l
}

// decodeMasq reads a masquerade with the one flag that ours has. The library's own
// reading overlooks flags that it does not know.
func decodeMasq(data []byte) (expr.Any, error) {
	a := attributes(data)
	if a.next() && a.typ == unix.NFTA_MASQ_FLAGS && a.uint32() == expr.NF_NAT_RANGE_PROTO_RANDOM_FULLY && !a.next() {
		return &expr.Masq{FullyRandom: true}, nil
	}
	return nil, fmt.Errorf("a masq expression of another kind")
}

// ruleDecoder takes expressions from the front of rest as long as it
// recognises them.
type ruleDecoder struct {
	family policy.Family
	rest   []expr.Any
	rule   policy.Rule
}

// peek returns expression i of the rest if it is of type T.
func peek[T expr.Any](d *ruleDecoder, i int) (e T, ok bool) {
	if i >= len(d.rest) {
		return e, false
	}
	e, ok = d.rest[i].(T)
	return e, ok
}

func (d *ruleDecoder) take(n int, m policy.Match) bool {
	d.rest = d.rest[n:]
	d.rule.Match = append(d.rule.Match, m)
	return true
}

// match takes one match, and tells whether there was one.
func (d *ruleDecoder) match() bool {
	if len(d.rest) < 2 {
		return false
	}
	if d.icmpv6Type() {
		return true
	}
	fd, size, ok := d.field(0, reg1)
	if !ok {
		return false
	}
	m := policy.Match{Field: fd.name}
	switch next := d.rest[1].(type) {
	case *expr.Cmp:
		return d.compare(fd, size, m, next)
	case *expr.Bitwise:
		return d.masked(fd, size, m, next)
	case *expr.Lookup:
		return d.lookup(fd, size, m, next, 2)
	}
	second, secondSize, ok := d.field(1, regAfter(fd.size))
	lookup, isLookup := peek[*expr.Lookup](d, 2)
	if !ok || !isLookup || second.key == 0 || secondSize != second.size || lookup.IsDestRegSet || lookup.Invert {
		return false
	}
	m.And = second.name
	return d.lookup(fd, size, m, lookup, 3)
}

// namedField is a field with its name.
type namedField struct {
	field
	name policy.Field
}

// field recognises expression i as the load of a field into register reg. size
// is how many bytes are loaded: of an address there may be fewer than it has.
func (d *ruleDecoder) field(i int, reg uint32) (nf namedField, size int, ok bool) {
	if i >= len(d.rest) {
		return nf, 0, false
	}
	for name := policy.FieldCtState; name <= policy.FieldIifname; name++ {
		fd, known := fieldOf(d.family, name, reg)
		if !known || name == policy.FieldICMPv6Type {
			continue
		}
		if size, ok := sameLoad(d.rest[i], &fd); ok {
			return namedField{fd, name}, size, true
		}
	}
	return nf, 0, false
}

func sameLoad(e expr.Any, fd *field) (size int, ok bool) {
	switch want := fd.load.(type) {
	case *expr.Ct:
		got, ok := e.(*expr.Ct)
		return fd.size, ok && *got == *want
	case *expr.Meta:
		got, ok := e.(*expr.Meta)
		return fd.size, ok && *got == *want
	case *expr.Payload:
		got, ok := e.(*expr.Payload)
		if !ok || got.Len == 0 || got.Len > want.Len {
			return 0, false
		}
		if fd.key != policy.TypeAddr && got.Len != want.Len {
			return 0, false
		}
		whole := *got
		whole.Len = want.Len
		return int(got.Len), whole == *want
	}
	return 0, false
}

// icmpv6Type takes the comparison of an ICMPv6 type, the first in a rule with
// what it depends on.
func (d *ruleDecoder) icmpv6Type() bool {
	fd, ok := fieldOf(d.family, policy.FieldICMPv6Type, reg1)
	if !ok {
		return false
	}
	whole := d.rest
	if !looksAtICMPv6(d.rule.Match) {
		meta, isMeta := peek[*expr.Meta](d, 0)
		proto, isCmp := peek[*expr.Cmp](d, 1)
		if !isMeta || !isCmp || *meta != (expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}) || !isEqual(proto, []byte{ipProtoICMPv6}) {
			return false
		}
		d.rest = d.rest[2:]
	}
	load, isLoad := peek[*expr.Payload](d, 0)
	next, isNext := peek[*expr.Cmp](d, 1)
	if isLoad && isNext && *load == *fd.load.(*expr.Payload) &&
		d.compare(namedField{fd, policy.FieldICMPv6Type}, fd.size, policy.Match{Field: policy.FieldICMPv6Type}, next) {
		return true
	}
	d.rest = whole
	return false
}

// compare takes a load and a comparison, or two of a range.
func (d *ruleDecoder) compare(fd namedField, size int, m policy.Match, c *expr.Cmp) bool {
	if c.Register != reg1 || len(c.Data) == 0 || len(c.Data) > size {
		return false
	}
	if c.Op == expr.CmpOpGte {
		to, ok := peek[*expr.Cmp](d, 2)
		if !ok || to.Op != expr.CmpOpLte || to.Register != reg1 || len(c.Data) != fd.size || len(to.Data) != fd.size || fd.host || fd.size > 2 {
			return false
		}
		m.Op, m.Value, m.Arg = policy.OpRange, fd.number(c.Data), fd.number(to.Data)
		return d.take(3, m)
	}
	if c.Op != expr.CmpOpEq {
		return false
	}
	switch {
	case fd.key == policy.TypeAddr:
		if _, isPayload := fd.load.(*expr.Payload); isPayload && len(c.Data) != size {
			return false
		}
		whole := make([]byte, fd.size)
		copy(whole, c.Data)
		m.Op, m.Prefix = policy.OpPrefix, prefix(whole, 8*len(c.Data))
	case len(c.Data) != fd.size:
		return false
	case fd.name == policy.FieldIifname:
		m.Op, m.Name = policy.OpEqual, cstring(c.Data)
		if m.Name == "" || len(m.Name) == fd.size {
			return false
		}
		if padded := append([]byte(m.Name), make([]byte, fd.size-len(m.Name))...); !bytes.Equal(padded, c.Data) {
			return false
		}
	default:
		m.Op, m.Value = policy.OpEqual, fd.number(c.Data)
	}
	return d.take(2, m)
}

// masked takes a load, a mask and a comparison.
func (d *ruleDecoder) masked(fd namedField, size int, m policy.Match, b *expr.Bitwise) bool {
	c, ok := peek[*expr.Cmp](d, 2)
	if !ok || size != fd.size || !isMask(b, fd.size) || c.Register != reg1 || len(c.Data) != fd.size || !isZero(b.Xor) {
		return false
	}
	switch {
	case fd.name == policy.FieldCtState && c.Op == expr.CmpOpNeq && isZero(c.Data):
		m.Op, m.Value = policy.OpBits, fd.number(b.Mask)
	case fd.name == policy.FieldCtMark && c.Op == expr.CmpOpEq:
		m.Op, m.Arg, m.Value = policy.OpMasked, fd.number(b.Mask), fd.number(c.Data)
	case fd.key == policy.TypeAddr && c.Op == expr.CmpOpEq:
		bits, contiguous := maskBits(b.Mask)
		p := prefix(c.Data, bits)
		if !contiguous || bits > 0 && bits%8 == 0 || !bytes.Equal(p.Addr().AsSlice(), c.Data) {
			return false
		}
		m.Op, m.Prefix = policy.OpPrefix, p
	default:
		return false
	}
	return d.take(3, m)
}

func (d *ruleDecoder) lookup(fd namedField, size int, m policy.Match, l *expr.Lookup, n int) bool {
	if fd.key == 0 || size != fd.size || l.SourceRegister != reg1 || l.SetName == "" {
		return false
	}
	m.Op, m.Name = policy.OpIn, l.SetName
	switch {
	case l.IsDestRegSet:
		if l.DestRegister != unix.NFT_REG_VERDICT || l.Invert {
			return false
		}
		m.Op = policy.OpVerdict
	case l.Invert:
		m.Op = policy.OpNotIn
	}
	return d.take(n, m)
}

// statements takes what comes after the matches.
func (d *ruleDecoder) statements() {
	d.sample()
	if log, ok := peek[*expr.Log](d, 0); ok && log.Key == logKeys {
		l := policy.Log{Group: log.Group, Prefix: string(log.Data), Snaplen: log.Snaplen}
		if !canLog(&l) {
			return
		}
		d.rule.Log = l
		d.rest = d.rest[1:]
	}
	if _, ok := peek[*expr.Counter](d, 0); ok {
		d.rule.Counter = true
		d.rest = d.rest[1:]
	}
	if ref, ok := peek[*expr.Objref](d, 0); ok && ref.Type == unix.NFT_OBJECT_COUNTER && ref.Name != "" {
		d.rule.Count = ref.Name
		d.rest = d.rest[1:]
	}
	d.stamp()
	if len(d.rest) == 0 {
		return
	}
	switch e := d.rest[0].(type) {
	case *expr.Verdict:
		d.rule.Verdict = policy.Verdict{Kind: verdictKind(int32(e.Kind)), Chain: e.Chain}
	case *expr.Reject:
		switch {
		case e.Type == unix.NFT_REJECT_TCP_RST && e.Code == 0:
			d.rule.Verdict.Kind = policy.VerdictReset
		case e.Type == unix.NFT_REJECT_ICMP_UNREACH && d.family == policy.IPv4 && e.Code == codeProhibited4,
			e.Type == unix.NFT_REJECT_ICMP_UNREACH && d.family == policy.IPv6 && e.Code == codeProhibited6:
			d.rule.Verdict.Kind = policy.VerdictProhibit
		default:
			return
		}
	case *expr.Masq:
		if *e != (expr.Masq{FullyRandom: true}) {
			return
		}
		d.rule.Verdict.Kind = policy.VerdictMasquerade
	default:
		return
	}
	d.rest = d.rest[1:]
}

// sample takes the load of an address and the update of its element.
func (d *ruleDecoder) sample() {
	key, size, ok := d.field(0, reg1)
	update, isUpdate := peek[*expr.Dynset](d, 1)
	if !ok || !isUpdate || size != key.size || len(update.Exprs) != 1 {
		return
	}
	limit, isLimit := update.Exprs[0].(*expr.Limit)
	if !isLimit || limit.Rate != uint64(uint32(limit.Rate)) || *limit != *sampleLimit(uint32(limit.Rate), limit.Burst) {
		return
	}
	rest := *update
	rest.Exprs = nil
	if !reflect.DeepEqual(rest, expr.Dynset{SrcRegKey: reg1, SetName: update.SetName, Operation: unix.NFT_DYNSET_OP_UPDATE}) {
		return
	}
	s := policy.Sample{Set: update.SetName, Key: key.name, Rate: uint32(limit.Rate), Burst: limit.Burst}
	if canSample(&s) {
		d.rule.Sample = s
		d.rest = d.rest[2:]
	}
}

func (d *ruleDecoder) stamp() {
	load, isLoad := peek[*expr.Ct](d, 0)
	b, isBitwise := peek[*expr.Bitwise](d, 1)
	set, isSet := peek[*expr.Ct](d, 2)
	if !isLoad || !isBitwise || !isSet || !isMask(b, 4) ||
		*load != (expr.Ct{Key: expr.CtKeyMARK, Register: reg1}) ||
		*set != (expr.Ct{Key: expr.CtKeyMARK, Register: reg1, SourceRegister: true}) {
		return
	}
	mask, value := ^binary.NativeEndian.Uint32(b.Mask), binary.NativeEndian.Uint32(b.Xor)
	if mask == 0 {
		return
	}
	d.rule.Stamp = policy.Mark{Mask: mask, Value: value}
	d.rest = d.rest[3:]
}

// number is the reverse of field.value.
func (fd *field) number(b []byte) uint32 {
	switch {
	case len(b) == 1:
		return uint32(b[0])
	case len(b) == 2:
		return uint32(binary.BigEndian.Uint16(b))
	case len(b) == 4 && fd.host:
		return binary.NativeEndian.Uint32(b)
	}
	return 0
}

func isEqual(c *expr.Cmp, data []byte) bool {
	return c.Op == expr.CmpOpEq && c.Register == reg1 && bytes.Equal(c.Data, data)
}

func isMask(b *expr.Bitwise, size int) bool {
	return b.SourceRegister == reg1 && b.DestRegister == reg1 && int(b.Len) == size && len(b.Mask) == size && len(b.Xor) == size
}

func isZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// maskBits is the length of the prefix that a mask stands for.
func maskBits(mask []byte) (bits int, contiguous bool) {
	for bits < 8*len(mask) && mask[bits/8]&(0x80>>(bits%8)) != 0 {
		bits++
	}
	for i := bits; i < 8*len(mask); i++ {
		if mask[i/8]&(0x80>>(i%8)) != 0 {
			return bits, false
		}
	}
	return bits, true
}

// prefix is the prefix of the given length that an address is in.
func prefix(addr []byte, bits int) netip.Prefix {
	a, _ := netip.AddrFromSlice(addr)
	return netip.PrefixFrom(a, bits).Masked()
}
