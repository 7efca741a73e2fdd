package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The rules in CEL below are for API servers from 1.31 on. Those before do not know
// isCIDR, and refuse the CRD; before 1.25 they know no rules, and take it without them.
// To compare two values of type CIDR is beyond the budget that 1.31 has for a rule, which
// is why blocks are compared as text.

// IPPool is a range of addresses that pods have, and what applies to those pods.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=ippools,scope=Cluster,shortName=ipp,categories=selvage
// +kubebuilder:printcolumn:name="CIDRs",type=string,JSONPath=`.spec.cidrs`
// +kubebuilder:printcolumn:name="NAT",type=boolean,JSONPath=`.spec.natOutgoing`
// +kubebuilder:printcolumn:name="Disabled",type=boolean,JSONPath=`.spec.disabled`
// +kubebuilder:printcolumn:name="Ingress",type=string,JSONPath=`.spec.bandwidth.ingress`,priority=1
// +kubebuilder:printcolumn:name="Egress",type=string,JSONPath=`.spec.bandwidth.egress`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="the name must have at most 63 characters: policies refer to it by a label"
type IPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec IPPoolSpec `json:"spec"`
}

// IPPoolSpec says which addresses a pool has and what applies to them.
type IPPoolSpec struct {
	// cidrs are the blocks of addresses of the pool, of either family, without bits
	// of a host. Blocks of one pool must not overlap. They cannot be changed: pods
	// would find themselves in another pool, or in none, and the age of a pool could not
	// tell which of two that overlap was there first. To grow, make another pool.
	//
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self)",message="must be a block of addresses, as 10.244.0.0/16 or fd00:10:244::/56; IPv4 is to be written as such"
	// +kubebuilder:validation:items:XValidation:rule="!isCIDR(self) || self == string(cidr(self).masked())",messageExpression="'must be without bits of a host, and in the short form: write %s'.format([string(cidr(self).masked())])"
	// +kubebuilder:validation:XValidation:rule="!self.all(c, isCIDR(c)) || self.all(a, self.exists_one(b, cidr(a).containsIP(cidr(b).ip())))",messageExpression="self.filter(a, !self.exists_one(b, cidr(a).containsIP(cidr(b).ip())))[0] + ' holds another block of the pool: remove one of them'"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="cannot be changed: make another pool"
	CIDRs []string `json:"cidrs"`

	// natOutgoing has traffic from the pool to places outside of all pools, other
	// than the nodes, leave with the node's address as its source.
	//
	// +optional
	// +default=false
	NATOutgoing bool `json:"natOutgoing"`

	// disabled pools are to give no more addresses to pods. Pods that have one keep
	// what the pool says.
	//
	// +optional
	// +default=false
	Disabled bool `json:"disabled"`

	// nodeSelector selects the nodes on which natOutgoing and bandwidth apply.
	// Without it they apply on all.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn', 'Exists', 'DoesNotExist'])",message="operator must be In, NotIn, Exists or DoesNotExist"
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, (e.operator in ['In', 'NotIn']) == (has(e.values) && size(e.values) > 0))",message="In and NotIn need values, Exists and DoesNotExist must have none"
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`

	// bandwidth is the default of each pod that has an address in the pool, unless
	// annotations of the pod or its namespace say something else.
	//
	// +optional
	Bandwidth *Bandwidth `json:"bandwidth,omitempty"`
}

// Bandwidth is what a pod may send and receive, in bits per second.
type Bandwidth struct {
	// ingress is the traffic to the pod, in bits per second from 1k to 1P, as in 10M.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('1k')) >= 0 && quantity(string(self)).compareTo(quantity('1P')) <= 0",message="must be bits per second from 1k to 1P, as 10M (10m would be a hundredth)"
	Ingress *resource.Quantity `json:"ingress,omitempty"`

	// egress is the traffic from the pod, in bits per second from 1k to 1P, as in 10M.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('1k')) >= 0 && quantity(string(self)).compareTo(quantity('1P')) <= 0",message="must be bits per second from 1k to 1P, as 10M (10m would be a hundredth)"
	Egress *resource.Quantity `json:"egress,omitempty"`
}

// IPPoolList is a list of IPPools.
//
// +kubebuilder:object:root=true
type IPPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPPool `json:"items"`
}
