package informer

import (
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-net/selvage/policy"
)

// internLimit bounds each table of an interner. The pods of one ReplicaSet come
// from the API close to each other, and there are few namespaces and nodes: what
// is forgotten when a table is full costs little.
const internLimit = 8192

// interner lets equal values share memory. It is bounded, so that it does not
// keep what nobody uses any more; all that is lost with an entry is that the
// next equal value is stored once more. A nil interner shares nothing. It may
// be used by several goroutines.
type interner struct {
	// self is the node whose labels are kept.
	self string

	mu        sync.Mutex
	strings   table[string]
	labels    table[policy.Labels]
	ports     table[[]policy.NamedPort]
	selectors table[*metav1.LabelSelector]
	scratch   []byte
}

// table maps a value's serial form to the one that is shared.
type table[V any] map[string]V

// keep stores v, and forgets all others if there are too many of them.
func (t *table[V]) keep(key string, v V) {
	if *t == nil || len(*t) >= internLimit {
		*t = make(table[V])
	}
	(*t)[key] = v
}

// string returns s, or a string equal to it.
func (in *interner) string(s string) string {
	if in == nil || s == "" {
		return s
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.shared(s)
}

// shared is string for those who hold the lock.
func (in *interner) shared(s string) string {
	if v, ok := in.strings[s]; ok {
		return v
	}
	in.strings.keep(s, s)
	return s
}

// labelsOf returns the labels of m. Equal maps share one slice.
func (in *interner) labelsOf(m map[string]string) policy.Labels {
	l := policy.NewLabels(m)
	if in == nil || len(l) == 0 {
		return l
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	// No valid label has a zero byte in it; an invalid one at worst keeps
	// another's slice from being shared, because the length is compared.
	key := in.scratch[:0]
	for _, e := range l {
		key = append(append(append(append(key, e.Key...), 0), e.Value...), 0)
	}
	in.scratch = key
	if v, ok := in.labels[string(key)]; ok && len(v) == len(l) {
		return v
	}
	for i, e := range l {
		l[i] = policy.Label{Key: in.shared(e.Key), Value: in.shared(e.Value)}
	}
	in.labels.keep(string(key), l)
	return l
}

// portsOf returns ports, or a slice equal to it.
func (in *interner) portsOf(ports []policy.NamedPort) []policy.NamedPort {
	if in == nil || len(ports) == 0 {
		return ports
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	key := in.scratch[:0]
	for _, p := range ports {
		key = append(append(key, p.Name...), 0, byte(p.Protocol), byte(p.Port>>8), byte(p.Port))
	}
	in.scratch = key
	if v, ok := in.ports[string(key)]; ok && len(v) == len(ports) {
		return v
	}
	for i := range ports {
		ports[i].Name = in.shared(ports[i].Name)
	}
	in.ports.keep(string(key), ports)
	return ports
}

// selector returns s, or a selector equal to it. Neither may be changed.
func (in *interner) selector(s *metav1.LabelSelector) *metav1.LabelSelector {
	if in == nil || s == nil {
		return s
	}
	// Marshal sorts the keys of maps, so that equal selectors look equal.
	key, err := s.Marshal()
	if err != nil {
		return s
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if v, ok := in.selectors[string(key)]; ok {
		return v
	}
	in.selectors.keep(string(key), s)
	return s
}
