package calico

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of the types in this package.
var GroupVersion = schema.GroupVersion{Group: "crd.projectcalico.org", Version: "v1"}

// SchemeBuilder adds the types to a scheme.
var SchemeBuilder = runtime.NewSchemeBuilder(func(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &IPPool{}, &IPPoolList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
})

// IPPool is a range of addresses that Calico gives to pods. Fields that are not here
// are ignored.
//
// +kubebuilder:object:root=true
type IPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPPoolSpec `json:"spec"`
}

// IPPoolSpec says which addresses a pool has and what applies to them.
type IPPoolSpec struct {
	CIDR        string `json:"cidr"`
	NATOutgoing bool   `json:"natOutgoing,omitempty"`
	Disabled    bool   `json:"disabled,omitempty"`
	// NodeSelector is an expression in a language of Calico's own, as all() or
	// zone == "a".
	NodeSelector string `json:"nodeSelector,omitempty"`
}

// IPPoolList is a list of IPPools.
//
// +kubebuilder:object:root=true
type IPPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPPool `json:"items"`
}
