package informer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	"github.com/selvage-net/selvage/informer/api/calico"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
)

func apiPool(name string, cidrs ...string) *v1alpha1.IPPool {
	return &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.IPPoolSpec{CIDRs: cidrs}}
}

func apiCalicoPool(name, cidr string) *calico.IPPool {
	return &calico.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: calico.IPPoolSpec{CIDR: cidr}}
}

func apiServices(name string, cidrs ...string) *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}
}

// refusal is what a server says to an account that may not do something.
func refusal() *apierrors.StatusError {
	return apierrors.NewForbidden(schema.GroupResource{Resource: "something"}, "", errors.New("no role"))
}

// lifetime is an Informer that follows a server's optional kinds at a quick pace.
type lifetime struct {
	*testing.T
	server *apiServer
	inf    *Informer
	sink   *sinkLog
	seen   *troubles
	cuts   int

	mu sync.Mutex
	// connected is what Observe was told last.
	connected map[Kind]bool
}

// quick is a pace at which nobody waits long.
func quick() pace {
	return pace{first: 10 * time.Millisecond, often: 100 * time.Millisecond, seldom: 100 * time.Millisecond}
}

// attentive is one at which nothing is found by looking again.
func attentive() pace {
	return pace{first: 5 * time.Millisecond, often: time.Hour, seldom: time.Hour}
}

func live(t *testing.T, server *apiServer, p pace) *lifetime {
	t.Helper()
	source, err := Kubernetes(server.config())
	if err != nil {
		t.Fatal(err)
	}
	l := &lifetime{T: t, server: server, seen: &troubles{}, connected: map[Kind]bool{}}
	l.inf = New(Options{Source: source, Observe: Observe{Trouble: l.seen.observe, Connected: func(kind Kind, connected bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if before, ok := l.connected[kind]; ok && before == connected {
			t.Errorf("told again that %s is connected = %t", kind, connected)
		}
		l.connected[kind] = connected
	}}})
	l.inf.pace = p
	l.sink = start(t, l.inf)
	return l
}

// fine waits until there is nothing wrong with a kind.
func (l *lifetime) fine(kind Kind) {
	l.Helper()
	eventually(l.T, kind.String()+" is in order", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.seen.of(kind) == nil && l.connected[kind]
	})
	eventually(l.T, "all is connected", l.inf.Connected)
}

// told waits until there is something wrong with a kind.
func (l *lifetime) told(kind Kind, cause Cause, text string) {
	l.Helper()
	eventually(l.T, kind.String()+" is "+cause.String(), func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.seen.is(kind, cause) && !l.connected[kind]
	})
	if got := l.seen.of(kind).Error(); !strings.Contains(got, text) || strings.Contains(got, "\n") {
		l.Errorf("%q does not say %q in a line", got, text)
	}
	if l.inf.Connected() {
		l.Error("connected, although something is wrong")
	}
}

// never fails if something was ever wrong with a kind.
func (l *lifetime) never(kind Kind) {
	l.Helper()
	if told := l.seen.ever(kind); told != nil {
		l.Errorf("it was told that %v", told)
	}
}

// asked waits until the server was asked for a path n more times.
func (l *lifetime) asked(path string, n int) {
	l.Helper()
	count := func() (sum int) {
		for _, r := range l.server.seen() {
			if r.path == path {
				sum++
			}
		}
		return sum
	}
	before := count()
	eventually(l.T, path+" was asked for", func() bool { return count() >= before+n })
}

// cut ends all watches, once something is no more as it was. Pools have had an event
// before: a reflector takes a short watch without one for a failure, and waits for
// seconds.
func (l *lifetime) cut(change func()) {
	l.Helper()
	l.cuts++
	cidr := fmt.Sprintf("10.9.%d.0/24", l.cuts)
	l.server.put(apiPool("event", cidr))
	l.sink.has("IPPool selvage/event", cidr)
	change()
	l.server.cut()
}

// define makes the definition of a kind be there, or not.
func (s *apiServer) define(kind Kind, there bool) {
	s.definitions.set(kindInfo[kind].definition, there)
}

// TestOptionalAbsent has a server without the CustomResourceDefinitions at first. They
// come, and go, and nobody has to do anything.
func TestOptionalAbsent(t *testing.T) {
	t.Parallel() // most of the time is client-go's pauses
	for kind, pool := range map[Kind]apiObject{IPPools: apiPool("a", "10.1.0.0/16"), CalicoPools: apiCalicoPool("a", "10.1.0.0/16")} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			key := map[Kind]string{IPPools: "IPPool selvage/a", CalicoPools: "IPPool calico/a"}[kind]
			server := newAPIServer(t, protobuf)
			server.serve(kind, false)
			server.define(kind, false)
			server.put(apiPod("a", "10.1.0.1"), pool)
			l := live(t, server, attentive())
			l.fine(kind)
			appear := func() {
				// A definition is there some time before what it defines.
				server.define(kind, true)
				l.asked(pathOf(kind), 2)
				server.serve(kind, true)
				l.sink.has(key, "10.1.0.0/16")
				l.fine(kind)
			}
			appear()
			if kind == IPPools { // Calico's are no different
				l.cut(func() {
					server.serve(kind, false)
					server.define(kind, false)
				})
				l.sink.lacks(key)
				l.fine(kind)
				appear()
			}
			if _, ok := l.sink.get("Pod x/a"); !ok {
				t.Error("the pod is gone as well")
			}
		})
	}
}

// TestOptionalPolled is about an account that may not see definitions: what is not there
// is asked for now and then.
func TestOptionalPolled(t *testing.T) {
	t.Parallel() // most of the time is client-go's pauses
	server := newAPIServer(t, protobuf)
	server.definitions.answer(refusal())
	server.serve(IPPools, false)
	server.put(apiPool("a", "10.1.0.0/16"))
	l := live(t, server, quick())
	l.fine(IPPools)
	l.asked(pathOf(IPPools), 3)
	server.serve(IPPools, true)
	l.sink.has("IPPool selvage/a", "10.1.0.0/16")
	l.fine(IPPools)
	l.never(IPPools)

	// One answer may be wrong; many are right.
	l.cut(func() { server.serve(IPPools, false) })
	l.sink.lacks("IPPool selvage/a")
	l.fine(IPPools)
}

// TestOptionalOldServer has a server that does not know ServiceCIDRs, and becomes one
// that does.
func TestOptionalOldServer(t *testing.T) {
	t.Parallel() // most of the time is client-go's pauses
	server := newAPIServer(t, protobuf)
	server.serve(ServiceCIDRs, false)
	server.put(apiServices("kubernetes", "10.96.0.0/12"))
	l := live(t, server, quick())
	l.fine(ServiceCIDRs)
	l.asked(pathOf(ServiceCIDRs), 2)
	server.serve(ServiceCIDRs, true)
	l.sink.has("ServiceCIDR kubernetes", "10.96.0.0/12")
	l.fine(ServiceCIDRs)
	l.never(ServiceCIDRs)
}

// TestOptionalForbidden has an account that may not see the pools: from the start, when
// there seem to be none, and later, when what is known stays.
func TestOptionalForbidden(t *testing.T) {
	t.Parallel() // most of the time is client-go's pauses
	for _, definitionsToo := range []bool{false, true} {
		t.Run("definitions too="+strconv.FormatBool(definitionsToo), func(t *testing.T) {
			t.Parallel()
			server := newAPIServer(t, protobuf)
			server.refuseKind(IPPools, refusal())
			if definitionsToo {
				server.definitions.answer(refusal())
			}
			server.put(apiPod("a", "10.1.0.1"), apiPool("a", "10.1.0.0/16"))
			l := live(t, server, quick())
			if len(l.sink.initial) != 1 {
				t.Errorf("initial batch: %v", l.sink.initial)
			}
			l.told(IPPools, Forbidden, "list and watch ippools of selvage.dev/v1alpha1")
			server.refuseKind(IPPools, nil)
			l.sink.has("IPPool selvage/a", "10.1.0.0/16")
			l.fine(IPPools)
			if definitionsToo {
				return // the rest is the same
			}

			l.cut(func() { server.refuseKind(IPPools, refusal()) })
			l.told(IPPools, Forbidden, "ClusterRole")
			l.asked(pathOf(IPPools), 2*patience)
			if _, ok := l.sink.get("IPPool selvage/a"); !ok {
				t.Error("what was known is gone")
			}
			server.refuseKind(IPPools, nil)
			l.fine(IPPools)

			// It may be listed, but not watched.
			l.cut(func() { server.refuseWatch(IPPools, true) })
			l.told(IPPools, Forbidden, "list and watch")
			server.refuseWatch(IPPools, false)
			l.fine(IPPools)
		})
	}
}

// TestOptionalForbiddenAbsent: who may not see what is not there lacks nothing.
func TestOptionalForbiddenAbsent(t *testing.T) {
	t.Parallel() // most of the time is client-go's pauses
	server := newAPIServer(t, protobuf)
	server.refuseKind(CalicoPools, refusal())
	server.define(CalicoPools, false)
	server.put(apiCalicoPool("a", "10.1.0.0/16"))
	l := live(t, server, quick())
	l.fine(CalicoPools)
	l.never(CalicoPools)
	server.define(CalicoPools, true)
	l.told(CalicoPools, Forbidden, "ippools of crd.projectcalico.org/v1")
	server.refuseKind(CalicoPools, nil)
	l.sink.has("IPPool calico/a", "10.1.0.0/16")
	l.fine(CalicoPools)
}

// TestOptionalContradicted has a server that says there is no such kind, although there
// is the definition.
func TestOptionalContradicted(t *testing.T) {
	t.Parallel() // most of the time is client-go's pauses
	server := newAPIServer(t, protobuf)
	server.serve(IPPools, false)
	server.put(apiPod("a", "10.1.0.1"), apiPool("a", "10.1.0.0/16"))
	l := live(t, server, quick())
	if len(l.sink.initial) != 1 {
		t.Errorf("initial batch: %v", l.sink.initial)
	}
	l.told(IPPools, NotServed, "although their CustomResourceDefinition is there")
	server.serve(IPPools, true)
	l.sink.has("IPPool selvage/a", "10.1.0.0/16")
	l.fine(IPPools)

	l.cut(func() { server.serve(IPPools, false) })
	l.told(IPPools, NotServed, "kubectl describe crd ippools.selvage.dev")
	l.asked(pathOf(IPPools), patience)
	if _, ok := l.sink.get("IPPool selvage/a"); !ok {
		t.Error("what was known is gone")
	}
	server.define(IPPools, false)
	l.sink.lacks("IPPool selvage/a")
	l.fine(IPPools)
}

// TestOptionalOutage cuts the agent off from a server without pools.
func TestOptionalOutage(t *testing.T) {
	t.Parallel() // most of the time is client-go's pauses
	server := newAPIServer(t, protobuf)
	server.serve(IPPools, false)
	server.define(IPPools, false)
	server.put(apiPool("a", "10.1.0.0/16"))
	l := live(t, server, attentive())
	l.fine(IPPools)
	server.stop()
	l.told(IPPools, Unanswered, "does not answer")
	server.serve(IPPools, true)
	server.define(IPPools, true)
	server.start()
	l.sink.has("IPPool selvage/a", "10.1.0.0/16")
	l.fine(IPPools)
}

// TestOptionalWaits: an error that says nothing about the kind is waited out.
func TestOptionalWaits(t *testing.T) {
	t.Parallel() // most of the time is client-go's pauses
	server := newAPIServer(t, protobuf)
	server.put(apiPool("a", "10.1.0.0/16"))
	server.refuseKind(IPPools, apierrors.NewInternalError(errors.New("no luck")))
	source, err := Kubernetes(server.config())
	if err != nil {
		t.Fatal(err)
	}
	seen := &troubles{}
	inf := New(Options{Source: source, Observe: Observe{Trouble: seen.observe}})
	go func() {
		for !seen.is(IPPools, Unanswered) && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		server.refuseKind(IPPools, nil)
	}()
	if sink := start(t, inf); len(sink.initial) != 1 {
		t.Errorf("initial batch: %v", sink.initial)
	}
}

// TestOptionalEnds: that everything ends must not look as if the kind had gone, nor must
// the first pages of a list look like all of it.
func TestOptionalEnds(t *testing.T) {
	missing := apierrors.NewNotFound(schema.GroupResource{Resource: "ippools"}, "")
	ctx, cancel := context.WithCancel(t.Context())
	o := newOptional(newListener(IPPools, &cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) { return nil, missing },
	}, New(Options{}).contact), nil, pace{})
	if _, err := o.ListWithContext(ctx, metav1.ListOptions{Continue: "here"}); !apierrors.IsResourceExpired(err) {
		t.Errorf("a page: %v", err)
	}
	o.definition = &cache.ListWatch{ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
		cancel()
		return &metav1.PartialObjectMetadataList{}, nil
	}}
	if list, err := o.ListWithContext(ctx, metav1.ListOptions{}); err == nil {
		t.Errorf("the end: %v", list)
	}
}

// TestOptionalPatience has a source say a few times that the kind is not given, and then
// give it.
func TestOptionalPatience(t *testing.T) {
	missing, refused := apierrors.NewNotFound(schema.GroupResource{Resource: "ippools"}, ""), refusal()
	for _, tt := range []struct {
		name string
		says error
		// defined says that the definition is there; otherwise that is not known.
		defined, given bool
		// times is how often it says so, waits whether the list is waited for, and told
		// what is told of.
		times int
		waits bool
		told  string
	}{
		{"forbidden at first", refused, false, false, patience - 1, true, "forbidden"},
		{"forbidden", refused, false, false, patience, false, "forbidden"},
		{"forbidden later", refused, false, true, 3 * patience, true, "forbidden"},
		{"missing", missing, false, false, 1, false, ""},
		{"missing for a moment", missing, false, true, patience - 1, true, ""},
		{"missing later", missing, false, true, patience, false, ""},
		{"coming", missing, true, false, 1, false, ""},
		{"contradicted for a moment", missing, true, true, patience - 1, true, ""},
		{"contradicted", missing, true, true, 3 * patience, true, "not served"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked, seen := 0, &troubles{}
			var definition cache.ListerWatcherWithContext
			if tt.defined {
				definition = &cache.ListWatch{ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
					return &metav1.PartialObjectMetadataList{Items: []metav1.PartialObjectMetadata{{}}}, nil
				}}
			}
			o := newOptional(newListener(IPPools, &cache.ListWatch{
				ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
					if asked++; asked <= tt.times {
						return nil, tt.says
					}
					return &v1alpha1.IPPoolList{Items: []v1alpha1.IPPool{*apiPool("a", "10.1.0.0/16")}}, nil
				},
			}, New(Options{Observe: Observe{Trouble: seen.observe}}).contact), definition, pace{first: time.Microsecond, often: time.Microsecond})
			o.given = tt.given
			list, err := o.ListWithContext(t.Context(), metav1.ListOptions{})
			if err != nil || (meta.LenList(list) == 1) != tt.waits {
				t.Errorf("after %d times: %v, %v", asked, list, err)
			}
			told := ""
			if trouble := seen.ever(IPPools); trouble != nil {
				told = trouble.Cause.String()
			}
			if told != tt.told {
				t.Errorf("told of %q, want %q", told, tt.told)
			}
		})
	}
}

// TestOptionalPaced: who finds that the definition has come, but not the right to see
// what it defines, does not ask without end.
func TestOptionalPaced(t *testing.T) {
	asked := make(chan bool, 1000)
	definition := &metav1.PartialObjectMetadataList{Items: []metav1.PartialObjectMetadata{{}}}
	o := newOptional(newListener(IPPools, &cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			asked <- true
			return nil, refusal()
		},
	}, New(Options{}).contact), &cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) { return definition, nil },
	}, pace{first: time.Hour, often: time.Hour})
	o.lack = gone
	w, err := o.WatchWithContext(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	time.Sleep(50 * time.Millisecond) // enough for many more
	w.Stop()
	for range w.ResultChan() { // until it ends
	}
	if n := len(asked); n > 0 {
		t.Errorf("asked %d more times", n)
	}
}
