package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"go4.org/netipx"
)

// String renders the ruleset in nft's syntax, ready for `nft -f`. It is
// complete: two rulesets with the same text are the same.
func (r *Ruleset) String() string {
	var b strings.Builder
	for i := range r.Tables {
		r.Tables[i].write(&b)
	}
	return b.String()
}

func (t *Table) write(b *strings.Builder) {
	if len(t.Counters)+len(t.Sets)+len(t.Chains) == 0 {
		return
	}
	fmt.Fprintf(b, "table %s %s {\n", t.Family, TableName)
	for i := range t.Counters {
		t.Counters[i].write(b)
	}
	for i := range t.Sets {
		t.Sets[i].write(b, t.Family)
	}
	// nft reads a table from top to bottom: verdict maps name chains, so that
	// elements of maps come after the chains.
	for i := range t.Chains {
		t.Chains[i].write(b, t.Family)
	}
	b.WriteString("}\n")
	for i := range t.Sets {
		if s := &t.Sets[i]; s.Verdicts && len(s.Elements) > 0 {
			fmt.Fprintf(b, "add element %s %s %s {\n", t.Family, TableName, s.Name)
			s.writeElements(b, "\t")
			b.WriteString("}\n")
		}
	}
}

func (c *Counter) write(b *strings.Builder) {
	fmt.Fprintf(b, "\tcounter %s {\n", c.Name)
	if c.Comment != "" {
		fmt.Fprintf(b, "\t\tcomment %q\n", c.Comment)
	}
	b.WriteString("\t}\n\n")
}

func (s *Set) write(b *strings.Builder, f Family) {
	kind, value := "set", ""
	if s.Verdicts {
		kind, value = "map", " : verdict"
	}
	fmt.Fprintf(b, "\t%s %s {\n\t\ttype %s%s\n", kind, s.Name, s.typeName(f), value)
	if s.Interval {
		b.WriteString("\t\tflags interval\n")
	}
	if s.Dynamic {
		fmt.Fprintf(b, "\t\tflags dynamic,timeout\n\t\ttimeout %ds\n", s.Timeout)
	}
	if s.Size != 0 {
		fmt.Fprintf(b, "\t\tsize %d\n", s.Size)
	}
	if s.Comment != "" {
		fmt.Fprintf(b, "\t\tcomment %q\n", s.Comment)
	}
	if !s.Verdicts && len(s.Elements) > 0 {
		b.WriteString("\t\telements = {\n")
		s.writeElements(b, "\t\t\t")
		b.WriteString("\t\t}\n")
	}
	b.WriteString("\t}\n\n")
}

func (s *Set) typeName(f Family) string {
	names := make([]string, 0, len(s.Key))
	for _, t := range s.Key {
		switch t {
		case TypeAddr:
			names = append(names, map[Family]string{IPv4: "ipv4_addr", IPv6: "ipv6_addr"}[f])
		case TypeService:
			names = append(names, "inet_service")
		}
	}
	return strings.Join(names, " . ")
}

func (s *Set) writeElements(b *strings.Builder, indent string) {
	for _, e := range s.Elements {
		b.WriteString(indent)
		b.WriteString(s.ElementText(e))
		b.WriteString(",\n")
	}
}

// ElementText renders one element of the set as nft writes it.
func (s *Set) ElementText(e Element) string {
	text := s.keyText(e.Key)
	if s.Interval && e.To != e.Key {
		text = s.rangeText(e)
	}
	if s.Verdicts {
		text += " : " + e.Verdict.String()
	}
	return text
}

func (s *Set) rangeText(e Element) string {
	if s.Key[0] == TypeAddr {
		from, _ := netip.AddrFromSlice([]byte(e.Key))
		to, _ := netip.AddrFromSlice([]byte(e.To))
		if p, ok := netipx.IPRangeFrom(from, to).Prefix(); ok {
			return p.String()
		}
	}
	return s.keyText(e.Key) + "-" + s.keyText(e.To)
}

func (s *Set) keyText(key string) string {
	var fields []string
	for _, t := range s.Key {
		switch t {
		case TypeAddr:
			n := 4
			if len(key) >= 16 {
				n = 16
			}
			a, _ := netip.AddrFromSlice([]byte(key[:n]))
			fields = append(fields, a.String())
			key = key[n:]
		case TypeService:
			fields = append(fields, itoa(uint32(key[0])<<8|uint32(key[1])))
			key = ""
		}
	}
	return strings.Join(fields, " . ")
}

func (c *Chain) write(b *strings.Builder, f Family) {
	fmt.Fprintf(b, "\tchain %s {\n", c.Name)
	if c.Hook != nil {
		fmt.Fprintf(b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.Hook.typeName(), c.Hook.Name, c.Hook.Priority)
	}
	for i := range c.Rules {
		b.WriteString("\t\t")
		b.WriteString(c.Rules[i].Text(f))
		b.WriteByte('\n')
	}
	b.WriteString("\t}\n\n")
}

func (h *Hook) typeName() string {
	if h.NAT {
		return "nat"
	}
	return "filter"
}

// Text renders the rule for the table of family f.
func (r *Rule) Text(f Family) string {
	var words []string
	for i := range r.Match {
		words = append(words, r.Match[i].text(f))
	}
	if s := &r.Sample; s.Set != "" {
		words = append(words, fmt.Sprintf("update @%s { %s limit rate %d/second burst %d packets }", s.Set, s.Key.text(f), s.Rate, s.Burst))
	}
	if l := &r.Log; l.Group != 0 {
		words = append(words, fmt.Sprintf("log prefix %q group %d snaplen %d", l.Prefix, l.Group, l.Snaplen))
	}
	if r.Counter {
		words = append(words, "counter")
	}
	if r.Count != "" {
		words = append(words, fmt.Sprintf("counter name %q", r.Count))
	}
	if r.Stamp.Mask != 0 {
		words = append(words, fmt.Sprintf("ct mark set ct mark & 0x%08x | 0x%08x", ^r.Stamp.Mask|r.Stamp.Value, r.Stamp.Value))
	}
	if r.Verdict.Kind != VerdictNone {
		words = append(words, r.Verdict.text(f))
	}
	if r.Comment != "" {
		words = append(words, fmt.Sprintf("comment %q", r.Comment))
	}
	return strings.Join(words, " ")
}

func (m *Match) text(f Family) string {
	name := m.Field.text(f)
	switch m.Op {
	case OpBits:
		return name + " " + stateNames(m.Value)
	case OpMasked:
		return fmt.Sprintf("%s & 0x%08x == 0x%08x", name, m.Arg, m.Value)
	case OpRange:
		return name + " " + m.Field.valueText(m.Value) + "-" + m.Field.valueText(m.Arg)
	case OpPrefix:
		return name + " " + m.Prefix.String()
	case OpIn:
		if m.And != FieldNone {
			name += " . " + m.And.text(f)
		}
		return name + " @" + m.Name
	case OpNotIn:
		return name + " != @" + m.Name
	case OpVerdict:
		return name + " vmap @" + m.Name
	}
	if m.Field == FieldIifname {
		return fmt.Sprintf("%s %q", name, m.Name)
	}
	return name + " " + m.Field.valueText(m.Value)
}

func (fd Field) text(f Family) string {
	switch fd {
	case FieldCtState:
		return "ct state"
	case FieldCtMark:
		return "ct mark"
	case FieldCtDirection:
		return "ct direction"
	case FieldCtProtocol:
		return "ct protocol"
	case FieldCtOriginalSaddr:
		return "ct original " + f.String() + " saddr"
	case FieldCtReplySaddr:
		return "ct reply " + f.String() + " saddr"
	case FieldCtReplyProtoSrc:
		return "ct reply proto-src"
	case FieldSaddr:
		return f.String() + " saddr"
	case FieldDaddr:
		return f.String() + " daddr"
	case FieldL4Proto:
		return "meta l4proto"
	case FieldICMPv6Type:
		return "icmpv6 type"
	case FieldHopLimit:
		return "ip6 hoplimit"
	case FieldIifname:
		return "iifname"
	}
	return fmt.Sprintf("field-%d", fd)
}

func (fd Field) valueText(v uint32) string {
	switch fd {
	case FieldCtProtocol, FieldL4Proto:
		return Protocol(v).String()
	case FieldCtDirection:
		if v == 0 {
			return "original"
		}
		return "reply"
	}
	return itoa(v)
}

func stateNames(bits uint32) string {
	var names []string
	for _, s := range []struct {
		bit  uint32
		name string
	}{
		{StateInvalid, "invalid"}, {StateEstablished, "established"}, {StateRelated, "related"},
		{StateNew, "new"}, {StateUntracked, "untracked"},
	} {
		if bits&s.bit != 0 {
			names = append(names, s.name)
		}
	}
	return strings.Join(names, ",")
}

// String renders the verdict as in the element of a verdict map.
func (v Verdict) String() string { return v.text(IPv4) }

func (v Verdict) text(f Family) string {
	switch v.Kind {
	case VerdictAccept:
		return "accept"
	case VerdictDrop:
		return "drop"
	case VerdictReturn:
		return "return"
	case VerdictJump:
		return "jump " + v.Chain
	case VerdictGoto:
		return "goto " + v.Chain
	case VerdictReset:
		return "reject with tcp reset"
	case VerdictProhibit:
		if f == IPv6 {
			return "reject with icmpv6 admin-prohibited"
		}
		return "reject with icmp admin-prohibited"
	case VerdictMasquerade:
		return "masquerade fully-random"
	}
	return "none"
}
