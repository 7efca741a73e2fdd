package policytest

import (
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/selvage-net/selvage/policy"
)

// Model is the state of a cluster as deltas tell it: the plainest thing that a
// Compiler must agree with.
type Model struct{ objects map[string]policy.Object }

// NewModel returns a Model that holds the objects of a snapshot.
func NewModel(s policy.Snapshot) *Model { return &Model{byKey(s)} }

// Apply takes in deltas.
func (m *Model) Apply(deltas ...policy.Delta) {
	for _, d := range deltas {
		if d.Deleted {
			delete(m.objects, objectKey(d.Object))
		} else {
			m.objects[objectKey(d.Object)] = d.Object
		}
	}
}

// Snapshot returns the state.
func (m *Model) Snapshot() policy.Snapshot { return fromKeys(m.objects) }

// objectKey is what tells objects apart in an API: kind, namespace, name.
func objectKey(o policy.Object) string {
	kind := "unknown"
	switch o := o.(type) {
	case *policy.Pod:
		kind = "pod"
	case *policy.Namespace:
		kind = "namespace"
	case *policy.Node:
		kind = "node"
	case *policy.Bridge:
		kind = "bridge"
	case *networkingv1.NetworkPolicy:
		kind = "policy"
	case *policy.Pool:
		kind = "pool of " + o.Origin.String()
	case *policy.ServiceCIDR:
		kind = "services"
	}
	meta := o.GetObjectMeta()
	return fmt.Sprintf("%s/%s/%s", kind, meta.GetNamespace(), meta.GetName())
}

func byKey(s policy.Snapshot) map[string]policy.Object {
	objects := map[string]policy.Object{}
	for _, o := range s.Nodes {
		objects[objectKey(o)] = o
	}
	for _, o := range s.Bridges {
		objects[objectKey(o)] = o
	}
	for _, o := range s.Namespaces {
		objects[objectKey(o)] = o
	}
	for _, o := range s.Pools {
		objects[objectKey(o)] = o
	}
	for _, o := range s.Services {
		objects[objectKey(o)] = o
	}
	for _, o := range s.Policies {
		objects[objectKey(o)] = o
	}
	for _, o := range s.Pods {
		objects[objectKey(o)] = o
	}
	return objects
}

func fromKeys(objects map[string]policy.Object) policy.Snapshot {
	var s policy.Snapshot
	keys := make([]string, 0, len(objects))
	for k := range objects {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare)
	for _, k := range keys {
		switch o := objects[k].(type) {
		case *policy.Pod:
			s.Pods = append(s.Pods, o)
		case *policy.Namespace:
			s.Namespaces = append(s.Namespaces, o)
		case *policy.Node:
			s.Nodes = append(s.Nodes, o)
		case *policy.Bridge:
			s.Bridges = append(s.Bridges, o)
		case *networkingv1.NetworkPolicy:
			s.Policies = append(s.Policies, o)
		case *policy.Pool:
			s.Pools = append(s.Pools, o)
		case *policy.ServiceCIDR:
			s.Services = append(s.Services, o)
		}
	}
	return s
}
