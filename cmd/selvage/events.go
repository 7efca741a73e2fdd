package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
)

// maxNote is how long the API lets a note be, in bytes.
const maxNote = 1024

// recorder makes Events on policies. client-go has one that does more than is
// needed here, but drags in the clients of all API groups, and those cost more
// memory than the policies of a large cluster.
type recorder struct {
	client rest.Interface
	node   string
	log    *slog.Logger
	// limit bounds what one agent sends. Every node makes Events, and a policy
	// that a program edits may be wrong in many ways in a row.
	limit *rate.Limiter
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

// event makes an Event on a policy, and does not wait for it: a server that
// does not answer must hold up nothing. What cannot be sent is in the log and
// the metric all the same.
func (r *recorder) event(p policy.Problem) {
	if !r.limit.Allow() {
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		e := newEvent(p, r.node, time.Now())
		if err := r.client.Post().Namespace(e.Namespace).Resource("events").Body(e).Do(ctx).Error(); err != nil {
			r.log.Warn("cannot make an Event", "policy", p.Namespace+"/"+p.Name, "err", err)
		}
	}()
}

// newEvent is what a problem looks like as an Event.
func newEvent(p policy.Problem, node string, now time.Time) *eventsv1.Event {
	note := p.Err.Error() + "; what is wrong matches nothing, the selected pods stay isolated"
	if len(note) > maxNote {
		note = note[:maxNote-3] + "..."
	}
	return &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: p.Namespace, Name: fmt.Sprintf("%s.%x", p.Name, now.UnixNano())},
		EventTime:           metav1.NewMicroTime(now),
		ReportingController: "selvage.dev/agent",
		ReportingInstance:   node,
		Action:              "Compile",
		Reason:              "NotCompiled",
		Type:                corev1.EventTypeWarning,
		Note:                note,
		Regarding: corev1.ObjectReference{
			APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "NetworkPolicy",
			Namespace: p.Namespace, Name: p.Name, UID: p.UID,
		},
	}
}
