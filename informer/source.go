package informer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
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

	"github.com/selvage-net/selvage/informer/api/calico"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
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
// are transferred as protobuf, but for those of CustomResourceDefinitions, which
// have no other form than JSON. Where the server offers it, the first objects
// come as a stream (client-go's feature WatchListClient), so that neither side
// ever holds a list of all pods. config is not changed.
func Kubernetes(config *rest.Config) (Source, error) {
	c := rest.CopyConfig(config)
	c.UserAgent = UserAgent
	// A timeout would end every watch.
	c.Timeout = 0
	// Seven kinds to list and to watch, two CustomResourceDefinitions as well, and
	// some of it again: more than this is an error that must not hurt the server.
	c.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(10, 20)
	httpClient, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("client for the Kubernetes API: %w", err)
	}
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	client := func(builder runtime.SchemeBuilder, group schema.GroupVersion, mediaTypes ...string) rest.Interface {
		i, more := groupClient(c, httpClient, scheme, builder, group, mediaTypes)
		err = errors.Join(err, more)
		return i
	}
	const protobuf, json = runtime.ContentTypeProtobuf, runtime.ContentTypeJSON
	core := client(corev1.SchemeBuilder, corev1.SchemeGroupVersion, protobuf, json)
	networking := client(networkingv1.SchemeBuilder, networkingv1.SchemeGroupVersion, protobuf, json)
	a := &api{
		clients: [len(Kinds)]rest.Interface{
			Namespaces: core, Nodes: core, Pods: core, NetworkPolicies: networking, ServiceCIDRs: networking,
			IPPools:     client(v1alpha1.SchemeBuilder, v1alpha1.GroupVersion, json),
			CalicoPools: client(calico.SchemeBuilder, calico.GroupVersion, json),
		},
		definitions: client(runtime.NewSchemeBuilder(addMetadata), apiextensions, json),
		parameters:  runtime.NewParameterCodec(scheme),
	}
	if err != nil {
		return nil, err
	}
	return a, nil
}

// groupClient returns a client for one API group. client-go's clientset would
// do as well, but it knows all groups there are, and that alone takes some 10
// MiB of the agent's memory.
func groupClient(config *rest.Config, h *http.Client, scheme *runtime.Scheme, builder runtime.SchemeBuilder, group schema.GroupVersion, mediaTypes []string) (rest.Interface, error) {
	if err := builder.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("types of %s: %w", group, err)
	}
	c := rest.CopyConfig(config)
	c.ContentType, c.AcceptContentTypes = mediaTypes[0], strings.Join(mediaTypes, ",")
	c.GroupVersion, c.APIPath = &group, "/apis"
	if group.Group == "" {
		c.APIPath = "/api"
	}
	c.NegotiatedSerializer = rest.CodecFactoryForGeneratedClient(scheme, serializer.NewCodecFactory(scheme)).WithoutConversion()
	client, err := rest.RESTClientForConfigAndClient(c, h)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", group, err)
	}
	return client, nil
}

// apiextensions is the group of CustomResourceDefinitions.
var apiextensions = schema.GroupVersion{Group: "apiextensions.k8s.io", Version: "v1"}

// addMetadata adds what is asked for of CustomResourceDefinitions: not what they
// consist of.
func addMetadata(s *runtime.Scheme) error {
	metav1.AddToGroupVersion(s, apiextensions)
	return metav1.AddMetaToScheme(s)
}

// api is the Kubernetes API as a Source.
type api struct {
	// clients are those for the kinds, definitions is that for
	// CustomResourceDefinitions.
	clients     [len(Kinds)]rest.Interface
	definitions rest.Interface
	parameters  runtime.ParameterCodec
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
	info := kindInfo[kind]
	q := query{client: a.clients[kind], resource: info.resource, list: info.list}
	if kind == Pods {
		q.selector = running
	}
	if info.definition == "" {
		return a.listWatch(q)
	}
	return &defined{ListerWatcher: a.listWatch(q), definition: a.listWatch(query{
		client: a.definitions, resource: "customresourcedefinitions",
		selector: fields.OneTermEqualSelector(metav1.ObjectNameField, info.definition).String(),
		list:     func() runtime.Object { return new(metav1.PartialObjectMetadataList) },
		metadata: true,
	})}
}

// query says what is asked for.
type query struct {
	client             rest.Interface
	resource, selector string
	list               func() runtime.Object
	// metadata says that of the objects nothing else is asked for.
	metadata bool
}

// listWatch returns what asks for it.
func (a *api) listWatch(q query) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			answer, list := a.request(q, o).Do(ctx), q.list()
			err := answer.Error()
			if err == nil {
				err = understood(answer.Into(list))
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			return a.request(q, o).Watch(ctx)
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
func (a *api) request(q query, o metav1.ListOptions) *rest.Request {
	o.FieldSelector = q.selector
	r := q.client.Get().Resource(q.resource).VersionedParams(&o, a.parameters)
	if o.TimeoutSeconds != nil {
		r = r.Timeout(time.Duration(*o.TimeoutSeconds) * time.Second)
	}
	switch {
	case q.metadata && o.Watch:
		r = r.SetHeader("Accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")
	case q.metadata:
		r = r.SetHeader("Accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
	}
	return r
}
