package shaping

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Key names a pod.
type Key struct{ Namespace, Name string }

// String returns namespace/name.
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Compare orders keys by namespace and name.
func (k Key) Compare(other Key) int {
	return cmp.Or(cmp.Compare(k.Namespace, other.Namespace), cmp.Compare(k.Name, other.Name))
}

// Annotations are those of an object.
type Annotations interface {
	// Lookup returns the value of a key and whether it is there.
	Lookup(key string) (string, bool)
}

// Pod is what shaping needs to know of a pod that runs on the node.
type Pod struct {
	Key
	// UID tells it from others of its name.
	UID string
	// Addrs are its addresses.
	Addrs []netip.Addr
	// HostNetwork pods have no interface of their own.
	HostNetwork bool
	// Created is when it was made, in Unix seconds. Of pods that claim one address, the
	// newest has it.
	Created     int64
	Annotations Annotations
}

// Located tells whether the pod can have an interface of its own by now.
func (p Pod) Located() bool { return !p.HostNetwork && len(p.Addrs) > 0 }

// Pool is a range of addresses whose pods have a default.
type Pool struct {
	CIDRs  []netip.Prefix
	Limits Limits
}

// Problem is an annotation that cannot be used.
type Problem struct {
	// Pod is the pod that has it or, if its Name is empty, the namespace.
	Pod Key
	// UID is that of the pod; empty for a namespace.
	UID string
	// Annotation is the key.
	Annotation string
	// Err says what is wrong, and what would be accepted.
	Err error
}

// Model derives the limits of the node's pods from what is said of them: by the
// pod's own annotations, then those of its namespace, then its pool, then the
// node's defaults, for each direction. An annotation that cannot be used leaves
// its last usable value in force. A Model is for one goroutine.
type Model struct {
	defaults   Limits
	pools      []Pool
	pods       map[Key]*entry
	namespaces map[string]*words
	changed    map[Key]bool
}

// entry is what a Model knows of a pod.
type entry struct {
	pod Pod
	words
}

// words are what the annotations of one object say.
type words struct {
	limits   Limits
	problems []Problem
}

// NewModel returns a Model without pods. defaults are the node's.
func NewModel(defaults Limits) *Model {
	return &Model{defaults: defaults, pods: make(map[Key]*entry), namespaces: make(map[string]*words), changed: make(map[Key]bool)}
}

// SetPod says how a pod is now.
func (m *Model) SetPod(p Pod) {
	e := m.pods[p.Key]
	if e != nil && !slices.Equal(e.pod.Addrs, p.Addrs) {
		m.touch(e.pod.Addrs) // one of them may be another pod's from now on
	}
	if e == nil || e.pod.UID != p.UID { // another one of its name
		e = &entry{}
		m.pods[p.Key] = e
	}
	if !slices.Equal(e.pod.Addrs, p.Addrs) {
		m.touch(p.Addrs)
	}
	e.pod = p
	e.read(p.Key, p.UID, p.Annotations)
	m.changed[p.Key] = true
}

// RemovePod says that a pod no longer runs on the node.
func (m *Model) RemovePod(k Key) {
	if e, ok := m.pods[k]; ok {
		delete(m.pods, k)
		m.touch(e.pod.Addrs)
		m.changed[k] = true
	}
}

// SetNamespace says how a namespace is now; nil if it is gone.
func (m *Model) SetNamespace(name string, a Annotations) {
	before := m.namespaces[name]
	after := &words{}
	if a == nil {
		delete(m.namespaces, name)
	} else {
		if before != nil {
			after.limits = before.limits
		}
		if after.read(Key{Namespace: name}, "", a); after.empty() { // as most are
			delete(m.namespaces, name)
		} else {
			m.namespaces[name] = after
		}
	}
	if before == nil {
		before = &words{}
	}
	if before.limits == after.limits && len(before.problems)+len(after.problems) == 0 {
		return
	}
	for k := range m.pods {
		if k.Namespace == name {
			m.changed[k] = true
		}
	}
}

func (w *words) empty() bool { return w.limits == (Limits{}) && len(w.problems) == 0 }

// SetPools says which pools there are, those without limits as well. They may overlap:
// the smaller range counts.
func (m *Model) SetPools(pools []Pool) {
	m.pools = pools
	for k := range m.pods {
		m.changed[k] = true
	}
}

// Adopt says what the last agent had in force for a pod. It counts for annotations,
// the pod's or its namespace's, that cannot be used and of which this Model has
// never seen a usable value.
func (m *Model) Adopt(k Key, l Limits) {
	e := m.pods[k]
	if e == nil {
		return
	}
	for _, d := range Directions() {
		if m.Limits(k)[d].Rate.bytes() == l[d].Rate.bytes() { // that follows from what can be used
			continue
		}
		if e.adopt(d, l[d].Rate) || e.limits[d].Rate != 0 {
			continue
		}
		if w := m.namespaces[k.Namespace]; w != nil {
			w.adopt(d, l[d].Rate)
		}
	}
}

// adopt takes a rate for that of an annotation that cannot be used, if there is
// one and no other rate is known.
func (w *words) adopt(d Direction, r Rate) bool {
	unusable := slices.ContainsFunc(w.problems, func(p Problem) bool { return p.Annotation == d.BandwidthAnnotation() })
	if !unusable || w.limits[d].Rate != 0 {
		return false
	}
	w.limits[d].Rate = r
	return true
}

// Changed returns the pods whose limits may have changed since the last call,
// sorted; those that are gone are among them.
func (m *Model) Changed() []Key {
	keys := slices.SortedFunc(maps.Keys(m.changed), Key.Compare)
	clear(m.changed)
	return keys
}

// Pod returns a pod by its name, and whether it is known. It has only the addresses
// that no newer one has.
func (m *Model) Pod(k Key) (Pod, bool) {
	e, ok := m.pods[k]
	if !ok {
		return Pod{}, false
	}
	p := e.pod
	p.Addrs = nil
	for _, a := range e.pod.Addrs {
		if !m.newer(e.pod, a) {
			p.Addrs = append(p.Addrs, a)
		}
	}
	return p, true
}

// newer tells whether a newer pod has an address, too.
func (m *Model) newer(p Pod, a netip.Addr) bool {
	for k, e := range m.pods {
		if k != p.Key && !e.pod.HostNetwork && cmp.Or(cmp.Compare(e.pod.Created, p.Created), cmp.Compare(e.pod.UID, p.UID)) > 0 && slices.Contains(e.pod.Addrs, a) {
			return true
		}
	}
	return false
}

// touch marks the pods that have any of some addresses as changed.
func (m *Model) touch(addrs []netip.Addr) {
	for k, e := range m.pods {
		if slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(e.pod.Addrs, a) }) {
			m.changed[k] = true
		}
	}
}

// Asks tells whether a pod itself has an annotation for bandwidth, usable or not.
func (m *Model) Asks(k Key) bool {
	e := m.pods[k]
	return e != nil && (e.limits.Any() || len(e.problems) > 0)
}

// Pods returns the names of all pods, sorted.
func (m *Model) Pods() []Key { return slices.SortedFunc(maps.Keys(m.pods), Key.Compare) }

// Problems returns all annotations that cannot be used, sorted: those of pods, and of
// the namespaces that they are in.
func (m *Model) Problems() []Problem {
	var all []Problem
	inUse := make(map[string]bool)
	for k, e := range m.pods {
		all = append(all, e.problems...)
		inUse[k.Namespace] = true
	}
	for name, w := range m.namespaces {
		if inUse[name] {
			all = append(all, w.problems...)
		}
	}
	slices.SortFunc(all, func(a, b Problem) int {
		return cmp.Or(a.Pod.Compare(b.Pod), cmp.Compare(a.Annotation, b.Annotation))
	})
	return all
}

// Limits returns the limits of a pod. An unknown one has none.
func (m *Model) Limits(k Key) Limits {
	e := m.pods[k]
	if e == nil {
		return Limits{}
	}
	levels := []Limits{e.limits}
	if w := m.namespaces[k.Namespace]; w != nil {
		levels = append(levels, w.limits)
	}
	levels = append(levels, m.poolOf(e.pod.Addrs), m.defaults)
	var l Limits
	for _, d := range Directions() {
		for _, level := range levels {
			if level[d].Rate != 0 {
				l[d] = level[d]
				break
			}
		}
		if own := e.limits[d].Burst; own != 0 && l[d].Rate != 0 {
			l[d].Burst = own // whatever level the rate is from
		}
	}
	return l
}

// poolOf returns the defaults of the pool that a pod is in: that of the first of its
// addresses that is in one, and there the smallest.
func (m *Model) poolOf(addrs []netip.Addr) Limits {
	for _, a := range addrs {
		var of *Pool
		bits := -1
		for i := range m.pools {
			for _, c := range m.pools[i].CIDRs {
				if c.Bits() > bits && c.Contains(a) {
					of, bits = &m.pools[i], c.Bits()
				}
			}
		}
		if of != nil {
			return of.Limits
		}
	}
	return Limits{}
}

// read takes in what the annotations of an object say. What cannot be used keeps
// the value that it had.
func (w *words) read(of Key, uid string, a Annotations) {
	w.problems = nil
	for _, d := range Directions() {
		rate, err := lookup(a, d.BandwidthAnnotation(), ParseRate)
		if err == nil {
			w.limits[d].Rate = rate
		} else {
			w.problems = append(w.problems, Problem{of, uid, d.BandwidthAnnotation(), err})
		}
		burst, err := lookup(a, d.BurstAnnotation(), ParseBurst)
		if err == nil {
			w.limits[d].Burst = burst
		} else {
			w.problems = append(w.problems, Problem{of, uid, d.BurstAnnotation(), err})
		}
	}
}

// lookup parses an annotation, or returns zero if there is none.
func lookup[T any](a Annotations, key string, parse func(string) (T, error)) (T, error) {
	var none T
	if a == nil {
		return none, nil
	}
	text, ok := a.Lookup(key)
	if !ok {
		return none, nil
	}
	v, err := parse(text)
	if err != nil {
		return none, fmt.Errorf("annotation %s: %w", key, err)
	}
	return v, nil
}
