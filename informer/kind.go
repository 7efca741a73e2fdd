package informer

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Kind is a kind of object that is followed.
type Kind uint8

// The kinds.
const (
	Namespaces Kind = iota
	Nodes
	Pods
	NetworkPolicies
)

// Kinds lists all kinds.
var Kinds = [...]Kind{Namespaces, Nodes, Pods, NetworkPolicies}

// apiObject is an object as the API gives it.
type apiObject interface {
	runtime.Object
	metav1.Object
}

// kindInfo says what has to be known of a kind. The order is that of Kinds.
var kindInfo = [...]struct {
	resource   string
	kind       string
	apiVersion string
	namespaced bool
	validName  validation.ValidateNameFunc
	object     func() apiObject
	list       func() runtime.Object
}{
	Namespaces: {
		"namespaces", "Namespace", "v1", false, validation.NameIsDNSLabel,
		func() apiObject { return new(corev1.Namespace) },
		func() runtime.Object { return new(corev1.NamespaceList) },
	},
	Nodes: {
		"nodes", "Node", "v1", false, validation.NameIsDNSSubdomain,
		func() apiObject { return new(corev1.Node) },
		func() runtime.Object { return new(corev1.NodeList) },
	},
	Pods: {
		"pods", "Pod", "v1", true, validation.NameIsDNSSubdomain,
		func() apiObject { return new(corev1.Pod) },
		func() runtime.Object { return new(corev1.PodList) },
	},
	NetworkPolicies: {
		"networkpolicies", "NetworkPolicy", "networking.k8s.io/v1", true, validation.NameIsDNSSubdomain,
		func() apiObject { return new(networkingv1.NetworkPolicy) },
		func() runtime.Object { return new(networkingv1.NetworkPolicyList) },
	},
}

// String returns the API's name of the resource, for example networkpolicies.
func (k Kind) String() string { return kindInfo[k].resource }

// kindNamed returns the Kind whose objects have this kind, for example Pod.
func kindNamed(name string) (Kind, bool) {
	for _, k := range Kinds {
		if kindInfo[k].kind == name {
			return k, true
		}
	}
	return 0, false
}
