package policy

import (
	"maps"
	"slices"
	"strings"
)

// role says what a set is for, which decides what its changes mean.
type role uint8

const (
	// roleFixed sets never change: their names are made from their contents.
	roleFixed role = iota
	// roleDispatch maps lead from a local pod's address to its signature.
	roleDispatch
	// roleAllow sets hold addresses that a rule allows.
	roleAllow
	// roleNamed sets hold addresses with the number that a named port has there.
	roleNamed
	// roleSelf is the set of isolated pods, paired with themselves.
	roleSelf
	// roleBlocks sets hold the blocks that decide what is masqueraded. No change of
	// theirs denies anything.
	roleBlocks
)

// liveCounter is a counter that rules count in.
type liveCounter struct {
	Counter
	info *CounterInfo
	refs int
}

// liveSet is a set under construction.
type liveSet struct {
	Set  // without Elements, unless role is roleFixed
	role role
	// elem has the verdicts by key; see element. Sets of peers are most of what a
	// compiler holds, and their elements have no verdict: hence the pointers.
	elem map[string]*Verdict
	refs int
	// isNew is true until the end of the step that made the set. The step
	// fills it as it should be, so that nothing in it needs a second look.
	isNew bool
	// untold is true of a new set that was not there at the last Changes
	// either: it will be told of as a whole, whatever its elements were.
	untold bool
}

// liveChain is a chain under construction.
type liveChain struct {
	rules []Rule
	hook  *Hook
	refs  int
	enter *Verdict // what the elements that lead here say
	// holds, leads and counts are the sets, chains and counters that the rules refer to.
	holds, leads, counts []string
}

// liveTable is a table under construction, with a memory of what its parts
// were like before they were first touched.
type liveTable struct {
	family   Family
	counters map[string]*liveCounter
	sets     map[string]*liveSet
	chains   map[string]*liveChain
	// rules and elements are how many there are in all chains and sets.
	rules, elements int
	// named is how many of the sets are of named ports.
	named int
	// dispatch are the maps of the node's own pods, which are always there.
	dispatch [len(directions)]*liveSet
	// idleSets, idleChains and idleCounters may have lost their last reference.
	idleSets, idleChains, idleCounters []string

	step  journal // since the last settle
	since journal // since the last Changes
}

// before is what an element was before it was touched.
type before struct {
	there   bool
	verdict Verdict
}

// journal remembers the state of what was touched before it was touched first.
type journal struct {
	counters map[string]bool              // was the counter there
	sets     map[string]bool              // was the set there
	chains   map[string]*liveChain        // nil if the chain was not there
	elems    map[string]map[string]before // by set and key
}

func newJournal() journal {
	return journal{counters: map[string]bool{}, sets: map[string]bool{}, chains: map[string]*liveChain{}, elems: map[string]map[string]before{}}
}

func (j *journal) noteElem(set, key string, was before) {
	touched := j.elems[set]
	if touched == nil {
		touched = map[string]before{}
		j.elems[set] = touched
	}
	if _, ok := touched[key]; !ok {
		touched[key] = was
	}
}

// absorb adds a later journal to j.
func (j *journal) absorb(later journal) {
	for name, was := range later.counters {
		if _, ok := j.counters[name]; !ok {
			j.counters[name] = was
		}
	}
	for name, was := range later.sets {
		if _, ok := j.sets[name]; !ok {
			j.sets[name] = was
		}
	}
	for name, was := range later.chains {
		if _, ok := j.chains[name]; !ok {
			j.chains[name] = was
		}
	}
	for name, elems := range later.elems {
		mine := j.elems[name]
		if mine == nil {
			j.elems[name] = elems
			continue
		}
		for key, was := range elems {
			if _, ok := mine[key]; !ok {
				mine[key] = was
			}
		}
	}
}

func newLiveTable(f Family) *liveTable {
	return &liveTable{
		family: f, counters: map[string]*liveCounter{}, sets: map[string]*liveSet{}, chains: map[string]*liveChain{},
		step: newJournal(), since: newJournal(),
	}
}

// addCounter creates a counter if it is not there.
func (t *liveTable) addCounter(counter Counter, info func() *CounterInfo) {
	if t.counters[counter.Name] != nil {
		return
	}
	t.noteCounter(counter.Name)
	t.counters[counter.Name] = &liveCounter{Counter: counter, info: info()}
	t.idleCounters = append(t.idleCounters, counter.Name)
}

func (t *liveTable) delCounter(name string) {
	t.noteCounter(name)
	delete(t.counters, name)
}

func (t *liveTable) noteCounter(name string) {
	if _, ok := t.step.counters[name]; !ok {
		t.step.counters[name] = t.counters[name] != nil
	}
}

// addSet creates a set if it is not there.
func (t *liveTable) addSet(spec Set, r role) *liveSet {
	if s := t.sets[spec.Name]; s != nil {
		return s
	}
	t.noteSet(spec.Name)
	s := &liveSet{Set: spec, role: r, isNew: true, untold: !t.step.sets[spec.Name] && !t.since.sets[spec.Name]}
	if r != roleFixed {
		s.elem = map[string]*Verdict{}
	}
	for _, e := range spec.Elements {
		if e.Verdict.Chain != "" {
			t.chains[e.Verdict.Chain].refs++
		}
	}
	t.sets[spec.Name] = s
	t.elements += len(spec.Elements)
	if r == roleNamed {
		t.named++
	}
	t.idleSets = append(t.idleSets, spec.Name)
	return s
}

// endStep closes the journal of a step.
func (t *liveTable) endStep() {
	for name := range t.step.sets {
		if s := t.sets[name]; s != nil {
			s.isNew, s.untold = false, false
		}
	}
	t.since.absorb(t.step)
	t.step = newJournal()
}

func (t *liveTable) noteSet(name string) {
	if _, ok := t.step.sets[name]; !ok {
		t.step.sets[name] = t.sets[name] != nil
	}
}

func (t *liveTable) delSet(name string) {
	t.noteSet(name)
	s := t.sets[name]
	for key := range s.elem {
		t.setElem(s, key, false, Verdict{})
	}
	for _, e := range s.Elements {
		if e.Verdict.Chain != "" {
			t.releaseChain(e.Verdict.Chain)
		}
	}
	if s.role == roleNamed {
		t.named--
	}
	t.elements -= len(s.Elements)
	delete(t.sets, name)
}

// setElem makes an element what it should be. The chain that its verdict
// leads to must be there.
func (t *liveTable) setElem(s *liveSet, key string, there bool, v Verdict) {
	n := len(s.elem)
	defer func() { t.elements += len(s.elem) - n }()
	if s.untold && there && v == (Verdict{}) {
		s.elem[key] = plain[VerdictNone] // nobody need ever know what was there
		return
	}
	was := s.at(key)
	if was.there == there && was.verdict == v {
		return
	}
	if v.Chain != "" {
		t.chains[v.Chain].refs++
	}
	if was.verdict.Chain != "" {
		t.releaseChain(was.verdict.Chain)
	}
	if !s.untold {
		t.step.noteElem(s.Name, key, was)
	}
	if there {
		s.elem[key] = t.shared(v)
	} else {
		delete(s.elem, key)
	}
}

// at returns the element as it is.
func (s *liveSet) at(key string) before {
	if v := s.elem[key]; v != nil {
		return before{there: true, verdict: *v}
	}
	return before{}
}

// plain are the verdicts that lead to no chain, by kind.
var plain = [...]*Verdict{VerdictNone: {}, VerdictReturn: {Kind: VerdictReturn}}

// shared returns a pointer to v that all elements with that verdict share.
func (t *liveTable) shared(v Verdict) *Verdict {
	if v.Chain == "" {
		return plain[v.Kind]
	}
	c := t.chains[v.Chain]
	if c.enter == nil || *c.enter != v {
		enter := v // &v would put every v on the heap
		c.enter = &enter
	}
	return c.enter
}

func (t *liveTable) releaseChain(name string) {
	c := t.chains[name]
	if c.refs--; c.refs == 0 {
		t.idleChains = append(t.idleChains, name)
	}
}

func (t *liveTable) noteChain(name string) {
	if _, ok := t.step.chains[name]; !ok {
		t.step.chains[name] = t.chains[name]
	}
}

// setChain gives a chain its rules, creating it if need be. The sets, chains and
// counters that the rules refer to must be there.
func (t *liveTable) setChain(name string, hook *Hook, rules []Rule) {
	old := t.chains[name]
	if old != nil && equalRules(old.rules, rules) {
		return
	}
	t.noteChain(name)
	c := &liveChain{rules: rules, hook: hook}
	c.refer()
	t.hold(c)
	if old != nil {
		c.refs, c.enter = old.refs, old.enter
		t.release(old)
	} else {
		t.idleChains = append(t.idleChains, name)
	}
	t.chains[name] = c
}

// refer finds what the rules of a chain refer to.
func (c *liveChain) refer() {
	for i := range c.rules {
		r := &c.rules[i]
		for _, m := range r.Match {
			if m.Op == OpIn || m.Op == OpNotIn || m.Op == OpVerdict {
				c.holds = append(c.holds, m.Name)
			}
		}
		if r.Sample.Set != "" {
			c.holds = append(c.holds, r.Sample.Set)
		}
		if r.Count != "" {
			c.counts = append(c.counts, r.Count)
		}
		if r.Verdict.Chain != "" {
			c.leads = append(c.leads, r.Verdict.Chain)
		}
	}
}

func (t *liveTable) delChain(name string) {
	if c := t.chains[name]; c != nil {
		t.noteChain(name)
		t.release(c)
		delete(t.chains, name)
	}
}

// hold keeps what a chain refers to from being collected, until it is released.
func (t *liveTable) hold(c *liveChain) {
	t.rules += len(c.rules)
	for _, name := range c.holds {
		t.sets[name].refs++
	}
	for _, name := range c.counts {
		t.counters[name].refs++
	}
	for _, name := range c.leads {
		t.chains[name].refs++
	}
}

func (t *liveTable) release(c *liveChain) {
	t.rules -= len(c.rules)
	for _, name := range c.holds {
		s := t.sets[name]
		if s.refs--; s.refs == 0 {
			t.idleSets = append(t.idleSets, name)
		}
	}
	for _, name := range c.counts {
		counter := t.counters[name]
		if counter.refs--; counter.refs == 0 {
			t.idleCounters = append(t.idleCounters, name)
		}
	}
	for _, name := range c.leads {
		t.releaseChain(name)
	}
}

// collect deletes the chains, sets and counters that nothing refers to any more. A
// set may be the last to refer to a chain, and a chain to a set or another chain.
func (t *liveTable) collect() {
	for len(t.idleSets)+len(t.idleChains)+len(t.idleCounters) > 0 {
		chains, sets, counters := t.idleChains, t.idleSets, t.idleCounters
		t.idleChains, t.idleSets, t.idleCounters = nil, nil, nil
		for _, name := range chains {
			if c := t.chains[name]; c != nil && c.refs == 0 {
				t.delChain(name)
			}
		}
		for _, name := range sets {
			if s := t.sets[name]; s != nil && s.refs == 0 {
				t.delSet(name)
			}
		}
		for _, name := range counters {
			if counter := t.counters[name]; counter != nil && counter.refs == 0 {
				t.delCounter(name)
			}
		}
	}
}

func equalRules(a, b []Rule) bool {
	return slices.EqualFunc(a, b, func(a, b Rule) bool {
		return a.Sample == b.Sample && a.Log == b.Log && a.Counter == b.Counter && a.Count == b.Count && a.Stamp == b.Stamp &&
			a.Verdict == b.Verdict && a.Comment == b.Comment && slices.Equal(a.Match, b.Match)
	})
}

// table renders all that is there.
func (t *liveTable) table() Table {
	out := Table{Family: t.family}
	for _, name := range slices.Sorted(maps.Keys(t.counters)) {
		out.Counters = append(out.Counters, t.counters[name].Counter)
	}
	for _, name := range slices.Sorted(maps.Keys(t.sets)) {
		out.Sets = append(out.Sets, t.sets[name].render())
	}
	for _, name := range slices.Sorted(maps.Keys(t.chains)) {
		out.Chains = append(out.Chains, t.chains[name].render(name))
	}
	return out
}

func (s *liveSet) render() Set {
	out := s.Set
	if s.role == roleFixed {
		return out
	}
	out.Elements = make([]Element, 0, len(s.elem))
	for _, key := range slices.Sorted(maps.Keys(s.elem)) {
		out.Elements = append(out.Elements, s.element(key, *s.elem[key]))
	}
	return out
}

// element returns an element by its key in elem. That of an interval set is the
// first and the last key of the range, one behind the other.
func (s *liveSet) element(key string, v Verdict) Element {
	if s.Interval {
		return Element{Key: key[:len(key)/2], To: key[len(key)/2:], Verdict: v}
	}
	return Element{Key: key, Verdict: v}
}

func sortElements(e []Element) {
	slices.SortFunc(e, func(a, b Element) int { return strings.Compare(a.Key, b.Key) })
}

func (c *liveChain) render(name string) Chain {
	return Chain{Name: name, Hook: c.hook, Rules: c.rules}
}

// changes renders what was touched since it was last called.
func (t *liveTable) changes() TableChange {
	j := t.since
	t.since = newJournal()
	out := TableChange{Family: t.family}
	for _, name := range slices.Sorted(maps.Keys(j.counters)) {
		switch c, was := t.counters[name], j.counters[name]; {
		case c != nil && !was:
			out.AddCounters = append(out.AddCounters, c.Counter)
		case c == nil && was:
			out.DelCounters = append(out.DelCounters, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(j.sets)) {
		switch s, was := t.sets[name], j.sets[name]; {
		case s != nil && !was:
			out.AddSets = append(out.AddSets, s.render())
		case s == nil && was:
			out.DelSets = append(out.DelSets, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(j.chains)) {
		c, was := t.chains[name], j.chains[name]
		switch {
		case c == nil && was != nil:
			out.DelChains = append(out.DelChains, name)
		case c == nil, was != nil && equalRules(c.rules, was.rules):
		case was == nil && c.hook == nil:
			out.AddChains = append(out.AddChains, c.render(name))
		default:
			out.SetChains = append(out.SetChains, c.render(name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(j.elems)) {
		s := t.sets[name]
		if existed, touched := j.sets[name]; s == nil || touched && !existed {
			continue // all of it comes or goes
		}
		ec := ElementChange{Set: s.Set}
		for key, was := range j.elems[name] {
			now := s.at(key)
			if was == now {
				continue
			}
			if was.there {
				ec.Del = append(ec.Del, s.element(key, was.verdict))
			}
			if now.there {
				ec.Add = append(ec.Add, s.element(key, now.verdict))
			}
		}
		if len(ec.Del)+len(ec.Add) > 0 {
			sortElements(ec.Del)
			sortElements(ec.Add)
			out.Elements = append(out.Elements, ec)
		}
	}
	return out
}
