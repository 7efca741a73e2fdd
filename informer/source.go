package informer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/flowcontrol"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Source is where objects come from.
type Source interface {
	// ListerWatcher answers List and Watch for all objects of a kind.
	ListerWatcher(kind Kind) cache.ListerWatcher
	// Run keeps the source up to date until ctx is done. It is called once.
	Run(ctx context.Context) error
}

// UserAgent is how the agent is known to the API server.
const UserAgent = "selvage"

// Kubernetes returns the API server that config leads to as a source. Objects
// are transferred as protobuf. Where the server offers it, the first objects
// come as a stream (client-go's feature WatchListClient), so that neither side
// ever holds a list of all pods. config is not changed.
func Kubernetes(config *rest.Config) (Source, error) {
	c := rest.CopyConfig(config)
	c.UserAgent = UserAgent
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	// A timeout would end every watch.
	c.Timeout = 0
	// Four kinds to list, four to watch, and to do both again: more than this
	// is an error that must not hurt the server.
	c.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(5, 10)
	httpClient, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("client for the Kubernetes API: %w", err)
	}
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	a := &api{parameters: runtime.NewParameterCodec(scheme)}
	if a.core, err = groupClient(c, httpClient, scheme, corev1.SchemeBuilder, corev1.SchemeGroupVersion, "/api"); err != nil {
		return nil, err
	}
	if a.networking, err = groupClient(c, httpClient, scheme, networkingv1.SchemeBuilder, networkingv1.SchemeGroupVersion, "/apis"); err != nil {
		return nil, err
	}
	return a, nil
}

// groupClient returns a client for one API group. client-go's clientset would
// do as well, but it knows all groups there are, and that alone takes some 10
// MiB of the agent's memory.
func groupClient(config *rest.Config, h *http.Client, scheme *runtime.Scheme, builder runtime.SchemeBuilder, group schema.GroupVersion, path string) (rest.Interface, error) {
	if err := builder.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("types of %s: %w", group, err)
	}
	c := rest.CopyConfig(config)
	c.GroupVersion, c.APIPath = &group, path
	c.NegotiatedSerializer = rest.CodecFactoryForGeneratedClient(scheme, serializer.NewCodecFactory(scheme)).WithoutConversion()
	client, err := rest.RESTClientForConfigAndClient(c, h)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", group, err)
	}
	return client, nil
}

// api is the Kubernetes API as a Source.
type api struct {
	core, networking rest.Interface
	parameters       runtime.ParameterCodec
}

// Run implements Source. The reflectors do all the work.
func (*api) Run(context.Context) error { return nil }

// running selects the pods that have not finished. The server says of one that
// finishes that it is deleted, which comes to the same: it has given up its
// address.
var running = fields.AndSelectors(
	fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
	fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
).String()

// ListerWatcher implements Source.
func (a *api) ListerWatcher(kind Kind) cache.ListerWatcher {
	client, selector := a.core, ""
	switch kind {
	case NetworkPolicies:
		client = a.networking
	case Pods:
		selector = running
	case Namespaces, Nodes:
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			answer, list := a.request(client, kind, o).Do(ctx), kindInfo[kind].list()
			err := answer.Error()
			if err == nil {
				err = understood(answer.Into(list))
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector, o.Watch = selector, true
			return a.request(client, kind, o).Watch(ctx)
		},
	}
}

// understood marks an error that a successful answer led to, unless the answer
// is itself a Status that says so.
func understood(err error) error {
	if err == nil || errors.As(err, new(apierrors.APIStatus)) {
		return err
	}
	return &decodeError{err}
}

// request is what the clients of client-go's clientset send.
func (a *api) request(client rest.Interface, kind Kind, o metav1.ListOptions) *rest.Request {
	r := client.Get().Resource(kind.String()).VersionedParams(&o, a.parameters)
	if o.TimeoutSeconds != nil {
		r = r.Timeout(time.Duration(*o.TimeoutSeconds) * time.Second)
	}
	return r
}
