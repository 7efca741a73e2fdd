package informer

import (
	"errors"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/selvage-net/selvage/informer/api/calico"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
	"github.com/selvage-net/selvage/policy"
)

// Load reads manifests, files or whole directories, once, as a source of
// manifests would. Objects are in the order in which they were found. The
// snapshot holds what could be understood even if there is an error, which
// joins all that was wrong, each a *ManifestError.
func Load(paths ...string) (policy.Snapshot, error) {
	var s policy.Snapshot
	var errs []error
	owners := map[identity]where{}
	for _, path := range paths {
		t := readTree(path)
		for _, err := range t.failed {
			errs = append(errs, err)
		}
		for _, f := range t.files {
			for _, it := range decode(f.name, f.data) {
				if it.object != nil && it.id.name != "" {
					if first, ok := owners[it.id]; ok {
						errs = append(errs, duplicate(it, first))
						continue
					}
					owners[it.id] = it.at
					s = add(s, it.object)
				}
				if it.err != nil {
					errs = append(errs, it.err)
				}
			}
		}
	}
	return s, errors.Join(errs...)
}

// SnapshotOf returns the snapshot that consists of these objects.
func SnapshotOf(objects ...runtime.Object) policy.Snapshot {
	var s policy.Snapshot
	for _, o := range objects {
		s = add(s, o)
	}
	return s
}

func add(s policy.Snapshot, object runtime.Object) policy.Snapshot {
	switch o := object.(type) {
	case *corev1.Pod:
		s.Pods = append(s.Pods, PodFrom(o))
	case *corev1.Namespace:
		s.Namespaces = append(s.Namespaces, NamespaceFrom(o))
	case *corev1.Node:
		s.Nodes = append(s.Nodes, NodeFrom(o))
	case *networkingv1.NetworkPolicy:
		s.Policies = append(s.Policies, NetworkPolicyFrom(o))
	case *v1alpha1.IPPool:
		s.Pools = append(s.Pools, PoolFrom(o))
	case *calico.IPPool:
		s.Pools = append(s.Pools, CalicoPoolFrom(o))
	case *networkingv1.ServiceCIDR:
		s.Services = append(s.Services, ServiceCIDRFrom(o))
	}
	return s
}

// duplicate is the error of an item whose object is defined at first already.
func duplicate(it item, first where) *ManifestError {
	e := it.at.errorf(ReasonDuplicate, "is already defined in %s, document %d (line %d), which stays in force",
		first.file, first.document, first.line)
	return e.about(it.id)
}
