package main

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	eventsclient "k8s.io/client-go/kubernetes/typed/events/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"

	"golang.org/x/time/rate"

	"github.com/selvage-net/selvage/policy"
)

// eventLimit bounds the Events that one agent makes. Every node makes them, and
// a policy that is edited by a program may be wrong in many ways in a row.
func eventLimit() *rate.Limiter { return rate.NewLimiter(1, 20) }

// newEvents returns a function that makes an Event on a policy, until ctx ends.
func newEvents(ctx context.Context, c *rest.Config) (func(policy.Problem), error) {
	client, err := eventsclient.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("client for events: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := networkingv1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	b := events.NewBroadcaster(&events.EventSinkImpl{Interface: client})
	if err := b.StartRecordingToSinkWithContext(ctx); err != nil {
		return nil, fmt.Errorf("record events: %w", err)
	}
	context.AfterFunc(ctx, b.Shutdown)
	return eventFunc(b.NewRecorder(scheme, "selvage.dev/agent"), eventLimit()), nil
}

// eventFunc makes Events by a recorder, as far as the limiter lets it.
func eventFunc(r events.EventRecorder, limit *rate.Limiter) func(policy.Problem) {
	return func(p policy.Problem) {
		if !limit.Allow() {
			return // it is in the log and in the metric as well
		}
		r.Eventf(&networkingv1.NetworkPolicy{
			TypeMeta:   metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "NetworkPolicy"},
			ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		}, nil, corev1.EventTypeWarning, "NotCompiled", "Compile", "%v; what is wrong matches nothing, the selected pods stay isolated", p.Err)
	}
}
