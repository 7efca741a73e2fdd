package trace

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/selvage-net/selvage/policy"
)

// stackSize is NFT_JUMP_STACK_SIZE, the depth of jumps that the kernel follows.
const stackSize = 16

// maxVisits is how many chains a packet may see before it is taken to go round
// in circles, which the kernel would not have let in.
const maxVisits = 1000

// Result is what became of a packet.
type Result struct {
	// Verdict is VerdictAccept, VerdictDrop, VerdictReset or VerdictProhibit; where
	// addresses are translated, VerdictAccept or VerdictMasquerade.
	Verdict policy.VerdictKind
	// Mark is the mark of the packet's flow afterwards.
	Mark uint32
	// Path are the rules that matched, in order.
	Path []Step
}

// Step is a rule that matched.
type Step struct {
	Family policy.Family
	Chain  *policy.Chain
	// Rule is the index of the rule. It is len(Chain.Rules) for the end of a
	// base chain, where its policy decides.
	Rule int
	// Set and Element are what a look-up found, if the rule has one.
	Set     *policy.Set
	Element policy.Element
}

// String renders the step on one line.
func (s Step) String() string {
	if s.Rule == len(s.Chain.Rules) {
		return s.Chain.Name + ": policy accept"
	}
	text := fmt.Sprintf("%s[%d]: %s", s.Chain.Name, s.Rule, s.Chain.Rules[s.Rule].Text(s.Family))
	if s.Set != nil {
		text += fmt.Sprintf(" {%s}", s.Set.ElementText(s.Element))
	}
	return text
}

// String renders the whole walk, one line for each rule that matched.
func (r Result) String() string {
	var b strings.Builder
	for _, s := range r.Path {
		b.WriteString(s.String())
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "=> %s, mark %#x", policy.Verdict{Kind: r.Verdict}, r.Mark)
	return b.String()
}

// Tracer walks packets through one ruleset. It is safe for concurrent use as
// long as nobody changes the ruleset.
type Tracer struct {
	tables [2]table
}

type table struct {
	family policy.Family
	chains map[string]*policy.Chain
	sets   map[string]*policy.Set
	// counters are those that are there.
	counters map[string]bool
}

// New returns a Tracer for the ruleset, which must not change while it is used.
func New(r *policy.Ruleset) *Tracer {
	t := &Tracer{}
	for i := range r.Tables {
		from, to := &r.Tables[i], &t.tables[i]
		to.family = from.Family
		to.chains = make(map[string]*policy.Chain, len(from.Chains))
		for j := range from.Chains {
			to.chains[from.Chains[j].Name] = &from.Chains[j]
		}
		to.sets = make(map[string]*policy.Set, len(from.Sets))
		for j := range from.Sets {
			to.sets[from.Sets[j].Name] = &from.Sets[j]
		}
		to.counters = make(map[string]bool, len(from.Counters))
		for j := range from.Counters {
			to.counters[from.Counters[j].Name] = true
		}
	}
	return t
}

// Run walks one packet through the base chain at a hook. It fails on whatever
// it does not know.
func Run(r *policy.Ruleset, hook string, p Packet) (Result, error) {
	return New(r).Run(hook, p)
}

// Run walks a packet through the base chain that judges it at a hook: forward or input. If
// there is none at that hook, the packet is accepted.
func (t *Tracer) Run(hook string, p Packet) (Result, error) {
	return t.RunDuring(hook, p, t, 0)
}

// RunDuring is Run for a packet that is on its way while the kernel goes over
// from the ruleset of t to that of next: the rules are those of t to the end
// (nft_do_chain reads the generation of rules once), but elements are those of
// next from look-up number at on, counted from 0 (every look-up reads the
// generation of elements anew).
func (t *Tracer) RunDuring(hook string, p Packet, next *Tracer, at int) (Result, error) {
	f := policy.FamilyOf(p.Saddr)
	w := walk{packet: &p, table: &t.tables[f], next: &next.tables[f], at: at}
	return w.through(hook)
}

// Masqueraded walks a packet through the chain that translates sources, and tells
// whether its flow gets another one there. Like the kernel (nf_nat_inet_fn in
// net/netfilter/nf_nat_core.c) it asks that chain only for the first packet of a flow,
// and never for one without a conntrack entry. Whether somebody else's chain has
// translated the flow before is not known here.
func (t *Tracer) Masqueraded(p Packet) (bool, Result, error) {
	if p.Flow == nil || p.Flow.State != policy.StateNew {
		return false, Result{Verdict: policy.VerdictAccept}, nil
	}
	f := policy.FamilyOf(p.Saddr)
	w := walk{packet: &p, table: &t.tables[f], next: &t.tables[f], nat: true}
	r, err := w.through("postrouting")
	return r.Verdict == policy.VerdictMasquerade, r, err
}

// through walks the packet through the base chain at a hook, if there is one.
func (w *walk) through(hook string) (Result, error) {
	if w.packet.Flow != nil {
		w.result.Mark = w.packet.Flow.Mark
	}
	base, err := w.table.base(hook)
	if err != nil {
		return Result{}, err
	}
	if base == nil {
		w.result.Verdict = policy.VerdictAccept
		return w.result, nil
	}
	if base.Hook.NAT != w.nat {
		return w.result, fmt.Errorf("table %s %s: chain %s at %s is of the other type: nat is %v", w.table.family, policy.TableName, base.Name, hook, base.Hook.NAT)
	}
	if err := w.run(base); err != nil {
		return w.result, fmt.Errorf("table %s %s: %w", w.table.family, policy.TableName, err)
	}
	return w.result, nil
}

func (t *table) base(hook string) (*policy.Chain, error) {
	var base *policy.Chain
	for _, c := range t.chains {
		if c.Hook == nil || c.Hook.Name != hook {
			continue
		}
		if base != nil {
			return nil, fmt.Errorf("two base chains at %s: %s and %s", hook, base.Name, c.Name)
		}
		base = c
	}
	return base, nil
}

// walk is one packet on its way.
type walk struct {
	packet  *Packet
	table   *table
	next    *table
	at      int
	lookups int
	// nat says that the chains translate addresses, and so judge nothing.
	nat    bool
	stack  []position
	result Result
}

type position struct {
	chain *policy.Chain
	rule  int
}

// run is nft_do_chain.
func (w *walk) run(base *policy.Chain) error {
	at := position{chain: base}
	for range maxVisits {
		verdict, err := w.rules(&at)
		if err != nil {
			return fmt.Errorf("chain %s, rule %d: %w", at.chain.Name, at.rule, err)
		}
		if ends(verdict.Kind, w.nat) {
			w.result.Verdict = verdict.Kind
			return nil
		}
		switch verdict.Kind {
		case policy.VerdictJump, policy.VerdictGoto:
			if verdict.Kind == policy.VerdictJump {
				if len(w.stack) >= stackSize {
					return fmt.Errorf("more than %d jumps deep", stackSize)
				}
				w.stack = append(w.stack, position{at.chain, at.rule + 1})
			}
			to, ok := w.table.chains[verdict.Chain]
			if !ok {
				return fmt.Errorf("chain %s, rule %d: %s: no such chain", at.chain.Name, at.rule, verdict)
			}
			if to.Hook != nil {
				return fmt.Errorf("chain %s, rule %d: %s: it is a base chain", at.chain.Name, at.rule, verdict)
			}
			at = position{chain: to}
		case policy.VerdictReturn:
			if len(w.stack) == 0 {
				w.result.Path = append(w.result.Path, Step{Family: w.table.family, Chain: base, Rule: len(base.Rules)})
				w.result.Verdict = policy.VerdictAccept
				return nil
			}
			at = w.stack[len(w.stack)-1]
			w.stack = w.stack[:len(w.stack)-1]
		default:
			return fmt.Errorf("chain %s, rule %d: unknown verdict %d", at.chain.Name, at.rule, verdict.Kind)
		}
	}
	return fmt.Errorf("chain %s: a loop", at.chain.Name)
}

// ends tells whether a verdict is the last word, in a chain that translates addresses
// or in one that does not.
func ends(v policy.VerdictKind, nat bool) bool {
	switch v {
	case policy.VerdictAccept:
		return true
	case policy.VerdictDrop, policy.VerdictReset, policy.VerdictProhibit:
		return !nat
	case policy.VerdictMasquerade:
		return nat
	}
	return false
}

// rules runs the rules of a chain from at on, until one has a verdict. The end
// of a chain is a return.
func (w *walk) rules(at *position) (policy.Verdict, error) {
	for ; at.rule < len(at.chain.Rules); at.rule++ {
		verdict, err := w.rule(at.chain, at.rule)
		if err != nil || verdict.Kind != policy.VerdictNone {
			return verdict, err
		}
	}
	return policy.Verdict{Kind: policy.VerdictReturn}, nil
}

func (w *walk) rule(chain *policy.Chain, i int) (policy.Verdict, error) {
	rule := &chain.Rules[i]
	step := Step{Family: w.table.family, Chain: chain, Rule: i}
	verdict := rule.Verdict
	for j := range rule.Match {
		m := &rule.Match[j]
		matched, err := w.match(m, &step)
		if err != nil || !matched {
			return policy.Verdict{}, err
		}
		if m.Op == policy.OpVerdict {
			if j != len(rule.Match)-1 || rule.Sample.Set != "" || rule.Log.Group != 0 || rule.Counter || rule.Count != "" || rule.Stamp.Mask != 0 || verdict.Kind != policy.VerdictNone {
				return policy.Verdict{}, errors.New("a verdict map must be the end of its rule")
			}
			verdict = step.Element.Verdict
		}
	}
	if err := w.statements(rule); err != nil {
		return policy.Verdict{}, err
	}
	if rule.Stamp.Mask != 0 {
		// The rule first loads the mark that it changes.
		if w.packet.Flow == nil {
			return policy.Verdict{}, nil
		}
		w.result.Mark = w.result.Mark&^rule.Stamp.Mask | rule.Stamp.Value
	}
	w.result.Path = append(w.result.Path, step)
	return verdict, nil
}

// statements takes what a rule does before its verdict, for a packet within the rate
// of every sample. All of that leaves the packet as it is.
func (w *walk) statements(rule *policy.Rule) error {
	if rule.Sample != (policy.Sample{}) {
		set, ok := w.table.sets[rule.Sample.Set]
		if !ok {
			return fmt.Errorf("set %s does not exist", rule.Sample.Set)
		}
		if err := checkSample(set, &rule.Sample); err != nil {
			return err
		}
		if rule.Verdict.Kind != policy.VerdictNone {
			return errors.New("the verdict depends on how many packets there are")
		}
	}
	if rule.Count != "" && !w.table.counters[rule.Count] {
		return fmt.Errorf("counter %s does not exist", rule.Count)
	}
	return checkLog(rule)
}

// match tells whether one comparison is true.
func (w *walk) match(m *policy.Match, step *Step) (bool, error) {
	if err := checkMatch(m, w.table.family); err != nil {
		return false, err
	}
	switch m.Op {
	case policy.OpPrefix:
		a, ok := w.packet.addr(m.Field)
		return ok && m.Prefix.Contains(a), nil
	case policy.OpIn, policy.OpNotIn, policy.OpVerdict:
		return w.lookup(m, step)
	}
	if m.Field == policy.FieldIifname {
		return w.packet.Iifname == m.Name, nil
	}
	v, ok := w.packet.number(m.Field, w.result.Mark)
	if !ok {
		return false, nil
	}
	switch m.Op {
	case policy.OpEqual:
		return v == m.Value, nil
	case policy.OpBits:
		return v&m.Value != 0, nil
	case policy.OpMasked:
		return v&m.Arg == m.Value, nil
	case policy.OpRange:
		return m.Value <= v && v <= m.Arg, nil
	}
	return false, fmt.Errorf("unknown operation %d", m.Op)
}

// lookup is nft_lookup_eval.
func (w *walk) lookup(m *policy.Match, step *Step) (bool, error) {
	table := w.table
	if w.lookups >= w.at {
		table = w.next
	}
	set, ok := table.sets[m.Name]
	if !ok {
		return false, fmt.Errorf("set %s does not exist", m.Name)
	}
	if set.Verdicts != (m.Op == policy.OpVerdict) {
		return false, fmt.Errorf("set %s: a verdict map where a set should be, or the reverse", m.Name)
	}
	fields := []policy.Field{m.Field}
	if m.And != policy.FieldNone {
		fields = append(fields, m.And)
	}
	if err := checkKey(set, fields); err != nil {
		return false, err
	}
	key, ok := w.packet.key(fields...)
	if !ok {
		return false, nil
	}
	w.lookups++
	e, ok := find(set, key)
	if m.Op == policy.OpNotIn {
		return !ok, nil
	}
	if !ok {
		return false, nil
	}
	step.Set, step.Element = set, e
	return true, nil
}

// find returns the element of a set that key is in.
func find(set *policy.Set, key string) (policy.Element, bool) {
	i, exact := slices.BinarySearchFunc(set.Elements, key, func(e policy.Element, key string) int {
		return strings.Compare(e.Key, key)
	})
	if exact {
		return set.Elements[i], true
	}
	if !set.Interval || i == 0 || key > set.Elements[i-1].To {
		return policy.Element{}, false
	}
	return set.Elements[i-1], true
}
