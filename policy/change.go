package policy

// Change is what leads from one Ruleset to another, in the order in which the
// kernel must learn of it. It comes in three steps, because a packet on its way
// through the old rules already sees new elements and new chains (the kernel
// compares generations of elements at each look-up, but fixes that of rules
// when the packet enters the hook):
//
//   - prepare: new counters, sets and chains, which nothing refers to yet. A chain
//     that came in the same transaction as the element that leads to it would
//     look empty, and so open, to such a packet. As nothing refers to them,
//     they may be sent in as many transactions as their size demands.
//   - switch: all that can be noticed, for both families, in one transaction.
//   - sweep: chains, sets and counters that nothing refers to any more. A set that
//     went away with the rule that used it would look empty to such a packet, and
//     what a counter has counted is final only when no packet is left in that rule.
type Change struct {
	Tables [2]TableChange
	// Tightens says that a flow which was allowed might now be denied. The
	// generation in Mark is then another one than before.
	Tightens bool
	// Mark is the generation in force after the change.
	Mark Mark
}

// TableChange is the part of a Change that concerns one table.
type TableChange struct {
	Family Family

	// AddCounters are new counters (prepare).
	AddCounters []Counter
	// AddSets are new sets with all their elements (prepare).
	AddSets []Set
	// AddChains are new regular chains with all their rules (prepare).
	AddChains []Chain

	// SetChains are chains that get the rules given here in place of those
	// they have; a base chain among them may be new (switch).
	SetChains []Chain
	// Elements are the changes of sets that stay (switch).
	Elements []ElementChange

	// DelChains, DelSets and DelCounters are names of what to delete (sweep).
	DelChains   []string
	DelSets     []string
	DelCounters []string
}

// ElementChange says which elements a set loses and gains. An element whose
// verdict changes is in both lists.
type ElementChange struct {
	// Set is the set without its elements.
	Set Set
	Del []Element
	Add []Element
}

// Empty tells whether there is nothing to do.
func (c *Change) Empty() bool {
	return c.Tables[IPv4].empty() && c.Tables[IPv6].empty()
}

func (t *TableChange) empty() bool {
	return len(t.AddCounters)+len(t.AddSets)+len(t.AddChains)+len(t.SetChains)+len(t.Elements)+
		len(t.DelChains)+len(t.DelSets)+len(t.DelCounters) == 0
}
