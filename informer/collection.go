package informer

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/selvage-net/selvage/informer/api/calico"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
)

const (
	// keptEvents is how many events a watch may have missed and still go on
	// where it was.
	keptEvents = 1024
	// watchQueue is how many events wait for one watcher.
	watchQueue = 64
)

// collection serves the objects of one kind as the API server does: List, and
// Watch with resource versions, initial events and the bookmark behind them. It
// is a cache.ListerWatcher.
type collection struct {
	kind   Kind
	events *watch.Broadcaster

	mu sync.Mutex
	// version is the resource version; every event has one of its own.
	version uint64
	objects map[identity]apiObject
	// history holds the last events, the newest with version.
	history []watch.Event
}

func newCollection(kind Kind) *collection {
	return &collection{
		kind:    kind,
		events:  watch.NewBroadcaster(watchQueue, watch.WaitIfChannelFull),
		version: 1,
		objects: map[identity]apiObject{},
	}
}

// shutdown ends all watches.
func (c *collection) shutdown() { c.events.Shutdown() }

// put adds an object or replaces it.
func (c *collection) put(id identity, object apiObject) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	event := watch.Added
	if _, ok := c.objects[id]; ok {
		event = watch.Modified
	}
	object = withVersion(object, c.next())
	c.objects[id] = object
	return c.record(event, object)
}

// remove takes an object away.
func (c *collection) remove(id identity) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	object, ok := c.objects[id]
	if !ok {
		return nil
	}
	delete(c.objects, id)
	return c.record(watch.Deleted, withVersion(object, c.next()))
}

func (c *collection) next() string {
	c.version++
	return formatVersion(c.version)
}

func (c *collection) record(event watch.EventType, object apiObject) error {
	if len(c.history) == keptEvents {
		c.history = slices.Delete(c.history, 0, keptEvents/2)
	}
	c.history = append(c.history, watch.Event{Type: event, Object: object})
	return c.events.Action(event, object)
}

// List implements cache.ListerWatcher.
func (c *collection) List(o metav1.ListOptions) (runtime.Object, error) {
	return c.ListWithContext(context.Background(), o)
}

// ListWithContext implements cache.ListerWatcherWithContext. It always returns
// everything as it is now, which the API allows whatever the options say.
func (c *collection) ListWithContext(context.Context, metav1.ListOptions) (runtime.Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	items := make([]runtime.Object, 0, len(c.objects))
	for _, o := range c.sorted() {
		items = append(items, o)
	}
	list := kindInfo[c.kind].list()
	if err := meta.SetList(list, items); err != nil {
		return nil, fmt.Errorf("list of %s: %w", c.kind, err)
	}
	m, err := meta.ListAccessor(list)
	if err != nil {
		return nil, fmt.Errorf("list of %s: %w", c.kind, err)
	}
	m.SetResourceVersion(formatVersion(c.version))
	return list, nil
}

// Watch implements cache.ListerWatcher.
func (c *collection) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return c.WatchWithContext(context.Background(), o)
}

// WatchWithContext implements cache.ListerWatcherWithContext. The watch ends
// when it is stopped; it never times out.
func (c *collection) WatchWithContext(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first, err := c.firstEvents(o)
	if err != nil {
		return nil, err
	}
	w, err := c.events.WatchWithPrefix(first)
	if err != nil {
		return nil, fmt.Errorf("watch of %s: %w", c.kind, err)
	}
	return w, nil
}

// firstEvents returns what a watch begins with: all objects, or what happened
// since the version that it goes on from.
func (c *collection) firstEvents(o metav1.ListOptions) ([]watch.Event, error) {
	stream := o.SendInitialEvents != nil && *o.SendInitialEvents
	if stream || o.ResourceVersion == "" || o.ResourceVersion == "0" {
		var first []watch.Event
		for _, object := range c.sorted() {
			first = append(first, watch.Event{Type: watch.Added, Object: object})
		}
		if stream && o.AllowWatchBookmarks {
			end := withVersion(kindInfo[c.kind].object(), formatVersion(c.version))
			end.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
			first = append(first, watch.Event{Type: watch.Bookmark, Object: end})
		}
		return first, nil
	}
	from, err := strconv.ParseUint(o.ResourceVersion, 10, 64)
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("resourceVersion %q is not a number", o.ResourceVersion))
	}
	missed := c.version - from
	if from > c.version || missed > uint64(len(c.history)) {
		return nil, apierrors.NewResourceExpired(fmt.Sprintf("resourceVersion %d is not known any more", from))
	}
	return slices.Clone(c.history[len(c.history)-int(missed):]), nil
}

// sorted returns all objects by namespace and name.
func (c *collection) sorted() []apiObject {
	objects := make([]apiObject, 0, len(c.objects))
	for _, o := range c.objects {
		objects = append(objects, o)
	}
	slices.SortFunc(objects, func(a, b apiObject) int {
		if n := strings.Compare(a.GetNamespace(), b.GetNamespace()); n != 0 {
			return n
		}
		return strings.Compare(a.GetName(), b.GetName())
	})
	return objects
}

func formatVersion(v uint64) string { return strconv.FormatUint(v, 10) }

// withVersion returns a copy of object with another resource version. Only the
// outermost struct is copied: watchers hold the old one.
func withVersion(object apiObject, version string) apiObject {
	switch o := object.(type) {
	case *corev1.Pod:
		c := *o
		object = &c
	case *corev1.Namespace:
		c := *o
		object = &c
	case *corev1.Node:
		c := *o
		object = &c
	case *networkingv1.NetworkPolicy:
		c := *o
		object = &c
	case *networkingv1.ServiceCIDR:
		c := *o
		object = &c
	case *v1alpha1.IPPool:
		c := *o
		object = &c
	case *calico.IPPool:
		c := *o
		object = &c
	}
	object.SetResourceVersion(version)
	return object
}
