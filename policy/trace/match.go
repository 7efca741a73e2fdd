package trace

import (
	"fmt"

	"github.com/selvage-net/selvage/policy"
)

// operations are those that each field can be looked at with.
var operations = map[policy.Field][]policy.Op{
	policy.FieldCtState:         {policy.OpBits},
	policy.FieldCtMark:          {policy.OpMasked},
	policy.FieldCtDirection:     {policy.OpEqual},
	policy.FieldCtProtocol:      {policy.OpEqual},
	policy.FieldCtOriginalSaddr: {policy.OpPrefix, policy.OpIn, policy.OpVerdict},
	policy.FieldCtReplySaddr:    {policy.OpPrefix, policy.OpIn, policy.OpVerdict},
	policy.FieldCtReplyProtoSrc: {policy.OpEqual, policy.OpRange, policy.OpIn, policy.OpVerdict},
	policy.FieldSaddr:           {policy.OpPrefix, policy.OpIn, policy.OpNotIn, policy.OpVerdict},
	policy.FieldDaddr:           {policy.OpPrefix, policy.OpIn, policy.OpNotIn, policy.OpVerdict},
	policy.FieldL4Proto:         {policy.OpEqual},
	policy.FieldICMPv6Type:      {policy.OpEqual, policy.OpRange},
	policy.FieldHopLimit:        {policy.OpEqual},
	policy.FieldIifname:         {policy.OpEqual},
}

// checkMatch says why a comparison makes no sense in a table of family f.
func checkMatch(m *policy.Match, f policy.Family) error {
	known := false
	for _, op := range operations[m.Field] {
		known = known || op == m.Op
	}
	switch {
	case !known:
		return fmt.Errorf("unknown: field %d with operation %d", m.Field, m.Op)
	case m.And != policy.FieldNone && m.Op != policy.OpIn:
		return fmt.Errorf("field %d with operation %d: only a set can have a second field", m.Field, m.Op)
	case m.Op == policy.OpPrefix && (!m.Prefix.IsValid() || policy.FamilyOf(m.Prefix.Addr()) != f || m.Prefix != m.Prefix.Masked()):
		return fmt.Errorf("the prefix %s is not one of family %s", m.Prefix, f)
	case m.Op == policy.OpRange && m.Value > m.Arg:
		return fmt.Errorf("the range %d-%d is empty", m.Value, m.Arg)
	case m.Op == policy.OpMasked && m.Value&^m.Arg != 0:
		return fmt.Errorf("%#x is not within the mask %#x", m.Value, m.Arg)
	case f == policy.IPv4 && (m.Field == policy.FieldICMPv6Type || m.Field == policy.FieldHopLimit):
		return fmt.Errorf("field %d in a table of family %s", m.Field, f)
	case m.Field == policy.FieldCtReplyProtoSrc && m.Op != policy.OpIn && (m.Value > 65535 || m.Arg > 65535):
		return fmt.Errorf("there is no port %d or %d", m.Value, m.Arg)
	case m.Field == policy.FieldIifname && (m.Name == "" || len(m.Name) > 15):
		return fmt.Errorf("no interface can be called %q", m.Name)
	}
	return nil
}

// maxPrefix is NF_LOG_PREFIXLEN without the terminating zero.
const maxPrefix = 127

// checkLog says why a rule cannot log like that.
func checkLog(r *policy.Rule) error {
	l := &r.Log
	if *l == (policy.Log{}) {
		return nil
	}
	if l.Group == 0 || l.Snaplen == 0 || l.Prefix == "" || len(l.Prefix) > maxPrefix {
		return fmt.Errorf("unknown: a log to group %d with prefix %q and %d bytes", l.Group, l.Prefix, l.Snaplen)
	}
	return nil
}

// checkSample says why packets cannot be sampled in a set like that.
func checkSample(set *policy.Set, s *policy.Sample) error {
	if s.Key != policy.FieldSaddr && s.Key != policy.FieldDaddr || s.Rate == 0 || s.Burst == 0 {
		return fmt.Errorf("unknown: a sample of field %d, %d per second, burst %d", s.Key, s.Rate, s.Burst)
	}
	if !set.Dynamic {
		return fmt.Errorf("set %s is not one that packets fill", set.Name)
	}
	return checkKey(set, []policy.Field{s.Key})
}

// checkKey says whether the fields are those that a set is keyed by.
func checkKey(set *policy.Set, fields []policy.Field) error {
	var key [2]policy.Type
	for i, f := range fields {
		switch {
		case isAddr(f):
			key[i] = policy.TypeAddr
		case f == policy.FieldCtReplyProtoSrc:
			key[i] = policy.TypeService
		default:
			return fmt.Errorf("field %d cannot be looked up in a set", f)
		}
	}
	if key != set.Key {
		return fmt.Errorf("set %s is not keyed by fields %v", set.Name, fields)
	}
	return nil
}
