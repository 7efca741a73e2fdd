package lab

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

// awaitAPIServer waits until the API server says that it is ready. There is
// nothing to watch before, so it is asked, often: to be refused costs little.
func (c *Cluster) awaitAPIServer(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := c.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(try).Error()
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the API server: %w (%w)", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// awaitPodCIDR waits until the node has a range of addresses for pods.
func (c *Cluster) awaitPodCIDR(ctx context.Context, n *node) error {
	return until(ctx, c.client.CoreV1().RESTClient(), "nodes", "", n.name, func(o *corev1.Node) bool {
		return o.Spec.PodCIDR != ""
	})
}

// awaitReady waits until the cluster takes the node for Ready, as it is since it
// was booted.
func (c *Cluster) awaitReady(ctx context.Context, n *node) error {
	m, err := n.up()
	if err != nil {
		return err
	}
	id, err := os.ReadFile(m.Path("/proc/sys/kernel/random/boot_id"))
	if err != nil {
		return err
	}
	if err := c.awaitAPIServer(ctx); err != nil {
		return err
	}
	return until(ctx, c.client.CoreV1().RESTClient(), "nodes", "", n.name, func(o *corev1.Node) bool {
		if o.Status.NodeInfo.BootID != strings.TrimSpace(string(id)) {
			return false
		}
		for _, condition := range o.Status.Conditions {
			if condition.Type == corev1.NodeReady {
				return condition.Status == corev1.ConditionTrue
			}
		}
		return false
	})
}

// awaitDeployment waits until all replicas of a Deployment are available.
func (c *Cluster) awaitDeployment(ctx context.Context, namespace, name string) error {
	return until(ctx, c.client.AppsV1().RESTClient(), "deployments", namespace, name, func(o *appsv1.Deployment) bool {
		return o.Status.ObservedGeneration >= o.Generation && o.Spec.Replicas != nil && o.Status.AvailableReplicas >= *o.Spec.Replicas
	})
}

// until watches an object until it is as it should be.
func until[T any, P interface {
	*T
	runtime.Object
}](ctx context.Context, client rest.Interface, resource, namespace, name string, ok func(P) bool) error {
	source := cache.NewListWatchFromClient(client, resource, namespace, fields.OneTermEqualSelector(metav1.ObjectNameField, name))
	_, err := watchtools.UntilWithSync(ctx, source, P(new(T)), nil, func(e watch.Event) (bool, error) {
		o, is := e.Object.(P)
		return is && ok(o), nil
	})
	if err != nil {
		return fmt.Errorf("wait for %s %s: %w", resource, name, err)
	}
	return nil
}
