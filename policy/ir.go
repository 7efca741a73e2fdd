package policy

import (
	"net/netip"
	"strconv"
)

// TableName is the name of the table in both families. All that is in it is
// ours; nothing outside it is.
const TableName = "selvage"

// Family is an address family, and with it one of the two tables.
type Family uint8

// The families, in the order of Ruleset.Tables.
const (
	IPv4 Family = iota
	IPv6
)

// Families lists both families.
var Families = [...]Family{IPv4, IPv6}

// FamilyOf returns the family of an unmapped address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// String returns nft's name of the family.
func (f Family) String() string {
	if f == IPv4 {
		return "ip"
	}
	return "ip6"
}

// Suffix returns what ends the name of every set of the family.
func (f Family) Suffix() string {
	if f == IPv4 {
		return "-v4"
	}
	return "-v6"
}

// Bits returns the length of an address in bits.
func (f Family) Bits() int {
	if f == IPv4 {
		return 32
	}
	return 128
}

// Ruleset is everything that should be in the kernel. Two rulesets are the
// same if and only if their texts are (see String): all slices are sorted.
type Ruleset struct {
	Tables [2]Table
}

// Table is one nftables table.
type Table struct {
	Family Family
	// Counters, Sets and Chains are sorted by name.
	Counters []Counter
	Sets     []Set
	Chains   []Chain
}

// Counter is a counter with a name: several rules can count in it, and it keeps what
// it has counted while they come and go.
type Counter struct {
	Name string
	// Comment says which policies it is about. Kernels before 5.10 do not keep it.
	Comment string
}

// Type is the type of one field of a set's key.
type Type uint8

// The types in use.
const (
	// TypeAddr is an address of the table's family: ipv4_addr or ipv6_addr.
	TypeAddr Type = iota + 1
	// TypeService is a port: inet_service.
	TypeService
)

// Set is a set, or, with Verdicts, a verdict map.
type Set struct {
	Name string
	// Key has one field, or two for a concatenation.
	Key [2]Type
	// Interval sets hold ranges that do not overlap. In those that never change,
	// ranges touch only where their verdicts differ; in the others each range comes
	// and goes by itself. They are red-black trees in the kernel: fine for what
	// rarely changes.
	Interval bool
	// Verdicts makes the set a verdict map.
	Verdicts bool
	// Dynamic sets are filled by packets (see Sample). Their elements are the
	// kernel's own, which forgets them after Timeout seconds, at least one.
	Dynamic bool
	Timeout uint32
	// Size, if not 0, is how many elements fit; the kernel then takes a hash
	// table of that size, which is faster than one that grows.
	Size    uint32
	Comment string
	// Elements are sorted by Key.
	Elements []Element
}

// Element is one element of a set or map.
type Element struct {
	// Key is the key in the kernel's own layout: network byte order, each
	// field of a concatenation padded to a multiple of four bytes. As a
	// string it can be compared, sorted and used as a map key.
	Key string
	// To is the last key of the range in an interval set, inclusive, and
	// equal to Key for a single value. Empty in other sets.
	To string
	// Verdict is what a verdict map answers.
	Verdict Verdict
}

// Chain is a chain; with a Hook, a base chain of policy accept.
type Chain struct {
	Name  string
	Hook  *Hook
	Rules []Rule
}

// Hook says where a base chain is attached.
type Hook struct {
	// Name is forward, input or postrouting.
	Name string
	// Priority is relative to 0, the priority of the filter chains of others.
	Priority int32
	// NAT makes it a chain of type nat in place of filter, which only the first
	// packet of a flow passes, and only if no such chain before it has translated
	// the flow's addresses.
	NAT bool
}

// Rule is one rule. It matches if all of Match do, from left to right; then it
// samples, logs, counts, stamps, and gives its verdict.
type Rule struct {
	Match []Match
	// Sample, if its Set is not empty, ends the rule for packets beyond a rate, as if
	// it had not matched.
	Sample Sample
	// Log, if its Group is not 0, sends the packet to whoever listens to that group.
	Log Log
	// Counter counts the packets and bytes that reach it.
	Counter bool
	// Count names the Counter that counts them, if it is not empty.
	Count string
	// Stamp, if its Mask is not zero, writes Value into the conntrack mark's
	// bits under Mask and leaves the others alone. Without a conntrack entry
	// the rule ends there, as if it had not matched.
	Stamp Mark
	// Verdict is zero if the rule has none or takes it from a map (OpVerdict).
	Verdict Verdict
	// Comment says which object the rule comes from.
	Comment string
}

// Sample lets only some packets pass, of each address so many.
type Sample struct {
	// Set is a dynamic set with Key as its key: FieldSaddr or FieldDaddr.
	Set string
	Key Field
	// Rate is in packets per second, and Burst in packets.
	Rate, Burst uint32
}

// Log says how a packet is logged by nflog.
type Log struct {
	Group  uint16
	Prefix string
	// Snaplen is how many bytes of the packet are logged.
	Snaplen uint32
}

// Mark is a value within the bits of a mask.
type Mark struct{ Mask, Value uint32 }

// Field is something of a packet or its flow that a rule can look at.
type Field uint8

// The fields. Without a conntrack entry no match on a Ct field is true, but
// for FieldCtState.
const (
	FieldNone Field = iota
	// FieldCtState is conntrack's classification, as bits (StateEstablished...).
	FieldCtState
	// FieldCtMark is the flow's mark.
	FieldCtMark
	// FieldCtDirection is 0 for packets of the one who opened the flow, 1 for replies.
	FieldCtDirection
	// FieldCtProtocol is the flow's protocol. An ICMP error that belongs to a
	// flow has the protocol of the flow.
	FieldCtProtocol
	// FieldCtOriginalSaddr is the address that opened the flow, before SNAT.
	FieldCtOriginalSaddr
	// FieldCtReplySaddr is the address that answers, after DNAT.
	FieldCtReplySaddr
	// FieldCtReplyProtoSrc is the port that answers, after DNAT.
	FieldCtReplyProtoSrc
	// FieldSaddr and FieldDaddr are the addresses in the packet's own header.
	FieldSaddr
	FieldDaddr
	// FieldL4Proto is the packet's own transport protocol.
	FieldL4Proto
	// FieldICMPv6Type is the type of an ICMPv6 message; no other packet matches.
	FieldICMPv6Type
	// FieldHopLimit is IPv6's hop limit.
	FieldHopLimit
	// FieldIifname is the name of the interface the packet came in by.
	FieldIifname
)

// The bits of FieldCtState (enum nft's ct state).
const (
	StateInvalid     uint32 = 1
	StateEstablished uint32 = 2
	StateRelated     uint32 = 4
	StateNew         uint32 = 8
	StateUntracked   uint32 = 64
)

// Op is how a Match compares.
type Op uint8

// The operations.
const (
	// OpEqual: the field is Value (or, for FieldIifname, Name).
	OpEqual Op = iota + 1
	// OpBits: the field has one of the bits of Value.
	OpBits
	// OpMasked: the field under Arg is Value.
	OpMasked
	// OpRange: the field is between Value and Arg, both included.
	OpRange
	// OpPrefix: the address is in Prefix.
	OpPrefix
	// OpIn: Field, or Field . And, is in the set Name.
	OpIn
	// OpNotIn: Field is not in the set Name.
	OpNotIn
	// OpVerdict: Field is in the verdict map Name, whose verdict is taken.
	OpVerdict
)

// Match is one comparison of a rule.
type Match struct {
	Field Field
	// And is the second field of a concatenation (OpIn only).
	And    Field
	Op     Op
	Value  uint32
	Arg    uint32
	Prefix netip.Prefix
	Name   string
}

// VerdictKind is what becomes of a packet.
type VerdictKind uint8

// The verdicts.
const (
	VerdictNone VerdictKind = iota
	// VerdictAccept ends the base chain; those of others still see the packet.
	VerdictAccept
	VerdictDrop
	// VerdictReturn goes back to where the chain was jumped to from.
	VerdictReturn
	VerdictJump
	// VerdictGoto is a jump that does not come back: a return in the chain
	// goes to where the present chain would have returned to.
	VerdictGoto
	// VerdictReset drops, and answers with a TCP reset.
	VerdictReset
	// VerdictProhibit drops, and answers that it was administratively prohibited.
	VerdictProhibit
	// VerdictMasquerade gives the flow the address of the interface that it leaves by
	// as its source, and a random port. It ends a chain of type nat.
	VerdictMasquerade
)

// Verdict is what a rule or the element of a verdict map decides.
type Verdict struct {
	Kind VerdictKind
	// Chain is the target of a jump or goto.
	Chain string
}

// AddrKey is the key of an address.
func AddrKey(a netip.Addr) string {
	if a.Is4() {
		b := a.As4()
		return string(b[:])
	}
	b := a.As16()
	return string(b[:])
}

// ServiceKey is the key of a port in a set of ports.
func ServiceKey(port uint16) string { return string([]byte{byte(port >> 8), byte(port)}) }

// AddrPairKey is the key of address . address.
func AddrPairKey(a, b netip.Addr) string { return AddrKey(a) + AddrKey(b) }

// AddrServiceKey is the key of address . port.
func AddrServiceKey(a netip.Addr, port uint16) string {
	return AddrKey(a) + ServiceKey(port) + "\x00\x00"
}

func itoa(v uint32) string { return strconv.FormatUint(uint64(v), 10) }
