// Package v1alpha1 has the types of the API group selvage.dev.
//
// +kubebuilder:object:generate=true
// +groupName=selvage.dev
package v1alpha1
