// Package calico has of Calico's API, as it is stored in Kubernetes, what Selvage
// reads: of the IPPools of crd.projectcalico.org some fields.
//
// +kubebuilder:object:generate=true
// +groupName=crd.projectcalico.org
package calico
