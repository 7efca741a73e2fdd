package policytest

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/selvage-net/selvage/policy"
)

// Steps are the rulesets that a Change leads through. While the kernel goes
// over from one to the next, a packet can be under the rules of the one and the
// elements of the other.
type Steps struct{ Prepared, Switched, Swept *policy.Ruleset }

// ApplyChange returns what the kernel holds after each step of a change, and
// what the kernel would refuse or a packet on its way could fall over:
//
//   - prepare may only add what is not there, and nothing in force leads to it;
//   - switch deletes elements that are there and adds ones that are not; and it
//     names nothing that stays as it is;
//   - sweep deletes what is there and what nothing leads to any more;
//   - after every step each jump has its chain, each look-up and each sample its set,
//     and each count its counter.
func ApplyChange(r *policy.Ruleset, c *policy.Change) (Steps, error) {
	var steps Steps
	var errs []error
	state := clone(r)
	for i, step := range []struct {
		name string
		do   func(*policy.Table, *policy.TableChange) []error
		out  **policy.Ruleset
	}{
		{"prepare", prepare, &steps.Prepared},
		{"switch", switchOver, &steps.Switched},
		{"sweep", sweep, &steps.Swept},
	} {
		for f := range state.Tables {
			table, change := &state.Tables[f], &c.Tables[f]
			if !c.Empty() && change.Family != policy.Families[f] {
				errs = append(errs, fmt.Errorf("table %d of the change is of family %s", f, change.Family))
			}
			found := step.do(table, change)
			found = append(found, dangling(table)...)
			for _, err := range found {
				errs = append(errs, fmt.Errorf("step %d, %s, table %s: %w", i+1, step.name, table.Family, err))
			}
		}
		*step.out = clone(state)
	}
	return steps, errors.Join(errs...)
}

func clone(r *policy.Ruleset) *policy.Ruleset {
	out := *r
	for i := range out.Tables {
		t := &out.Tables[i]
		t.Family = policy.Families[i]
		t.Counters, t.Sets, t.Chains = slices.Clone(t.Counters), slices.Clone(t.Sets), slices.Clone(t.Chains)
		for j := range t.Sets {
			t.Sets[j].Elements = slices.Clone(t.Sets[j].Elements)
		}
		for j := range t.Chains {
			t.Chains[j].Rules = slices.Clone(t.Chains[j].Rules)
		}
	}
	return &out
}

func findCounter(t *policy.Table, name string) (int, bool) {
	return slices.BinarySearchFunc(t.Counters, name, func(c policy.Counter, name string) int { return strings.Compare(c.Name, name) })
}

func findSet(t *policy.Table, name string) (int, bool) {
	return slices.BinarySearchFunc(t.Sets, name, func(s policy.Set, name string) int { return strings.Compare(s.Name, name) })
}

func findChain(t *policy.Table, name string) (int, bool) {
	return slices.BinarySearchFunc(t.Chains, name, func(c policy.Chain, name string) int { return strings.Compare(c.Name, name) })
}

func prepare(t *policy.Table, c *policy.TableChange) []error {
	var errs []error
	live := references(t)
	for _, counter := range c.AddCounters {
		i, there := findCounter(t, counter.Name)
		if there || live["counter "+counter.Name] {
			errs = append(errs, fmt.Errorf("counter %s is there already or in use", counter.Name))
			continue
		}
		t.Counters = slices.Insert(t.Counters, i, counter)
	}
	for _, s := range c.AddSets {
		i, there := findSet(t, s.Name)
		if there || live["set "+s.Name] {
			errs = append(errs, fmt.Errorf("set %s is there already or in use", s.Name))
			continue
		}
		s.Elements = slices.Clone(s.Elements)
		t.Sets = slices.Insert(t.Sets, i, s)
	}
	for _, ch := range c.AddChains {
		i, there := findChain(t, ch.Name)
		if there || live["chain "+ch.Name] {
			errs = append(errs, fmt.Errorf("chain %s is there already or in use", ch.Name))
			continue
		}
		if ch.Hook != nil {
			errs = append(errs, fmt.Errorf("base chain %s would be in force at once", ch.Name))
		}
		t.Chains = slices.Insert(t.Chains, i, ch)
	}
	return errs
}

func switchOver(t *policy.Table, c *policy.TableChange) []error {
	var errs []error
	for _, e := range c.Elements {
		errs = append(errs, switchElements(t, e)...)
	}
	for _, ch := range c.SetChains {
		i, there := findChain(t, ch.Name)
		switch {
		case !there && ch.Hook == nil:
			errs = append(errs, fmt.Errorf("chain %s: new, but not prepared", ch.Name))
		case !there:
			t.Chains = slices.Insert(t.Chains, i, ch)
		case sameChain(&t.Chains[i], &ch, t.Family):
			errs = append(errs, fmt.Errorf("chain %s is set to what it is", ch.Name))
		case (t.Chains[i].Hook == nil) != (ch.Hook == nil):
			errs = append(errs, fmt.Errorf("chain %s changes between base and regular", ch.Name))
		default:
			t.Chains[i].Rules = ch.Rules
		}
	}
	return errs
}

func sameChain(a, b *policy.Chain, f policy.Family) bool {
	return slices.EqualFunc(a.Rules, b.Rules, func(a, b policy.Rule) bool { return a.Text(f) == b.Text(f) })
}

func switchElements(t *policy.Table, c policy.ElementChange) []error {
	var errs []error
	i, there := findSet(t, c.Set.Name)
	if !there {
		return []error{fmt.Errorf("set %s is not there", c.Set.Name)}
	}
	if len(c.Del)+len(c.Add) == 0 {
		errs = append(errs, fmt.Errorf("set %s: nothing to do", c.Set.Name))
	}
	s := &t.Sets[i]
	if !sameSet(*s, c.Set) {
		errs = append(errs, fmt.Errorf("set %s is another than that of the change", s.Name))
	}
	if len(c.Set.Elements) > 0 {
		errs = append(errs, fmt.Errorf("set %s of the change has elements", s.Name))
	}
	for _, e := range c.Del {
		j := slices.Index(s.Elements, e)
		if j < 0 {
			errs = append(errs, fmt.Errorf("set %s: deletes %s, which is not there", s.Name, s.ElementText(e)))
			continue
		}
		s.Elements = slices.Delete(s.Elements, j, j+1)
	}
	for _, e := range c.Add {
		j, there := slices.BinarySearchFunc(s.Elements, e.Key, func(e policy.Element, key string) int { return strings.Compare(e.Key, key) })
		switch {
		case there:
			errs = append(errs, fmt.Errorf("set %s: adds %s, which is there", s.Name, s.ElementText(e)))
			continue
		case s.Interval && (j > 0 && e.Key <= s.Elements[j-1].To || j < len(s.Elements) && s.Elements[j].Key <= e.To):
			errs = append(errs, fmt.Errorf("set %s: adds %s, which overlaps", s.Name, s.ElementText(e)))
		case slices.Contains(c.Del, e):
			errs = append(errs, fmt.Errorf("set %s: deletes and adds %s", s.Name, s.ElementText(e)))
		}
		s.Elements = slices.Insert(s.Elements, j, e)
	}
	return errs
}

func sameSet(a, b policy.Set) bool {
	a.Elements, b.Elements = nil, nil
	return reflect.DeepEqual(a, b)
}

func sweep(t *policy.Table, c *policy.TableChange) []error {
	var errs []error
	for _, name := range c.DelChains {
		i, there := findChain(t, name)
		if !there {
			errs = append(errs, fmt.Errorf("chain %s is not there", name))
			continue
		}
		t.Chains = slices.Delete(t.Chains, i, i+1)
	}
	for _, name := range c.DelSets {
		i, there := findSet(t, name)
		if !there {
			errs = append(errs, fmt.Errorf("set %s is not there", name))
			continue
		}
		t.Sets = slices.Delete(t.Sets, i, i+1)
	}
	for _, name := range c.DelCounters {
		i, there := findCounter(t, name)
		if !there {
			errs = append(errs, fmt.Errorf("counter %s is not there", name))
			continue
		}
		t.Counters = slices.Delete(t.Counters, i, i+1)
	}
	return errs
}

// references returns "set NAME", "chain NAME" and "counter NAME" for all that the rules
// and elements of a table lead to.
func references(t *policy.Table) map[string]bool {
	used := map[string]bool{}
	add := func(v policy.Verdict) {
		if v.Chain != "" {
			used["chain "+v.Chain] = true
		}
	}
	for _, s := range t.Sets {
		for _, e := range s.Elements {
			add(e.Verdict)
		}
	}
	for _, ch := range t.Chains {
		for _, rule := range ch.Rules {
			add(rule.Verdict)
			if rule.Count != "" {
				used["counter "+rule.Count] = true
			}
			if rule.Sample.Set != "" {
				used["set "+rule.Sample.Set] = true
			}
			for _, m := range rule.Match {
				if m.Op == policy.OpIn || m.Op == policy.OpNotIn || m.Op == policy.OpVerdict {
					used["set "+m.Name] = true
				}
			}
		}
	}
	return used
}

// dangling returns what is referred to and not there.
func dangling(t *policy.Table) []error {
	used := references(t)
	for _, counter := range t.Counters {
		delete(used, "counter "+counter.Name)
	}
	for _, s := range t.Sets {
		delete(used, "set "+s.Name)
	}
	for _, ch := range t.Chains {
		delete(used, "chain "+ch.Name)
	}
	var errs []error
	for what := range used {
		errs = append(errs, fmt.Errorf("%s is in use and not there", what))
	}
	return errs
}
