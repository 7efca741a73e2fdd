package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
)

// maxNote is how long the API lets a note be, in bytes.
const maxNote = 1024

// eventTimeout is how long the API server may take to accept an Event.
const eventTimeout = 30 * time.Second

// notice is what an Event says, and of which object.
type notice struct {
	about  corev1.ObjectReference
	action string
	reason string
	note   string
	// gist, if it is not empty, is what the agents of all nodes mean when each of them
	// says this: the API server is to keep one Event of theirs.
	gist string
}

// policyNotice tells of a policy that cannot be compiled.
func policyNotice(p policy.Problem) notice {
	return notice{
		about: corev1.ObjectReference{
			APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "NetworkPolicy",
			Namespace: p.Namespace, Name: p.Name, UID: p.UID,
		},
		action: "Compile", reason: "NotCompiled",
		note: p.Err.Error() + "; what is wrong matches nothing, the selected pods stay isolated",
	}
}

// nodeNotice tells of a condition of a node. As in the Events of the kubelet,
// the UID is the node's name: `kubectl describe node` looks for that.
func nodeNotice(node string, r reason, message string) notice {
	return notice{
		about: corev1.ObjectReference{
			APIVersion: corev1.SchemeGroupVersion.String(), Kind: "Node", Name: node, UID: types.UID(node),
		},
		action: "Enforce", reason: string(r), note: message,
	}
}

// recorder makes Events. client-go has one that does more than is needed here,
// but drags in the clients of all API groups, and those cost more memory than
// the policies of a large cluster.
type recorder struct {
	client rest.Interface
	node   string
	log    *slog.Logger
	// limit bounds what one agent sends. Every node makes Events, and a policy
	// that a program edits may be wrong in many ways in a row.
	limit *rate.Limiter
	// failing is true while Events cannot be made.
	failing atomic.Bool
}

func newRecorder(config *rest.Config, node string, log *slog.Logger) (*recorder, error) {
	scheme := runtime.NewScheme()
	if err := eventsv1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("types of events: %w", err)
	}
	c := rest.CopyConfig(config)
	c.UserAgent = informer.UserAgent
	c.GroupVersion, c.APIPath = &eventsv1.SchemeGroupVersion, "/apis"
	c.ContentType = runtime.ContentTypeJSON
	c.NegotiatedSerializer = rest.CodecFactoryForGeneratedClient(scheme, serializer.NewCodecFactory(scheme)).WithoutConversion()
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("client for events: %w", err)
	}
	return &recorder{client: client, node: node, log: log, limit: rate.NewLimiter(1, 20)}, nil
}

// send makes an Event, and does not wait for it: a server that does not answer
// must hold up nothing. What cannot be sent is in the log and the metric all the
// same. It returns false if there were too many already.
func (r *recorder) send(n notice) bool {
	if !r.limit.Allow() {
		return false
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), eventTimeout)
		defer cancel()
		r.deliver(ctx, n)
	}()
	return true
}

// deliver makes an Event, and says so if that cannot be done any more.
func (r *recorder) deliver(ctx context.Context, n notice) {
	err := r.make(ctx, n)
	if apierrors.IsForbidden(err) {
		err = fmt.Errorf("%w: give the agent's account the verb create on events.events.k8s.io, as the ClusterRole of Selvage's manifests does", err)
	}
	if before := r.failing.Swap(err != nil); err != nil && !before {
		r.log.Warn("cannot make Events", "kind", n.about.Kind, "namespace", n.about.Namespace, "name", n.about.Name, "err", err)
	}
}

// make makes an Event. That another agent has made it is as good.
func (r *recorder) make(ctx context.Context, n notice) error {
	e := newEvent(n, r.node, time.Now())
	err := r.client.Post().Namespace(e.Namespace).Resource("events").Body(e).Do(ctx).Error()
	if n.gist != "" && apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// newEvent is what a notice looks like as an Event.
func newEvent(n notice, node string, now time.Time) *eventsv1.Event {
	note := n.note
	if len(note) > maxNote {
		note = strings.ToValidUTF8(note[:maxNote-3], "") + "..."
	}
	namespace := n.about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where those on cluster-wide objects must be
	}
	return &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: namespace, Name: eventName(n, now)},
		EventTime:           metav1.NewMicroTime(now),
		ReportingController: "selvage.dev/agent",
		ReportingInstance:   node,
		Action:              n.action,
		Reason:              n.reason,
		Type:                corev1.EventTypeWarning,
		Note:                note,
		Regarding:           n.about,
	}
}

// eventName returns a name that no other Event has or, if there is a gist, only one
// that means the same.
func eventName(n notice, now time.Time) string {
	name := n.about.Name
	if room := validation.DNS1123SubdomainMaxLength - len(".0123456789abcdef"); len(name) > room {
		name = strings.TrimRight(name[:room], "-.")
	}
	if n.gist == "" {
		return fmt.Sprintf("%s.%x", name, now.UnixNano())
	}
	hash := sha256.New()
	for _, part := range []string{n.about.APIVersion, n.about.Kind, n.about.Name, string(n.about.UID), n.reason, n.gist} {
		fmt.Fprintf(hash, "%q", part) // does not fail
	}
	return fmt.Sprintf("%s.%x", name, hash.Sum(nil)[:8])
}
