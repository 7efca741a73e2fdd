package policy

import (
	"slices"
	"strings"
)

// protocols lists what a policy can name, in the order of rules.
var protocols = [...]Protocol{TCP, UDP, SCTP}

func protocolIndex(p Protocol) int { return slices.Index(protocols[:], p) }

// portRange is a range of ports, both ends included.
type portRange struct{ from, to uint16 }

// namedPort is a port by name; which number it is depends on the pod.
type namedPort struct {
	name     string
	protocol Protocol
}

// portSet is what the ports of one or several policy rules allow. It is
// canonical (equal sets have equal keys) and immutable.
type portSet struct {
	// all allows every protocol, not only those that have ports.
	all bool
	// ranges are sorted and neither overlap nor touch.
	ranges [len(protocols)][]portRange
	named  []namedPort
	// text is the key if it was worked out already.
	text string
}

func (s *portSet) empty() bool {
	if s.all || len(s.named) > 0 {
		return false
	}
	for _, r := range s.ranges {
		if len(r) > 0 {
			return false
		}
	}
	return true
}

// everyPort is the range that stands for a protocol without a port. It begins
// at 0, because a protocol alone allows whatever it carries.
var everyPort = portRange{0, 65535}

// newPortSet brings ranges and names into their canonical form.
func newPortSet(ranges [len(protocols)][]portRange, named []namedPort) portSet {
	var s portSet
	for i := range ranges {
		s.ranges[i] = mergeRanges(ranges[i])
	}
	if len(named) > 0 {
		s.named = slices.Clone(named)
		slices.SortFunc(s.named, compareNamed)
		s.named = slices.Compact(s.named)
	}
	s.text = s.key()
	return s
}

func compareNamed(a, b namedPort) int {
	if c := strings.Compare(a.name, b.name); c != 0 {
		return c
	}
	return int(a.protocol) - int(b.protocol)
}

func mergeRanges(in []portRange) []portRange {
	if len(in) == 0 {
		return nil
	}
	sorted := slices.Clone(in)
	slices.SortFunc(sorted, func(a, b portRange) int { return int(a.from) - int(b.from) })
	out := sorted[:1]
	for _, r := range sorted[1:] {
		last := &out[len(out)-1]
		if int(r.from) <= int(last.to)+1 {
			last.to = max(last.to, r.to)
			continue
		}
		out = append(out, r)
	}
	return out
}

// union returns what either set allows.
func (s portSet) union(o portSet) portSet {
	switch {
	case s.all || o.all:
		return portSet{all: true}
	case o.empty():
		return s
	case s.empty():
		return o
	}
	var ranges [len(protocols)][]portRange
	for i := range ranges {
		ranges[i] = slices.Concat(s.ranges[i], o.ranges[i])
	}
	return newPortSet(ranges, slices.Concat(s.named, o.named))
}

// contains tells whether s allows all that o does, for every pod. It may say
// no where a name resolves to a number that is allowed.
func (s *portSet) contains(o *portSet) bool {
	if s.all {
		return true
	}
	if o.all {
		return false
	}
	for i := range o.ranges {
		for _, r := range o.ranges[i] {
			if !slices.ContainsFunc(s.ranges[i], func(have portRange) bool { return have.from <= r.from && r.to <= have.to }) {
				return false
			}
		}
	}
	for _, n := range o.named {
		if !slices.Contains(s.named, n) {
			return false
		}
	}
	return true
}

// resolve replaces names by the numbers that they have on a pod.
func (s portSet) resolve(on *Pod) portSet {
	if len(s.named) == 0 {
		return s
	}
	ranges := s.ranges
	for i := range ranges {
		ranges[i] = slices.Clone(ranges[i])
	}
	for _, n := range s.named {
		for _, p := range on.Ports {
			if p.Name == n.name && p.Protocol == n.protocol {
				i := protocolIndex(p.Protocol)
				ranges[i] = append(ranges[i], portRange{p.Port, p.Port})
			}
		}
	}
	return newPortSet(ranges, nil)
}

// key is the canonical text of the set: equal keys, equal sets.
func (s *portSet) key() string {
	switch {
	case s.text != "":
		return s.text
	case s.all:
		return "all"
	}
	var b strings.Builder
	for i, ranges := range s.ranges {
		if len(ranges) == 0 {
			continue
		}
		b.WriteString(protocols[i].String())
		b.WriteByte(':')
		b.WriteString(rangesKey(ranges))
		b.WriteByte(';')
	}
	for _, n := range s.named {
		b.WriteString(n.protocol.String())
		b.WriteByte('/')
		b.WriteString(n.name)
		b.WriteByte(';')
	}
	return b.String()
}

func rangesKey(ranges []portRange) string {
	var b strings.Builder
	for i, r := range ranges {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(itoa(uint32(r.from)))
		if r.to != r.from {
			b.WriteByte('-')
			b.WriteString(itoa(uint32(r.to)))
		}
	}
	return b.String()
}
