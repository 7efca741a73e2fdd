package informer

import (
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"

	"github.com/selvage-net/selvage/policy"
)

// Batch is what a Sink is given: what changed since the last call.
type Batch struct {
	// Deltas hold at most one change per object, in the order in which the
	// objects first changed.
	Deltas []policy.Delta
	// Received says for each delta when the source told of the first change
	// that is in it.
	Received []time.Time
	// Initial is true once, for the batch with all objects that there were.
	Initial bool
	// Resync asks the sink to compare everything with what it was told before.
	Resync bool
}

// pending gathers changes until they are taken.
type pending struct {
	clock clock.PassiveClock
	// wake has something in it if changes are waiting.
	wake chan struct{}

	mu       sync.Mutex
	index    map[identity]int
	deltas   []policy.Delta
	received []time.Time
}

func newPending(c clock.PassiveClock) *pending {
	return &pending{clock: c, wake: make(chan struct{}, 1), index: map[identity]int{}}
}

// add notes a change. Of several changes of one object the latest counts.
func (p *pending) add(kind Kind, object policy.Object, deleted bool) {
	now := p.clock.Now()
	d := policy.Delta{Object: object, Deleted: deleted}
	id := identityOf(kind, object)
	p.mu.Lock()
	defer p.mu.Unlock()
	if i, ok := p.index[id]; ok {
		p.deltas[i] = d
	} else {
		p.index[id] = len(p.deltas)
		p.deltas = append(p.deltas, d)
		p.received = append(p.received, now)
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take returns all changes and forgets them.
func (p *pending) take() Batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	// Whoever takes everything need not be woken for it.
	select {
	case <-p.wake:
	default:
	}
	b := Batch{Deltas: p.deltas, Received: p.received}
	// A map never gives back the memory of its largest size.
	p.index, p.deltas, p.received = map[identity]int{}, nil, nil
	return b
}

func identityOf(kind Kind, object policy.Object) identity {
	switch o := object.(type) {
	case *policy.Pod:
		return identity{kind, o.Namespace, o.Name}
	case *policy.Namespace:
		return identity{kind, o.Namespace, o.Name}
	case *policy.Node:
		return identity{kind, o.Namespace, o.Name}
	}
	m := object.GetObjectMeta()
	return identity{kind, m.GetNamespace(), m.GetName()}
}

// events hands the events of one kind to pending.
type events struct {
	kind    Kind
	pending *pending
}

var _ cache.ResourceEventHandler = events{}

// OnAdd implements cache.ResourceEventHandler.
func (e events) OnAdd(object any, _ bool) {
	if o, ok := object.(policy.Object); ok {
		e.pending.add(e.kind, o, false)
	}
}

// OnUpdate implements cache.ResourceEventHandler. Most updates of pods and
// nodes concern what was trimmed away.
func (e events) OnUpdate(before, after any) {
	if o, ok := after.(policy.Object); ok && !unchanged(before, after) {
		e.pending.add(e.kind, o, false)
	}
}

// OnDelete implements cache.ResourceEventHandler.
func (e events) OnDelete(object any) {
	// The event itself may have been missed.
	if unknown, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = unknown.Obj
	}
	if o, ok := object.(policy.Object); ok {
		e.pending.add(e.kind, o, true)
	}
}

// unchanged tells whether two versions of an object differ in nothing but their
// resource version.
func unchanged(before, after any) bool {
	switch a := after.(type) {
	case *policy.Pod:
		if b, ok := before.(*policy.Pod); ok {
			c := *b
			c.ResourceVersion = a.ResourceVersion
			return reflect.DeepEqual(&c, a)
		}
	case *policy.Namespace:
		if b, ok := before.(*policy.Namespace); ok {
			c := *b
			c.ResourceVersion = a.ResourceVersion
			return reflect.DeepEqual(&c, a)
		}
	case *policy.Node:
		if b, ok := before.(*policy.Node); ok {
			// Kubelets tell of their nodes again and again.
			return b.UID == a.UID && b.Created == a.Created && slices.Equal(b.Labels, a.Labels) &&
				slices.Equal(b.PodCIDRs, a.PodCIDRs) && slices.Equal(b.Addrs, a.Addrs)
		}
	case *policy.Pool:
		if b, ok := before.(*policy.Pool); ok {
			return samePool(b, a)
		}
	case *policy.ServiceCIDR:
		if b, ok := before.(*policy.ServiceCIDR); ok {
			return b.UID == a.UID && b.Created == a.Created && slices.Equal(b.CIDRs, a.CIDRs)
		}
	case *networkingv1.NetworkPolicy:
		if b, ok := before.(*networkingv1.NetworkPolicy); ok {
			return b.UID == a.UID && reflect.DeepEqual(&b.Spec, &a.Spec)
		}
	}
	return false
}

// samePool compares all but the resource version. A selector says in words all that is
// in it, but for one that selects nothing, which comes with an error.
func samePool(b, a *policy.Pool) bool {
	words := func(p *policy.Pool) string { return fmt.Sprint(p.Nodes, p.Err) }
	return b.UID == a.UID && b.Created == a.Created && slices.Equal(b.CIDRs, a.CIDRs) &&
		b.NATOutgoing == a.NATOutgoing && b.Disabled == a.Disabled && b.Ingress == a.Ingress && b.Egress == a.Egress &&
		words(b) == words(a)
}
