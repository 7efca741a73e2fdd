package policy

import (
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Label is one label of an object.
type Label struct{ Key, Value string }

// Labels are an object's labels, sorted by key. They implement labels.Labels,
// so that a labels.Selector matches them without a map. A value is immutable
// once built and may be shared between objects.
type Labels []Label

// NewLabels returns the labels of m, sorted.
func NewLabels(m map[string]string) Labels {
	if len(m) == 0 {
		return nil
	}
	l := make(Labels, 0, len(m))
	for k, v := range m {
		l = append(l, Label{k, v})
	}
	slices.SortFunc(l, func(a, b Label) int { return strings.Compare(a.Key, b.Key) })
	return l
}

var _ labels.Labels = Labels(nil)

// Lookup returns the value of key and whether the label is there.
func (l Labels) Lookup(key string) (string, bool) {
	i, ok := slices.BinarySearchFunc(l, key, func(a Label, k string) int { return strings.Compare(a.Key, k) })
	if !ok {
		return "", false
	}
	return l[i].Value, true
}

// Has tells whether the label key is there.
func (l Labels) Has(key string) bool {
	_, ok := l.Lookup(key)
	return ok
}

// Get returns the value of key, or "" if the label is not there.
func (l Labels) Get(key string) string {
	v, _ := l.Lookup(key)
	return v
}

// Protocol is a transport protocol by its IP protocol number.
type Protocol uint8

// The protocols that a NetworkPolicy can name.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns the name that nft uses.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return "proto-" + itoa(uint32(p))
}

// NamedPort is a container port that has a name.
type NamedPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Meta identifies an object. It satisfies metav1.ObjectMetaAccessor, which is
// all that client-go's stores need to know of an object.
type Meta struct {
	Namespace, Name string
	UID             types.UID
	ResourceVersion string
}

// GetObjectMeta implements metav1.ObjectMetaAccessor. It allocates; it is meant
// for client-go's key functions, not for hot paths.
func (m Meta) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
}

// Bridge is a bridge of the node's own that pods are attached to, by the name
// of its interface. It is no object of the API: the agent sees it on the node.
type Bridge struct{ Meta }

// Object is what a Delta may carry: *Pod, *Namespace, *Node, *Bridge, *Pool,
// *ServiceCIDR or *networkingv1.NetworkPolicy.
type Object = metav1.ObjectMetaAccessor

var (
	_ Object = (*Pod)(nil)
	_ Object = (*Namespace)(nil)
	_ Object = (*Node)(nil)
	_ Object = (*Bridge)(nil)
	_ Object = (*Pool)(nil)
	_ Object = (*ServiceCIDR)(nil)
	_ Object = (*networkingv1.NetworkPolicy)(nil)
)

// Pod is what policy needs to know of a pod. A value is immutable once it was
// handed to a Compiler.
type Pod struct {
	Meta
	// Node is spec.nodeName.
	Node   string
	Labels Labels
	// Annotations are those that somebody else than policy acts on: policy itself
	// looks at none.
	Annotations Labels
	// Addrs are status.podIPs: at most one address of each family, unmapped
	// and without zone.
	Addrs []netip.Addr
	// Ports are the named ports of all containers.
	Ports []NamedPort
	// Created is metadata.creationTimestamp in Unix seconds. Among the pods
	// that claim one address, the newest that has not finished owns it.
	Created int64
	// HostNetwork pods have the node's address; policy neither selects them
	// nor matches them as peers.
	HostNetwork bool
	// Finished is true in phase Succeeded or Failed: the pod has given up its
	// address, whatever its status still says.
	Finished bool
}

// Namespace is what policy needs to know of a namespace.
type Namespace struct {
	Meta
	Labels Labels
	// Annotations are those that somebody else than policy acts on.
	Annotations Labels
}

// Node is what policy needs to know of a node.
type Node struct {
	Meta
	// Labels are those of the node that the agent runs on; of others they need not
	// be known.
	Labels Labels
	// PodCIDRs are spec.podCIDRs, masked.
	PodCIDRs []netip.Prefix
	// Addrs are the internal and external addresses in status.addresses, unmapped,
	// without zone and sorted.
	Addrs []netip.Addr
	// Created is metadata.creationTimestamp in Unix seconds.
	Created int64
}

// unchanged tells whether nothing differs that policy looks at.
func (n *Node) unchanged(o *Node) bool {
	return n.Created == o.Created && slices.Equal(n.Labels, o.Labels) &&
		slices.Equal(n.PodCIDRs, o.PodCIDRs) && slices.Equal(n.Addrs, o.Addrs)
}

// Snapshot is the state of the cluster at one moment. The order of objects
// does not matter.
type Snapshot struct {
	Pods       []*Pod
	Namespaces []*Namespace
	Nodes      []*Node
	Policies   []*networkingv1.NetworkPolicy
	Bridges    []*Bridge
	Pools      []*Pool
	Services   []*ServiceCIDR
}

// Delta is one change of one object: as it is now or, if Deleted, as it was
// last known. A Delta for an object that did not change is harmless.
type Delta struct {
	Object  Object
	Deleted bool
}

// Problem is an object that could not be compiled as it was written.
// What could not be understood of it matches nothing.
type Problem struct {
	// Namespace and Name are those of the NetworkPolicy.
	Namespace, Name string
	UID             types.UID
	Err             error
}
