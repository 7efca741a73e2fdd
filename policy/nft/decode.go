package nft

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// Values that no Encode makes and that equal nothing that is wanted.
const (
	opForeign      policy.Op          = 0xff
	verdictForeign policy.VerdictKind = 0xff
	typeForeign    policy.Type        = 0xff
)

// nfAccept is NF_ACCEPT in linux/netfilter.h.
const nfAccept = 1

// foreignRule stands for a rule, or the state of a chain, that is not ours.
func foreignRule(what string) policy.Rule {
	return policy.Rule{Match: []policy.Match{{Op: opForeign}}, Comment: "foreign: " + what}
}

// decoder gathers what the kernel lists of one table.
type decoder struct {
	table *policy.Table
	// chains are the indices into table.Chains by name.
	chains map[string]int
}

func newDecoder(t *policy.Table) *decoder {
	return &decoder{table: t, chains: map[string]int{}}
}

// finish puts everything in the order that a Ruleset has.
func (d *decoder) finish() {
	slices.SortFunc(d.table.Chains, func(a, b policy.Chain) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(d.table.Sets, func(a, b policy.Set) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(d.table.Counters, func(a, b policy.Counter) int { return strings.Compare(a.Name, b.Name) })
}

// chain takes in the attributes of a NEWCHAIN message. The kernel gives
// those of other tables too if it is older than 6.9 (NFTA_CHAIN_TABLE in a
// listing).
func (d *decoder) chain(b []byte) {
	var ch policy.Chain
	var table, typ string
	hook, accept := []byte(nil), true
	for a := attributes(b); a.next(); {
		switch a.typ {
		case unix.NFTA_CHAIN_TABLE:
			table = cstring(a.data)
		case unix.NFTA_CHAIN_NAME:
			ch.Name = cstring(a.data)
		case unix.NFTA_CHAIN_TYPE:
			typ = cstring(a.data)
		case unix.NFTA_CHAIN_POLICY:
			accept = a.uint32() == nfAccept
		case unix.NFTA_CHAIN_HOOK:
			hook = a.data
		}
	}
	if table != policy.TableName {
		return
	}
	if hook != nil {
		ch.Hook = decodeHook(hook, typ, accept)
	}
	d.chains[ch.Name] = len(d.table.Chains)
	d.table.Chains = append(d.table.Chains, ch)
}

func decodeHook(b []byte, typ string, accept bool) *policy.Hook {
	h := &policy.Hook{}
	for a := attributes(b); a.next(); {
		switch a.typ {
		case unix.NFTA_HOOK_HOOKNUM:
			switch n := a.uint32(); n {
			case unix.NF_INET_FORWARD:
				h.Name = hookForward
			case unix.NF_INET_LOCAL_IN:
				h.Name = hookInput
			case unix.NF_INET_POST_ROUTING:
				h.Name = hookPostrouting
			default:
				h.Name = fmt.Sprintf("foreign: hook %d", n)
			}
		case unix.NFTA_HOOK_PRIORITY:
			h.Priority = int32(a.uint32())
		}
	}
	h.NAT = typ == "nat"
	if typ != "filter" && !h.NAT || !accept {
		h.Name = fmt.Sprintf("foreign: %s, type %s, policy accept %t", h.Name, typ, accept)
	}
	return h
}

// rule takes in the attributes of a NEWRULE message. The kernel lists the rules
// of a chain in their order.
func (d *decoder) rule(b []byte) {
	var table, chain, comment string
	var expressions []byte
	for a := attributes(b); a.next(); {
		switch a.typ {
		case unix.NFTA_RULE_TABLE:
			table = cstring(a.data)
		case unix.NFTA_RULE_CHAIN:
			chain = cstring(a.data)
		case unix.NFTA_RULE_EXPRESSIONS:
			expressions = a.data
		case unix.NFTA_RULE_USERDATA:
			comment = userComment(a.data, userdata.TypeComment)
		}
	}
	i, ok := d.chains[chain]
	if !ok || table != policy.TableName {
		return
	}
	r := decodeRule(d.table.Family, expressions)
	if len(r.Match) != 1 || r.Match[0].Op != opForeign {
		r.Comment = comment
	}
	d.table.Chains[i].Rules = append(d.table.Chains[i].Rules, r)
}

// userComment finds a comment in user data, which anybody may have written:
// other than the library's userdata.Get it survives what is malformed.
func userComment(b []byte, typ userdata.Type) string {
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		if userdata.Type(b[0]) == typ {
			return cstring(b[2 : 2+int(b[1])])
		}
		b = b[2+int(b[1]):]
	}
	return ""
}

// The flags of sets that can be ours (enum nft_set_flags).
const (
	setAnonymous = unix.NFT_SET_ANONYMOUS
	setInterval  = unix.NFT_SET_INTERVAL
	setMap       = unix.NFT_SET_MAP
	setDynamic   = unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL
)

// set takes in the attributes of a NEWSET message. An anonymous set belongs to
// a rule that is not ours and goes away with it.
func (d *decoder) set(b []byte) {
	var s policy.Set
	var table string
	var flags, keyType, length, dataType uint32
	stateful := false
	for a := attributes(b); a.next(); {
		switch a.typ {
		case unix.NFTA_SET_TABLE:
			table = cstring(a.data)
		case unix.NFTA_SET_NAME:
			s.Name = cstring(a.data)
		case unix.NFTA_SET_FLAGS:
			flags = a.uint32()
		case unix.NFTA_SET_KEY_TYPE:
			keyType = a.uint32()
		case unix.NFTA_SET_KEY_LEN:
			length = a.uint32()
		case unix.NFTA_SET_DATA_TYPE:
			dataType = a.uint32()
		case unix.NFTA_SET_USERDATA:
			s.Comment = userComment(a.data, userdata.NFTNL_UDATA_SET_COMMENT)
		case unix.NFTA_SET_TIMEOUT:
			s.Timeout = seconds(a.data)
		case nftaSetExpr, nftaSetExpressions:
			stateful = true
		case unix.NFTA_SET_DESC:
			for desc := attributes(a.data); desc.next(); {
				if desc.typ == unix.NFTA_SET_DESC_SIZE {
					s.Size = desc.uint32()
				}
			}
		}
	}
	if table != policy.TableName || flags&setAnonymous != 0 {
		return
	}
	s.Interval, s.Verdicts = flags&setInterval != 0, flags&setMap != 0
	s.Key = decodeKeyType(d.table.Family, keyType)
	s.Dynamic = flags&setDynamic == setDynamic && s.Timeout != 0
	if s.Dynamic {
		flags &^= setDynamic
	}
	if flags&^(setInterval|setMap) != 0 || stateful || s.Dynamic && (s.Interval || s.Verdicts) || s.Verdicts != (dataType == unix.NFT_DATA_VERDICT) || int(length) != keyLen(d.table.Family, &s) {
		s.Key = [2]policy.Type{typeForeign}
	}
	d.table.Sets = append(d.table.Sets, s)
}

// seconds reads a time that the kernel has in milliseconds; 0 if it is not one of
// whole seconds.
func seconds(b []byte) uint32 {
	if len(b) != 8 {
		return 0
	}
	ms := binary.BigEndian.Uint64(b)
	if ms%1000 != 0 || ms/1000 > math.MaxUint32 {
		return 0
	}
	return uint32(ms / 1000)
}

// Attributes of a set whose elements have counters or the like (enum
// nft_set_attributes in nf_tables.h).
const (
	nftaSetExpr        = 17
	nftaSetExpressions = 18
)

// decodeKeyType takes apart the number that nft(8) keeps in the kernel for the
// type of a key: six bits for each field, the last field in the lowest.
func decodeKeyType(f policy.Family, keyType uint32) [2]policy.Type {
	for _, key := range [][2]policy.Type{
		{policy.TypeAddr}, {policy.TypeService},
		{policy.TypeAddr, policy.TypeService}, {policy.TypeAddr, policy.TypeAddr},
	} {
		t, err := setType(f, &policy.Set{Key: key})
		if err == nil && t.GetNFTMagic() == keyType {
			return key
		}
	}
	return [2]policy.Type{typeForeign}
}

// listed is an element as the kernel lists it: for an interval, one end of it.
type listed struct {
	key     string
	verdict policy.Verdict
	flags   uint32
}

// elements takes in the elements of a set, and tells whether none was listed
// twice. Keys are parts of one string per message, since there may be very many.
func (d *decoder) elements(s *policy.Set, msgs []netlink.Message) (complete bool) {
	var list []listed
	for i := range msgs {
		if len(msgs[i].Data) <= nfgenmsgLen {
			continue
		}
		data := msgs[i].Data[nfgenmsgLen:]
		text := string(data)
		for a := attributes(data); a.next(); {
			if a.typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for e := attributes(a.data); e.next(); {
				list = append(list, decodeElement(e.data, text, data))
			}
		}
	}
	slices.SortFunc(list, func(a, b listed) int {
		// Where one interval ends and the next begins, the end comes first.
		return cmp.Or(strings.Compare(a.key, b.key), cmp.Compare(b.flags&elemIntervalEnd, a.flags&elemIntervalEnd))
	})
	for i := 1; i < len(list); i++ {
		if list[i].key == list[i-1].key && list[i].flags == list[i-1].flags {
			return false
		}
	}
	if s.Interval {
		s.Elements = joinIntervals(list)
		return true
	}
	s.Elements = make([]policy.Element, len(list))
	for i := range list {
		s.Elements[i] = policy.Element{Key: list[i].key, Verdict: list[i].verdict}
	}
	return true
}

// decodeElement reads one element, b, which lies within data; text is data as
// a string. Parts of a slice keep the capacity up to its end, which tells where
// in data they are.
func decodeElement(b []byte, text string, data []byte) listed {
	var e listed
	for a := attributes(b); a.next(); {
		switch a.typ {
		case unix.NFTA_SET_ELEM_KEY:
			for k := attributes(a.data); k.next(); {
				if k.typ == unix.NFTA_DATA_VALUE {
					at := cap(data) - cap(k.data)
					e.key = text[at : at+len(k.data)]
				}
			}
		case unix.NFTA_SET_ELEM_FLAGS:
			e.flags = a.uint32()
		case unix.NFTA_SET_ELEM_DATA:
			for v := attributes(a.data); v.next(); {
				if v.typ == unix.NFTA_DATA_VERDICT {
					e.verdict = decodeVerdict(v.data)
				}
			}
		}
	}
	return e
}

// joinIntervals makes ranges of the ends that the kernel keeps: the first key
// of a range, and, marked as an end, the first key after it. A range up to the
// last key there is has no end. An end without a beginning, as nft(8) puts it
// at zero, means nothing.
func joinIntervals(list []listed) []policy.Element {
	var ranges []policy.Element
	for i := range list {
		if list[i].flags&elemIntervalEnd != 0 {
			continue
		}
		e := policy.Element{Key: list[i].key, Verdict: list[i].verdict}
		if i+1 < len(list) {
			e.To = decrement(list[i+1].key)
		} else {
			e.To = strings.Repeat("\xff", len(e.Key))
		}
		ranges = append(ranges, e)
	}
	return ranges
}

// decodeVerdict reads a verdict from the attributes within NFTA_DATA_VERDICT.
func decodeVerdict(b []byte) policy.Verdict {
	var v policy.Verdict
	var code int32
	for a := attributes(b); a.next(); {
		switch a.typ {
		case unix.NFTA_VERDICT_CODE:
			code = int32(a.uint32())
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = cstring(a.data)
		}
	}
	v.Kind = verdictKind(code)
	return v
}

// verdictKind is the reverse of verdictCode.
func verdictKind(code int32) policy.VerdictKind {
	switch expr.VerdictKind(code) {
	case expr.VerdictAccept:
		return policy.VerdictAccept
	case expr.VerdictDrop:
		return policy.VerdictDrop
	case expr.VerdictReturn:
		return policy.VerdictReturn
	case expr.VerdictJump:
		return policy.VerdictJump
	case expr.VerdictGoto:
		return policy.VerdictGoto
	}
	return verdictForeign
}
