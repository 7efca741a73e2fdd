package apiserver

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

// Object is an API object.
type Object interface {
	runtime.Object
	metav1.Object
}

// event is what happened to an object at a resource version.
type event struct {
	kind   watch.EventType
	object Object
	rv     uint64
}

// collection are all objects of one resource, and what happened to them.
type collection struct {
	gvk     schema.GroupVersionKind
	objects map[string]Object
	log     []event
}

// Store holds the objects that the server serves. It is safe for concurrent
// use. Objects are immutable once they were given to it.
type Store struct {
	mu          sync.Mutex
	changed     *sync.Cond
	rv          uint64
	collections map[string]*collection
}

// NewStore returns an empty store.
func NewStore() *Store {
	s := &Store{collections: make(map[string]*collection), rv: 1000}
	s.changed = sync.NewCond(&s.mu)
	for resource, gvk := range resources {
		s.collections[resource] = &collection{gvk: gvk, objects: make(map[string]Object)}
	}
	return s
}

// Add puts objects of a resource (its plural, as in a URL) into the store
// before anyone watches.
func (s *Store) Add(resource string, objects ...Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.collections[resource]
	for _, o := range objects {
		s.stamp(o)
		c.objects[key(o)] = o
	}
}

// Put adds or replaces an object and tells the watchers.
func (s *Store) Put(resource string, o Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.collections[resource]
	s.stamp(o)
	kind := watch.Modified
	if _, ok := c.objects[key(o)]; !ok {
		kind = watch.Added
	}
	c.objects[key(o)] = o
	c.log = append(c.log, event{kind, o, s.rv})
	s.changed.Broadcast()
}

// Delete removes an object and tells the watchers.
func (s *Store) Delete(resource string, o Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.collections[resource]
	delete(c.objects, key(o))
	gone := o.DeepCopyObject().(Object)
	s.stamp(gone)
	c.log = append(c.log, event{watch.Deleted, gone, s.rv})
	s.changed.Broadcast()
}

func (s *Store) stamp(o Object) {
	s.rv++
	o.SetResourceVersion(strconv.FormatUint(s.rv, 10))
}

// list returns all objects of a resource, sorted by key as etcd does, and the
// resource version at which that was so.
func (s *Store) list(resource string) ([]Object, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.collections[resource]
	keys := make([]string, 0, len(c.objects))
	for k := range c.objects {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	out := make([]Object, 0, len(keys))
	for _, k := range keys {
		out = append(out, c.objects[k])
	}
	return out, s.rv
}

// since returns what happened to a resource after rv, waiting until something
// did or stop tells true, and the version up to which that is all.
func (s *Store) since(resource string, rv uint64, stop func() bool) ([]event, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.collections[resource]
	for !stop() {
		i, _ := slices.BinarySearchFunc(c.log, rv+1, func(e event, rv uint64) int {
			return int(int64(e.rv) - int64(rv))
		})
		if i < len(c.log) {
			return slices.Clone(c.log[i:]), c.log[len(c.log)-1].rv
		}
		s.changed.Wait()
	}
	return nil, rv
}

// wake lets all who wait in since look at their stop again.
func (s *Store) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed.Broadcast()
}

// Size returns the number of objects of a resource, and the mean size of the
// protobuf encoding of one, in bytes.
func (s *Store) Size(resource string) (n, mean int, err error) {
	objects, _ := s.list(resource)
	f := format(protobufType)
	var total int
	for _, o := range objects {
		var b bytes.Buffer
		if err := f.encode(o, &b); err != nil {
			return 0, 0, fmt.Errorf("encode %s: %w", key(o), err)
		}
		total += b.Len()
	}
	if len(objects) == 0 {
		return 0, 0, nil
	}
	return len(objects), total / len(objects), nil
}

func key(o Object) string { return o.GetNamespace() + "/" + o.GetName() }
