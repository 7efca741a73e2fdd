package policy

import (
	"cmp"
	"slices"
	"strings"
)

// Diff returns what leads from the ruleset that is in force to the one that is
// desired. It is pure. What the difference means is not known here, so that
// whatever is not plainly an addition counts as tightening: a rule that
// changes, an element that goes, a verdict that changes or newly isolates.
func Diff(actual, desired *Ruleset) *Change {
	out := &Change{Mark: desired.mark()}
	for _, f := range Families {
		a, d := &actual.Tables[f], &desired.Tables[f]
		t := TableChange{Family: f}
		found := len(a.Chains) > 0
		diffCounters(a, d, &t)
		diffChains(a, d, &t)
		tightens := diffSets(a, d, &t)
		out.Tables[f] = t
		// Flows through a table that was not there were not stamped by it.
		out.Tightens = out.Tightens || found && (tightens || slices.ContainsFunc(t.SetChains, judges))
	}
	return out
}

// judges tells whether what a packet meets in a chain can end it.
func judges(c Chain) bool { return c.Name != chainLeaving && (c.Hook == nil || !c.Hook.NAT) }

// mark returns the generation that the ruleset stamps.
func (r *Ruleset) mark() Mark {
	for i := range r.Tables {
		for _, c := range r.Tables[i].Chains {
			if c.Name != chainForward {
				continue
			}
			for _, rule := range c.Rules {
				if rule.Stamp.Mask != 0 {
					return rule.Stamp
				}
			}
		}
	}
	return Mark{}
}

// merge walks two sorted lists side by side. One of a and b is nil where the
// other has no counterpart.
func merge[T any](as, bs []T, order func(a, b *T) int, do func(a, b *T)) {
	for len(as) > 0 || len(bs) > 0 {
		var c int
		switch {
		case len(as) == 0:
			c = 1
		case len(bs) == 0:
			c = -1
		default:
			c = order(&as[0], &bs[0])
		}
		var a, b *T
		if c <= 0 {
			a, as = &as[0], as[1:]
		}
		if c >= 0 {
			b, bs = &bs[0], bs[1:]
		}
		do(a, b)
	}
}

// diffCounters goes by names alone: those of counters are made from what their
// comments say, which old kernels do not keep.
func diffCounters(actual, desired *Table, out *TableChange) {
	order := func(a, b *Counter) int { return strings.Compare(a.Name, b.Name) }
	merge(actual.Counters, desired.Counters, order, func(a, d *Counter) {
		switch {
		case d == nil:
			out.DelCounters = append(out.DelCounters, a.Name)
		case a == nil:
			out.AddCounters = append(out.AddCounters, *d)
		}
	})
}

func diffChains(actual, desired *Table, out *TableChange) {
	order := func(a, b *Chain) int { return strings.Compare(a.Name, b.Name) }
	merge(actual.Chains, desired.Chains, order, func(a, d *Chain) {
		switch {
		case d == nil:
			out.DelChains = append(out.DelChains, a.Name)
		case a == nil && d.Hook == nil:
			out.AddChains = append(out.AddChains, *d)
		case a == nil || !sameHook(a.Hook, d.Hook) || !equalRules(a.Rules, d.Rules):
			out.SetChains = append(out.SetChains, *d)
		}
	})
}

func sameHook(a, b *Hook) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// diffSets tells whether an element went or changed.
func diffSets(actual, desired *Table, out *TableChange) (tightens bool) {
	order := func(a, b *Set) int { return strings.Compare(a.Name, b.Name) }
	merge(actual.Sets, desired.Sets, order, func(a, d *Set) {
		switch {
		case d == nil:
			out.DelSets = append(out.DelSets, a.Name)
		case a == nil:
			out.AddSets = append(out.AddSets, *d)
		default:
			ec := diffElements(a, d)
			if len(ec.Add)+len(ec.Del) > 0 {
				out.Elements = append(out.Elements, ec)
			}
			tightens = tightens || len(ec.Del) > 0 && !isBlocks(d.Name) ||
				slices.ContainsFunc(ec.Add, func(e Element) bool { return e.Verdict.Kind == VerdictGoto && isDispatch(d.Name) })
		}
	})
	return tightens
}

func isDispatch(set string) bool {
	for _, f := range Families {
		for _, dir := range directions {
			if set == dispatchName(dir, f) {
				return true
			}
		}
	}
	return false
}

func diffElements(actual, desired *Set) ElementChange {
	ec := ElementChange{Set: *desired}
	ec.Set.Elements = nil
	order := func(a, b *Element) int { return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.To, b.To)) }
	merge(actual.Elements, desired.Elements, order, func(a, d *Element) {
		if a != nil && d != nil && a.Verdict == d.Verdict {
			return
		}
		if a != nil {
			ec.Del = append(ec.Del, *a)
		}
		if d != nil {
			ec.Add = append(ec.Add, *d)
		}
	})
	return ec
}
