package informer

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	corev1 "k8s.io/api/core/v1"
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
	c.QPS, c.Burst = 5, 10
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("client for the Kubernetes API: %w", err)
	}
	return &api{client}, nil
}

type api struct{ client kubernetes.Interface }

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
	switch kind {
	case Namespaces:
		c := a.client.CoreV1().Namespaces()
		return listWatch(a.client, c.List, c.Watch, "")
	case Nodes:
		c := a.client.CoreV1().Nodes()
		return listWatch(a.client, c.List, c.Watch, "")
	case Pods:
		c := a.client.CoreV1().Pods(metav1.NamespaceAll)
		return listWatch(a.client, c.List, c.Watch, running)
	case NetworkPolicies:
		c := a.client.NetworkingV1().NetworkPolicies(metav1.NamespaceAll)
		return listWatch(a.client, c.List, c.Watch, "")
	}
	panic("informer: no such kind")
}

func listWatch[L runtime.Object](
	client kubernetes.Interface,
	list func(context.Context, metav1.ListOptions) (L, error),
	watchAll func(context.Context, metav1.ListOptions) (watch.Interface, error),
	fieldSelector string,
) cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = fieldSelector
			return list(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = fieldSelector
			return watchAll(ctx, o)
		},
	}, client)
}
