package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/selvage-net/selvage/informer"
)

// agentLabels are those of the agents' pods, however Selvage was installed.
const agentLabels = "app.kubernetes.io/name=selvage,app.kubernetes.io/component=agent"

// agentPort is where an agent answers whose pod does not say it.
const agentPort = 9470

// clusterAgents are the agents of all nodes. They are asked through the API server,
// which alone has to be reached.
type clusterAgents struct {
	client    rest.Interface
	namespace string // all if empty
}

func newClusterAgents(config *rest.Config, namespace string) (*clusterAgents, error) {
	client, err := newCoreClient(config)
	if err != nil {
		return nil, err
	}
	return &clusterAgents{client: client, namespace: namespace}, nil
}

// newCoreClient returns a client for pods, Services and what they have.
func newCoreClient(config *rest.Config) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("types of pods: %w", err)
	}
	c := rest.CopyConfig(config)
	c.UserAgent = informer.UserAgent
	c.GroupVersion, c.APIPath = &corev1.SchemeGroupVersion, "/api"
	c.ContentType = runtime.ContentTypeJSON
	c.NegotiatedSerializer = rest.CodecFactoryForGeneratedClient(scheme, serializer.NewCodecFactory(scheme)).WithoutConversion()
	c.QPS = -1 // one question for each node, and then no more
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("client for the Kubernetes API: %w", err)
	}
	return client, nil
}

// find implements agents.
func (c *clusterAgents) find(ctx context.Context) ([]agentAt, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	pods := new(corev1.PodList)
	err := c.client.Get().Namespace(c.namespace).Resource("pods").Param("labelSelector", agentLabels).Do(ctx).Into(pods)
	switch {
	case apierrors.IsForbidden(err) && c.namespace == "":
		return nil, fmt.Errorf("you may not list pods in all namespaces, to find the agents: %w: use an account that may, or give --selvage-namespace", err)
	case err != nil:
		return nil, listError("pods", err)
	case len(pods.Items) == 0:
		return nil, fmt.Errorf("no agent was found: no pod%s has the labels %s: see that Selvage is installed in this cluster", inNamespace(c.namespace), agentLabels)
	}
	all := make([]agentAt, 0, len(pods.Items))
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.DeletionTimestamp != nil && slices.ContainsFunc(pods.Items, func(o corev1.Pod) bool {
			return o.DeletionTimestamp == nil && nodeOf(&o) == nodeOf(p)
		}) {
			continue // its successor is there
		}
		all = append(all, c.at(p))
	}
	slices.SortStableFunc(all, func(a, b agentAt) int { return cmp.Compare(a.node, b.node) })
	return all, nil
}

func inNamespace(name string) string {
	if name == "" {
		return ""
	}
	return " in namespace " + name
}

// listError says of an error of a list what to do.
func listError(what string, err error) error {
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("you may not list %s: %w: use an account that may", what, err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server does not know you: %w: see to the user in the kubeconfig", err)
	}
	return fmt.Errorf("list %s: %w", what, err)
}

// nodeOf returns the node that a pod runs on or, if it is a DaemonSet's that has no
// place yet, is meant for.
func nodeOf(p *corev1.Pod) string {
	if p.Spec.NodeName != "" || p.Spec.Affinity == nil || p.Spec.Affinity.NodeAffinity == nil || p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return p.Spec.NodeName
	}
	for _, term := range p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range term.MatchFields {
			if f.Key == metav1.ObjectNameField && len(f.Values) == 1 {
				return f.Values[0]
			}
		}
	}
	return ""
}

// at returns the agent of a pod.
func (c *clusterAgents) at(p *corev1.Pod) agentAt {
	namespace, name, port := p.Namespace, p.Name, portOf(p)
	stopped := notRunning(p)
	return agentAt{node: nodeOf(p), open: func(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
		if stopped != "" {
			return nil, fmt.Errorf("its agent, pod %s/%s, does not run: %s: `kubectl -n %s describe pod %s` says more", namespace, name, stopped, namespace, name)
		}
		r := c.client.Get().Namespace(namespace).Resource("pods").Name("http:" + name + ":" + strconv.Itoa(port)).SubResource("proxy").Suffix(path).MaxRetries(0)
		for key, values := range query {
			for _, v := range values {
				r = r.Param(key, v)
			}
		}
		body, err := r.Stream(ctx)
		if err != nil {
			return nil, proxyError(namespace, name, path, err)
		}
		return body, nil
	}}
}

// portOf returns where an agent answers.
func portOf(p *corev1.Pod) int {
	for i := range p.Spec.Containers {
		for _, port := range p.Spec.Containers[i].Ports {
			if port.Name == "http" {
				return int(port.ContainerPort)
			}
		}
	}
	return agentPort
}

// notRunning says why a pod does not run; empty if it does.
func notRunning(p *corev1.Pod) string {
	for i := range p.Status.ContainerStatuses {
		switch s := &p.Status.ContainerStatuses[i].State; {
		case s.Waiting != nil:
			return cmp.Or(s.Waiting.Reason, "it waits to be started")
		case s.Terminated != nil:
			return cmp.Or(s.Terminated.Reason, "it has ended")
		}
	}
	switch p.Status.Phase {
	case corev1.PodRunning:
		return ""
	case corev1.PodPending:
		for _, c := range p.Status.Conditions {
			if c.Status == corev1.ConditionFalse && c.Message != "" {
				return printable(c.Message)
			}
		}
	case corev1.PodFailed, corev1.PodSucceeded, corev1.PodUnknown:
	}
	return "it is " + string(p.Status.Phase)
}

// proxyError says why an agent could not be asked through the API server.
func proxyError(namespace, name, path string, err error) error {
	status := apierrors.APIStatus(nil)
	if !errors.As(err, &status) {
		if errors.Is(err, context.DeadlineExceeded) {
			return &unreachableError{fmt.Errorf("its agent, pod %s/%s, has not answered for %v", namespace, name, askTimeout)}
		}
		return &unreachableError{fmt.Errorf("the API server does not answer: %s", cause(err))}
	}
	said, own := serverSaid(status.Status())
	switch code := int(status.Status().Code); {
	case apierrors.IsForbidden(err) && !own:
		return fmt.Errorf("you may not reach its agent through the API server: %w: use an account that has the verb get on pods/proxy in namespace %s", err, namespace)
	case strings.Contains(said, "connection refused"):
		return &unreachableError{fmt.Errorf("its agent, pod %s/%s, listens at 127.0.0.1 only, where the API server does not reach it: "+
			"have it listen at the node's address, too, by the overlay deploy/overlays/observe or the chart's values-observe.yaml, or ask on the node itself", namespace, name)}
	case own:
		return refusal(code, path, said)
	case code == http.StatusServiceUnavailable || code == http.StatusBadGateway || code == http.StatusGatewayTimeout:
		return &unreachableError{fmt.Errorf("the API server does not reach its agent, pod %s/%s: %s", namespace, name, printable(said))}
	}
	return fmt.Errorf("its agent, pod %s/%s: %w", namespace, name, err)
}

// serverSaid returns the message of a status. own is that it is not the API server's,
// but that of who it asked.
func serverSaid(s metav1.Status) (said string, own bool) {
	if s.Details != nil {
		for _, c := range s.Details.Causes {
			if c.Type == metav1.CauseTypeUnexpectedServerResponse {
				return c.Message, true
			}
		}
	}
	return s.Message, false
}
