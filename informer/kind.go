package informer

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/selvage-net/selvage/informer/api/calico"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
)

// Kind is a kind of object that is followed.
type Kind uint8

// The kinds. From IPPools on they are optional: an API server need not have them.
const (
	Namespaces Kind = iota
	Nodes
	Pods
	NetworkPolicies
	// IPPools are those of selvage.dev, CalicoPools those of crd.projectcalico.org.
	IPPools
	CalicoPools
	ServiceCIDRs
)

// Kinds lists all kinds.
var Kinds = [...]Kind{Namespaces, Nodes, Pods, NetworkPolicies, IPPools, CalicoPools, ServiceCIDRs}

// apiObject is an object as the API gives it.
type apiObject interface {
	runtime.Object
	metav1.Object
}

// kindInfo says what has to be known of a kind. The order is that of Kinds.
var kindInfo = [...]struct {
	resource string
	kind     string
	// apiVersions are those that manifests may have; the first is asked for.
	apiVersions []string
	namespaced  bool
	// optional kinds are those that an API server need not have, definition is the
	// CustomResourceDefinition that one with the kind has.
	optional   bool
	definition string
	validName  validation.ValidateNameFunc
	object     func() apiObject
	list       func() runtime.Object
}{
	Namespaces: {
		resource: "namespaces", kind: "Namespace", apiVersions: []string{"v1"}, validName: validation.NameIsDNSLabel,
		object: func() apiObject { return new(corev1.Namespace) },
		list:   func() runtime.Object { return new(corev1.NamespaceList) },
	},
	Nodes: {
		resource: "nodes", kind: "Node", apiVersions: []string{"v1"}, validName: validation.NameIsDNSSubdomain,
		object: func() apiObject { return new(corev1.Node) },
		list:   func() runtime.Object { return new(corev1.NodeList) },
	},
	Pods: {
		resource: "pods", kind: "Pod", apiVersions: []string{"v1"}, namespaced: true, validName: validation.NameIsDNSSubdomain,
		object: func() apiObject { return new(corev1.Pod) },
		list:   func() runtime.Object { return new(corev1.PodList) },
	},
	NetworkPolicies: {
		resource: "networkpolicies", kind: "NetworkPolicy", apiVersions: []string{"networking.k8s.io/v1"}, namespaced: true, validName: validation.NameIsDNSSubdomain,
		object: func() apiObject { return new(networkingv1.NetworkPolicy) },
		list:   func() runtime.Object { return new(networkingv1.NetworkPolicyList) },
	},
	IPPools: {
		resource: "ippools", kind: "IPPool", apiVersions: []string{"selvage.dev/v1alpha1"}, validName: validation.NameIsDNSSubdomain,
		optional: true, definition: "ippools.selvage.dev",
		object: func() apiObject { return new(v1alpha1.IPPool) },
		list:   func() runtime.Object { return new(v1alpha1.IPPoolList) },
	},
	CalicoPools: {
		// Calico's own tools write the group that its own API server has.
		resource: "ippools", kind: "IPPool", apiVersions: []string{"crd.projectcalico.org/v1", "projectcalico.org/v3"}, validName: validation.NameIsDNSSubdomain,
		optional: true, definition: "ippools.crd.projectcalico.org",
		object: func() apiObject { return new(calico.IPPool) },
		list:   func() runtime.Object { return new(calico.IPPoolList) },
	},
	ServiceCIDRs: {
		resource: "servicecidrs", kind: "ServiceCIDR", apiVersions: []string{"networking.k8s.io/v1"}, validName: validation.NameIsDNSSubdomain,
		optional: true,
		object:   func() apiObject { return new(networkingv1.ServiceCIDR) },
		list:     func() runtime.Object { return new(networkingv1.ServiceCIDRList) },
	},
}

// String returns the API's name of the resource, for example networkpolicies, with
// the group where that is necessary: ippools.selvage.dev.
func (k Kind) String() string {
	if d := kindInfo[k].definition; d != "" {
		return d
	}
	return kindInfo[k].resource
}

// kindOf returns the Kind of objects that say this of themselves. ok is false for all
// others. The version may be another one than we understand, and so may the group if no
// other group is known to have a kind of that name: what is meant is clear all the same.
// But IPPools are what many call theirs.
func kindOf(t metav1.TypeMeta) (kind Kind, ok bool) {
	named := kindsNamed(t.Kind)
	for _, k := range named {
		if slices.ContainsFunc(kindInfo[k].apiVersions, func(v string) bool { return groupOf(v) == groupOf(t.APIVersion) }) {
			return k, true
		}
	}
	if len(named) == 1 {
		return named[0], true
	}
	return 0, false
}

// kindsNamed returns the Kinds whose objects have this kind, for example Pod.
func kindsNamed(name string) []Kind {
	var named []Kind
	for _, k := range Kinds {
		if kindInfo[k].kind == name {
			named = append(named, k)
		}
	}
	return named
}

// groupOf returns the API group of an apiVersion.
func groupOf(apiVersion string) string {
	group, _, ok := strings.Cut(apiVersion, "/")
	if !ok {
		return ""
	}
	return group
}
