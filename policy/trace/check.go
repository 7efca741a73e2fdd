package trace

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/selvage-net/selvage/policy"
)

const (
	// maxName is NFT_NAME_MAXLEN (256) without the terminating zero.
	maxName = 255
	// maxComment is NFTNL_UDATA_COMMENT_MAXLEN, which nft enforces.
	maxComment = 128
)

// blockSets are the sets of blocks that come and go one by one, so that they may touch.
var blockSets = []string{"masquerade", "pools", "kept"}

var (
	// nameSyntax is what nft's scanner reads as a string without quotes.
	nameSyntax = regexp.MustCompile(`^[A-Za-z_.][A-Za-z0-9/_.-]*$`)
	// commentSyntax: nft knows no escapes in a quoted string.
	commentSyntax = regexp.MustCompile(`^[ !#-\[\]-~]*$`)
)

// Check says what is wrong with a ruleset: whatever the kernel or nft would
// refuse, whatever is not in the order that makes two equal rulesets look the
// same, and whatever nothing can reach.
func Check(r *policy.Ruleset) error {
	var errs []error
	for i := range r.Tables {
		t := &r.Tables[i]
		if t.Family != policy.Families[i] {
			errs = append(errs, fmt.Errorf("table %d is of family %s", i, t.Family))
		}
		c := &checker{table: t, sets: map[string]*policy.Set{}, chains: map[string]*policy.Chain{}, counters: map[string]bool{}, used: map[string]bool{}}
		c.run()
		for _, err := range c.errs {
			errs = append(errs, fmt.Errorf("table %s: %w", t.Family, err))
		}
	}
	return errors.Join(errs...)
}

type checker struct {
	table  *policy.Table
	sets   map[string]*policy.Set
	chains map[string]*policy.Chain
	// nat are the chains where addresses are translated.
	nat map[string]bool
	// counters are those that are there.
	counters map[string]bool
	// used holds "set NAME", "chain NAME" and "counter NAME" for what something leads to.
	used map[string]bool
	errs []error
}

func (c *checker) fail(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

func (c *checker) run() {
	for i, counter := range c.table.Counters {
		if i > 0 && counter.Name <= c.table.Counters[i-1].Name {
			c.fail("counter %s: not in order, or there twice", counter.Name)
		}
		c.name("counter", counter.Name, counter.Comment)
		c.counters[counter.Name] = true
	}
	for i := range c.table.Sets {
		s := &c.table.Sets[i]
		if i > 0 && s.Name <= c.table.Sets[i-1].Name {
			c.fail("set %s: not in order, or there twice", s.Name)
		}
		c.sets[s.Name] = s
	}
	for i := range c.table.Chains {
		ch := &c.table.Chains[i]
		if i > 0 && ch.Name <= c.table.Chains[i-1].Name {
			c.fail("chain %s: not in order, or there twice", ch.Name)
		}
		c.chains[ch.Name] = ch
	}
	c.nat = translating(c.chains)
	hooks := map[string]bool{}
	for i := range c.table.Sets {
		c.set(&c.table.Sets[i])
	}
	for i := range c.table.Chains {
		c.chain(&c.table.Chains[i], hooks)
	}
	c.reach()
}

func (c *checker) name(kind, name, comment string) {
	if !nameSyntax.MatchString(name) || len(name) > maxName {
		c.fail("%s %s: nft cannot read this name, or it is longer than %d bytes", kind, name, maxName)
	}
	if !commentSyntax.MatchString(comment) || len(comment) > maxComment {
		c.fail("%s %s: nft cannot read the comment %q, or it is longer than %d bytes", kind, name, comment, maxComment)
	}
}

func (c *checker) set(s *policy.Set) {
	c.name("set", s.Name, s.Comment)
	if !strings.HasSuffix(s.Name, c.table.Family.Suffix()) && slices.Contains(s.Key[:], policy.TypeAddr) {
		c.fail("set %s: the name does not say the family", s.Name)
	}
	size := c.keySize(s)
	if size == 0 || s.Interval && s.Key[1] != 0 {
		c.fail("set %s: no key of this type", s.Name)
		return
	}
	if dynamic := s.Timeout > 0 && s.Size > 0 && !s.Interval && !s.Verdicts && len(s.Elements) == 0; s.Dynamic && !dynamic {
		c.fail("set %s: packets cannot fill it, or would for ever", s.Name)
	}
	if s.Timeout != 0 && !s.Dynamic {
		c.fail("set %s: elements of ours do not time out", s.Name)
	}
	mayTouch := slices.Contains(blockSets, strings.TrimSuffix(s.Name, c.table.Family.Suffix()))
	for i, e := range s.Elements {
		if len(e.Key) != size || s.Interval != (len(e.To) == size) || !s.Interval && e.To != "" {
			c.fail("set %s: element %d: a key of %d bytes (to: %d) instead of %d", s.Name, i, len(e.Key), len(e.To), size)
			continue
		}
		if s.Interval && e.To < e.Key {
			c.fail("set %s: element %d ends before it begins", s.Name, i)
		}
		if i > 0 {
			before := s.Elements[i-1]
			if e.Key <= before.Key {
				c.fail("set %s: element %d is not in order, or there twice", s.Name, i)
			} else if s.Interval && (e.Key <= before.To || !mayTouch && e.Key == successor(before.To) && e.Verdict == before.Verdict) {
				c.fail("set %s: element %d overlaps or touches the one before", s.Name, i)
			}
		}
		c.elementVerdict(s, e)
	}
}

func (c *checker) elementVerdict(s *policy.Set, e policy.Element) {
	switch {
	case !s.Verdicts && e.Verdict != (policy.Verdict{}):
		c.fail("set %s: an element has a verdict", s.Name)
	case s.Verdicts && e.Verdict.Kind == policy.VerdictNone:
		c.fail("map %s: an element has no verdict", s.Name)
	case s.Verdicts && (e.Verdict.Kind == policy.VerdictReset || e.Verdict.Kind == policy.VerdictProhibit || e.Verdict.Kind == policy.VerdictMasquerade):
		c.fail("map %s: %s is a statement, not a verdict that an element can have", s.Name, e.Verdict)
	case s.Verdicts:
		c.verdict("map "+s.Name, e.Verdict)
	}
}

// successor is the key after key; after the last one comes the first.
func successor(key string) string {
	b := []byte(key)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]++
		if b[i] != 0 {
			break
		}
	}
	return string(b)
}

func (c *checker) keySize(s *policy.Set) int {
	sizes := map[policy.Type]int{policy.TypeAddr: c.table.Family.Bits() / 8, policy.TypeService: 2}
	first, ok := sizes[s.Key[0]]
	if !ok || s.Key[1] == 0 {
		return first
	}
	second, ok := sizes[s.Key[1]]
	if !ok {
		return 0
	}
	return (first+3)/4*4 + (second+3)/4*4
}

func (c *checker) verdict(where string, v policy.Verdict) {
	jumps := v.Kind == policy.VerdictJump || v.Kind == policy.VerdictGoto
	switch {
	case v.Kind > policy.VerdictMasquerade:
		c.fail("%s: unknown verdict %d", where, v.Kind)
	case !jumps && v.Chain != "":
		c.fail("%s: %s with a chain", where, v)
	case jumps:
		c.used["chain "+v.Chain] = true
		to, ok := c.chains[v.Chain]
		if !ok {
			c.fail("%s: %s: no such chain", where, v)
		} else if to.Hook != nil {
			c.fail("%s: %s: it is a base chain", where, v)
		}
	}
}

func (c *checker) chain(ch *policy.Chain, hooks map[string]bool) {
	c.name("chain", ch.Name, "")
	nat := c.nat[ch.Name]
	if ch.Hook != nil {
		if judges := ch.Hook.Name == "forward" || ch.Hook.Name == "input"; nat && ch.Hook.Name != "postrouting" || !nat && !judges || hooks[ch.Hook.Name] {
			c.fail("chain %s: hook %s is unknown or has two chains", ch.Name, ch.Hook.Name)
		}
		hooks[ch.Hook.Name] = true
	}
	for i := range ch.Rules {
		where := fmt.Sprintf("chain %s, rule %d", ch.Name, i)
		rule := &ch.Rules[i]
		if nat && (rule.Stamp.Mask != 0 || !translates(rule.Verdict.Kind)) || !nat && rule.Verdict.Kind == policy.VerdictMasquerade {
			c.fail("%s: a chain that translates addresses does that and nothing else", where)
		}
		c.name(where, "rule", rule.Comment)
		c.rule(where, rule)
		final := len(rule.Match) == 0 && rule.Stamp.Mask == 0 && rule.Verdict.Kind != policy.VerdictNone && rule.Verdict.Kind != policy.VerdictJump
		if final && i != len(ch.Rules)-1 {
			c.fail("%s: the rules after it are never reached", where)
		}
	}
}

// translating finds the chains where addresses are translated: those of type nat, and
// those that their rules lead to.
func translating(chains map[string]*policy.Chain) map[string]bool {
	found := map[string]bool{}
	var visit func(ch *policy.Chain)
	visit = func(ch *policy.Chain) {
		if ch == nil || found[ch.Name] {
			return
		}
		found[ch.Name] = true
		for i := range ch.Rules {
			visit(chains[ch.Rules[i].Verdict.Chain])
		}
	}
	for _, ch := range chains {
		if ch.Hook != nil && ch.Hook.NAT {
			visit(ch)
		}
	}
	return found
}

// translates tells whether a rule with this verdict may be where addresses are
// translated.
func translates(v policy.VerdictKind) bool {
	switch v {
	case policy.VerdictMasquerade, policy.VerdictAccept, policy.VerdictReturn, policy.VerdictJump, policy.VerdictGoto:
		return true
	}
	return false
}

func (c *checker) rule(where string, r *policy.Rule) {
	hasMap := false
	for i := range r.Match {
		m := &r.Match[i]
		if err := checkMatch(m, c.table.Family); err != nil {
			c.fail("%s: %w", where, err)
			continue
		}
		hasMap = hasMap || m.Op == policy.OpVerdict
		if m.Op == policy.OpVerdict && i != len(r.Match)-1 {
			c.fail("%s: a match after a verdict map", where)
		}
		if m.Op == policy.OpIn || m.Op == policy.OpNotIn || m.Op == policy.OpVerdict {
			c.lookup(where, m)
		}
	}
	if r.Stamp.Value&^r.Stamp.Mask != 0 {
		c.fail("%s: the stamp %#x does not fit its mask %#x", where, r.Stamp.Value, r.Stamp.Mask)
	}
	if err := checkLog(r); err != nil {
		c.fail("%s: %w", where, err)
	}
	if r.Sample.Set != "" {
		c.sample(where, &r.Sample)
	}
	if r.Count != "" {
		c.used["counter "+r.Count] = true
		if !c.counters[r.Count] {
			c.fail("%s: no counter %s", where, r.Count)
		}
	}
	nothing := r.Log.Group == 0 && !r.Counter && r.Count == "" && r.Stamp.Mask == 0 && r.Verdict.Kind == policy.VerdictNone
	if hasMap != nothing {
		c.fail("%s: a rule without effect, or something after a verdict map", where)
	}
	c.verdict(where, r.Verdict)
}

func (c *checker) sample(where string, s *policy.Sample) {
	c.used["set "+s.Set] = true
	set, ok := c.sets[s.Set]
	if !ok {
		c.fail("%s: no set %s", where, s.Set)
		return
	}
	if err := checkSample(set, s); err != nil {
		c.fail("%s: %w", where, err)
	}
}

func (c *checker) lookup(where string, m *policy.Match) {
	c.used["set "+m.Name] = true
	set, ok := c.sets[m.Name]
	if !ok {
		c.fail("%s: no set %s", where, m.Name)
		return
	}
	if set.Verdicts != (m.Op == policy.OpVerdict) {
		c.fail("%s: %s: a verdict map where a set should be, or the reverse", where, m.Name)
	}
	if set.Dynamic {
		c.fail("%s: %s: what packets fill decides", where, m.Name)
	}
	fields := []policy.Field{m.Field}
	if m.And != policy.FieldNone {
		fields = append(fields, m.And)
	}
	if err := checkKey(set, fields); err != nil {
		c.fail("%s: %w", where, err)
	}
}

// reach follows every jump from the base chains, as nft_chain_validate does,
// and then looks for what nothing leads to.
func (c *checker) reach() {
	depth := map[string]int{}
	for _, ch := range c.chains {
		if ch.Hook != nil {
			c.used["chain "+ch.Name] = true
		}
		c.depth(ch, depth)
		if ch.Hook != nil && depth[ch.Name] >= stackSize {
			c.fail("chain %s: %d jumps deep", ch.Name, depth[ch.Name])
		}
	}
	for name := range c.chains {
		// The chain for unknown addresses is always there.
		if !c.used["chain "+name] && name != "deny-unknown" {
			c.fail("chain %s: nothing leads to it", name)
		}
	}
	for name := range c.sets {
		if !c.used["set "+name] {
			c.fail("set %s: no rule uses it", name)
		}
	}
	for name := range c.counters {
		if !c.used["counter "+name] {
			c.fail("counter %s: no rule uses it", name)
		}
	}
}

// depth returns how many jumps and gotos one can make from a chain at most.
func (c *checker) depth(ch *policy.Chain, known map[string]int) int {
	const visiting = -1
	if d, ok := known[ch.Name]; ok {
		if d == visiting {
			c.fail("chain %s: a loop", ch.Name)
			return 0
		}
		return d
	}
	known[ch.Name] = visiting
	deepest := 0
	for _, target := range c.targets(ch) {
		if to, ok := c.chains[target]; ok {
			deepest = max(deepest, 1+c.depth(to, known))
		}
	}
	known[ch.Name] = deepest
	return deepest
}

func (c *checker) targets(ch *policy.Chain) []string {
	var targets []string
	add := func(v policy.Verdict) {
		if v.Kind == policy.VerdictJump || v.Kind == policy.VerdictGoto {
			targets = append(targets, v.Chain)
		}
	}
	for i := range ch.Rules {
		add(ch.Rules[i].Verdict)
		for _, m := range ch.Rules[i].Match {
			if set, ok := c.sets[m.Name]; ok && m.Op == policy.OpVerdict {
				for _, e := range set.Elements {
					add(e.Verdict)
				}
			}
		}
	}
	return targets
}
