package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// An Explanation fits on a screen: of longer lists the text has only the start.
const (
	maxListed  = 5  // entries of a list in a line
	maxDetails = 16 // lines about the rules of a side
)

// String renders the Explanation for people: what decides first, all of it only in
// JSON. There are no control characters in it but the ends of lines.
func (e Explanation) String() string {
	lines := []string{e.Summary, "from " + e.flowText()}
	if e.Egress != nil || e.Ingress != nil || len(e.Notes)+len(e.Same) > 0 {
		lines = append(lines, "")
	}
	lines = e.Egress.lines(lines, egress, &e.From)
	lines = e.Ingress.lines(lines, ingress, &e.To)
	for _, n := range e.Notes {
		lines = append(lines, "note: "+n)
	}
	for _, f := range e.Same[:min(len(e.Same), maxListed)] {
		lines = append(lines, "the same from "+f)
	}
	if more := len(e.Same) - maxListed; more > 0 {
		lines = append(lines, fmt.Sprintf("the same %d times more", more))
	}
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(printable(l))
		b.WriteByte('\n')
	}
	return b.String()
}

// flowText says what was asked about.
func (e *Explanation) flowText() string {
	text := e.From.String() + " to " + e.To.String() + ", "
	if e.Port != 0 {
		text += itoa(uint32(e.Port)) + "/"
	}
	return printable(text + e.Protocol)
}

// name names an end in short.
func (e *End) name() string {
	switch {
	case e.Name != "":
		return e.Namespace + "/" + e.Name
	case e.Kind == EndNode:
		return "node " + e.Node
	}
	return e.Address.String()
}

// String says who is at the end.
func (e End) String() string {
	var about []string
	if e.Address.IsValid() && (e.Name != "" || e.Kind == EndNode) {
		about = append(about, e.Address.String())
	}
	switch {
	case e.Kind == EndOutside:
		about = append(about, "no pod or node")
	case e.Kind == EndUnknown:
		about = append(about, "in the podCIDRs of "+e.Node)
	case e.Kind == EndHostNetwork:
		about = append(about, "on the network of "+e.Node)
	case e.Kind == EndPod && e.Node != "":
		about = append(about, "on "+e.Node)
	}
	if e.Service != "" {
		about = append(about, "for the Service "+e.Service)
	}
	text := e.name()
	if len(about) > 0 {
		text += " (" + strings.Join(about, ", ") + ")"
	}
	return printable(text)
}

// lines renders what is said of a side.
func (s *Side) lines(lines []string, dir direction, at *End) []string {
	if s == nil {
		return lines
	}
	lines = append(lines, dir.String()+" of "+at.name()+": "+s.Text)
	if s.Outcome != OutcomeDenied || s.Why != WhyPolicies {
		return lines
	}
	details := s.details(dir)
	if more := len(details) - maxDetails; more > 1 {
		details = append(details[:maxDetails], fmt.Sprintf("and %d more lines about rules that do not match", more))
	}
	for _, d := range details {
		lines = append(lines, "  "+d)
	}
	return lines
}

// details says why none of the rules of a side allows the connection. Those that come
// closest go first.
func (s *Side) details(dir direction) []string {
	type near struct {
		policy *PolicyExplanation
		rule   *RuleExplanation
	}
	var out, without []string
	var rules []near
	for i := range s.Policies {
		np := &s.Policies[i]
		for _, p := range np.Problems {
			// What is wrong with a rule is said where the rule is.
			if !strings.HasPrefix(p, "spec.ingress[") && !strings.HasPrefix(p, "spec.egress[") {
				out = append(out, np.Name+" cannot be understood: "+p)
			}
		}
		if len(np.Rules) == 0 {
			without = append(without, np.Name)
		}
		for j := range np.Rules {
			rules = append(rules, near{np, &np.Rules[j]})
		}
	}
	if len(without) > 0 {
		out = append(out, "no "+dir.String()+" rules: "+listText(without))
	}
	slices.SortStableFunc(rules, func(a, b near) int { return cmp.Compare(b.rule.closeness(), a.rule.closeness()) })
	for _, n := range rules {
		out = append(out, fmt.Sprintf("%s %s[%d]: %s", n.policy.Name, dir, n.rule.Index, n.rule.Text))
		out = append(out, n.rule.differs()...)
	}
	return out
}

// closeness is the greater the less speaks against a rule. Who has the right labels is
// more likely meant than who has the right port.
func (r *RuleExplanation) closeness() int {
	switch {
	case r.PeerMatches:
		return 2
	case r.PortMatches:
		return 1
	}
	return 0
}

// differs says what speaks against a rule.
func (r *RuleExplanation) differs() []string {
	var out []string
	add := func(tried []Tried) {
		for _, t := range tried[:min(len(tried), maxListed)] {
			out = append(out, "  "+t.Text+": "+t.Why)
		}
		if more := len(tried) - maxListed; more > 0 {
			out = append(out, fmt.Sprintf("  and %d more that do not match", more))
		}
	}
	if !r.PeerMatches {
		add(r.Peers)
	}
	if !r.PortMatches {
		add(r.Ports)
	}
	return out
}

// listText lists some texts, and says how many more there are.
func listText(texts []string) string {
	if more := len(texts) - maxListed; more > 0 {
		return strings.Join(texts[:maxListed], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(texts, ", ")
}

// orText lists some alternatives, and says how many more there are.
func orText(texts []string) string {
	if more := len(texts) - maxListed; more > 0 {
		return strings.Join(texts[:maxListed], " or ") + fmt.Sprintf(" or %d more", more)
	}
	return strings.Join(texts, " or ")
}

// printable escapes, as Go does, what a terminal might not just show: control
// characters, those that change the direction of text, and what is no UTF-8.
func printable(text string) string {
	var b strings.Builder
	for i, r := range text {
		_, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}
