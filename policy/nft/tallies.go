package nft

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/selvage-net/selvage/policy"
)

// PolicyCounts are what the rules have let through and denied since the Enforcer was made.
// They only grow while it lives, whatever becomes of the rules; what is about a policy or a namespace
// goes away with it.
type PolicyCounts struct {
	// Policies are sorted by namespace, name and direction.
	Policies []PolicyCount
	// Denied are sorted by namespace and direction.
	Denied []DeniedCount
}

// PolicyCount is what was counted of a policy in one direction.
type PolicyCount struct {
	policy.PolicyRef
	// Direction is ingress or egress, from the pods' view.
	Direction string
	// Allowed counts the first packets of connections that this policy has let through,
	// alone or together with others; Denied the packets that were denied to or from
	// pods that it isolates.
	Allowed, Denied Count
}

// DeniedCount is what was denied to or from the pods of a namespace.
type DeniedCount struct {
	// Namespace and Direction are empty for addresses that no pod is known to have.
	Namespace, Direction string
	Count
}

// tallies keep account of what the counters in the kernel have counted. Each counter
// is either live, or was deleted and its count added to the totals, but never both.
type tallies struct {
	// reading is held while counters are read by a scrape. conn is the scrapes' own,
	// so that they do not wait for a Sync; nil before the first one.
	reading sync.Mutex
	opts    Options
	conn    *Conn

	// mu guards the rest. It is never held while the kernel is asked.
	mu   sync.Mutex
	live [len(policy.Families)]map[string]*account
	// births counts the times that counters became live.
	births uint64
	gone   totals
}

// account is what is known of a live counter.
type account struct {
	info policy.CounterInfo
	// born is the value of births when the counter became live: what was read before
	// that is about another counter of that name.
	born uint64
	// before is what earlier counters of that name have counted, last what this one
	// had when it was last read, and found what it had when it was found.
	before, last, found Count
	// adopted says that it was there already, and has not been read since.
	adopted bool
}

func newTallies(opts Options) *tallies {
	t := &tallies{opts: opts, gone: newTotals()}
	for f := range t.live {
		t.live[f] = map[string]*account{}
	}
	return t
}

// add makes the counters live that a change is about to create. One that is live
// already was deleted by somebody else.
func (t *tallies) add(change *policy.Change, info func(name string) (policy.CounterInfo, bool)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.births++
	for i := range change.Tables {
		tc := &change.Tables[i]
		for _, counter := range tc.AddCounters {
			t.bear(tc.Family, counter.Name, info)
		}
	}
}

// bear makes a counter live, from zero. t.mu must be held.
func (t *tallies) bear(f policy.Family, name string, info func(name string) (policy.CounterInfo, bool)) {
	a := t.live[f][name]
	if a == nil {
		a = &account{}
		a.info, _ = info(name)
		t.live[f][name] = a
	}
	a.born = t.births
	a.before, a.last, a.found, a.adopted = a.count(), Count{}, Count{}, false
}

// adopt makes the counters live that are found as they should be, and gives those up
// that are neither there nor should be. What was counted before the first reading
// belongs to an agent before: with it a total would begin somewhere between nothing and
// what that one had told last, since what was deleted is not known any more, and
// Prometheus would take all of it for new.
func (t *tallies) adopt(actual, desired *policy.Ruleset, info func(name string) (policy.CounterInfo, bool)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.births++
	for i := range desired.Tables {
		f := desired.Tables[i].Family
		gone, fresh := maps.Clone(t.live[f]), map[string]bool{}
		for _, counter := range desired.Tables[i].Counters {
			delete(gone, counter.Name)
			if t.live[f][counter.Name] == nil {
				t.bear(f, counter.Name, info)
				fresh[counter.Name] = true
			}
		}
		for _, counter := range actual.Tables[i].Counters {
			delete(gone, counter.Name)
			if fresh[counter.Name] {
				t.live[f][counter.Name].adopted = true
			}
		}
		for name := range gone {
			t.retire(f, name, Count{})
		}
	}
}

// del adds up what counters had counted that were deleted, and tells whether there
// were any.
func (t *tallies) del(last *familyCounts) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := false
	for _, f := range policy.Families {
		for name, n := range last[f] {
			t.retire(f, name, n)
			found = true
		}
	}
	return found
}

// retire ends a live counter that has counted n at last. t.mu must be held.
func (t *tallies) retire(f policy.Family, name string, n Count) {
	a := t.live[f][name]
	if a == nil {
		return
	}
	delete(t.live[f], name)
	a.read(n)
	t.gone.add(&a.info, a.count())
}

// read takes in what the counter has. Less than before means that somebody has reset
// it, or that it is gone.
func (a *account) read(n Count) {
	switch {
	case a.adopted:
		a.adopted, a.found = false, n
	case n.Packets < a.last.Packets:
		a.before, a.found = a.count(), Count{}
	}
	a.last = n
}

func (a *account) count() Count {
	n := a.before
	n.Add(a.last)
	return Count{Packets: n.Packets - a.found.Packets, Bytes: n.Bytes - a.found.Bytes}
}

// forget drops the totals of policies and namespaces that are no more.
func (t *tallies) forget(policies func(policy.PolicyRef) bool, namespaces func(string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.gone.policies, func(k policyDirection, _ *PolicyCount) bool { return !policies(k.PolicyRef) })
	maps.DeleteFunc(t.gone.denied, func(k DeniedCount, _ *Count) bool { return k.Namespace != "" && !namespaces(k.Namespace) })
}

// info says what a live counter counts.
func (t *tallies) info(name string) (policy.CounterInfo, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range policy.Families {
		if a := t.live[f][name]; a != nil {
			return a.info, true
		}
	}
	return policy.CounterInfo{}, false
}

// counts reads the counters and adds everything up. After an error the counts are
// those that were read before.
func (t *tallies) counts() (PolicyCounts, error) {
	t.reading.Lock()
	defer t.reading.Unlock()
	births := t.begin()
	read, err := t.readKernel()
	return t.end(births, &read), err
}

// begin returns what end needs to know of the time before the counters are read.
func (t *tallies) begin() (births uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.births
}

// end takes in what was read and adds everything up. What was deleted meanwhile is in
// the totals already, and what became live meanwhile was not what was read.
func (t *tallies) end(births uint64, read *familyCounts) PolicyCounts {
	t.mu.Lock()
	defer t.mu.Unlock()
	sum := t.gone.clone()
	for _, f := range policy.Families {
		for name, a := range t.live[f] {
			if n, ok := read[f][name]; ok && a.born <= births {
				a.read(n)
			}
			sum.add(&a.info, a.count())
		}
	}
	return sum.sorted()
}

// readKernel reads the counters. t.reading must be held.
func (t *tallies) readKernel() (familyCounts, error) {
	if t.conn == nil {
		conn, err := Open(t.opts)
		if err != nil {
			return familyCounts{}, err
		}
		t.conn = conn
	}
	return t.conn.counts()
}

func (t *tallies) close() error {
	t.reading.Lock()
	defer t.reading.Unlock()
	if t.conn == nil {
		return nil
	}
	return t.conn.Close()
}

// totals are counts by what they are about.
type totals struct {
	policies map[policyDirection]*PolicyCount
	// denied has the counts by their descriptions, which have none.
	denied map[DeniedCount]*Count
}

type policyDirection struct {
	policy.PolicyRef
	direction string
}

func newTotals() totals {
	return totals{policies: map[policyDirection]*PolicyCount{}, denied: map[DeniedCount]*Count{}}
}

func (t *totals) clone() totals {
	out := newTotals()
	for k, v := range t.policies {
		c := *v
		out.policies[k] = &c
	}
	for k, v := range t.denied {
		c := *v
		out.denied[k] = &c
	}
	return out
}

// add adds what a counter has counted to everything that it is about.
func (t *totals) add(info *policy.CounterInfo, n Count) {
	if info.Denied {
		k := DeniedCount{Namespace: info.Namespace, Direction: info.Direction}
		if t.denied[k] == nil {
			t.denied[k] = &Count{}
		}
		t.denied[k].Add(n)
	}
	for _, ref := range info.Policies {
		k := policyDirection{ref, info.Direction}
		p := t.policies[k]
		if p == nil {
			p = &PolicyCount{PolicyRef: ref, Direction: info.Direction}
			t.policies[k] = p
		}
		if info.Denied {
			p.Denied.Add(n)
		} else {
			p.Allowed.Add(n)
		}
	}
}

func (t *totals) sorted() PolicyCounts {
	var out PolicyCounts
	for _, p := range t.policies {
		out.Policies = append(out.Policies, *p)
	}
	for k, n := range t.denied {
		k.Count = *n
		out.Denied = append(out.Denied, k)
	}
	slices.SortFunc(out.Policies, func(a, b PolicyCount) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Direction, b.Direction))
	})
	slices.SortFunc(out.Denied, func(a, b DeniedCount) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Direction, b.Direction))
	})
	return out
}
