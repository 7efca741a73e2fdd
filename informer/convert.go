package informer

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-net/selvage/informer/api/calico"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/shaping"
)

// PodFrom returns what policy needs to know of a pod.
func PodFrom(p *corev1.Pod) *policy.Pod { return (*interner)(nil).pod(p) }

// NamespaceFrom returns what policy needs to know of a namespace.
func NamespaceFrom(n *corev1.Namespace) *policy.Namespace { return (*interner)(nil).namespace(n) }

// NodeFrom returns what policy needs to know of a node, with its labels.
func NodeFrom(n *corev1.Node) *policy.Node { return (*interner)(nil).node(n) }

// NetworkPolicyFrom returns a copy of np that has no metadata but its identity.
// The parts of its spec may be shared with np and with other policies: nothing
// in it may be changed.
func NetworkPolicyFrom(np *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	return (*interner)(nil).networkPolicy(np)
}

// trim is the transform of all informers. client-go may hand it what it has
// returned before: of a policy that is seen by its metadata, the others are
// of another type.
func (in *interner) trim(object any) (any, error) {
	switch o := object.(type) {
	case *corev1.Pod:
		return in.pod(o), nil
	case *corev1.Namespace:
		return in.namespace(o), nil
	case *corev1.Node:
		return in.node(o), nil
	case *networkingv1.NetworkPolicy:
		return in.networkPolicy(o), nil
	case *v1alpha1.IPPool:
		return in.pool(o), nil
	case *calico.IPPool:
		return in.calicoPool(o), nil
	case *networkingv1.ServiceCIDR:
		return in.services(o), nil
	case *policy.Pod, *policy.Namespace, *policy.Node, *policy.Pool, *policy.ServiceCIDR:
		return o, nil
	}
	return nil, fmt.Errorf("an object of type %T was not asked for", object)
}

// meta returns what identifies an object.
func (in *interner) meta(o metav1.Object) policy.Meta {
	return policy.Meta{
		Namespace:       in.string(o.GetNamespace()),
		Name:            o.GetName(),
		UID:             o.GetUID(),
		ResourceVersion: o.GetResourceVersion(),
	}
}

func (in *interner) pod(p *corev1.Pod) *policy.Pod {
	return &policy.Pod{
		Meta:        in.meta(p),
		Node:        in.string(p.Spec.NodeName),
		Labels:      in.labelsOf(p.Labels),
		Annotations: in.annotationsOf(p.Annotations),
		Addrs:       podAddrs(&p.Status),
		Ports:       in.portsOf(namedPorts(&p.Spec)),
		Created:     created(p),
		HostNetwork: p.Spec.HostNetwork,
		Finished:    p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
}

// created returns when an object was made in Unix seconds, and 0 for one that does not
// say: the zero time is far before 1970.
func created(o metav1.Object) int64 {
	at := o.GetCreationTimestamp()
	if at.IsZero() {
		return 0
	}
	return at.Unix()
}

// annotationsOf returns the annotations that the agent acts on. Most objects have
// none, and all others they may have are not kept.
func (in *interner) annotationsOf(m map[string]string) policy.Labels {
	if len(m) == 0 {
		return nil
	}
	var kept map[string]string
	for _, key := range shaping.AnnotationKeys() {
		if v, ok := m[key]; ok {
			if kept == nil {
				kept = make(map[string]string)
			}
			kept[key] = v
		}
	}
	return in.labelsOf(kept)
}

// podAddrs returns at most one address of each family, the first.
func podAddrs(s *corev1.PodStatus) []netip.Addr {
	var first [2]netip.Addr
	n := 0
	add := func(text string) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return
		}
		a = a.Unmap().WithZone("")
		if f := policy.FamilyOf(a); !first[f].IsValid() {
			first[f] = a
			n++
		}
	}
	for _, ip := range s.PodIPs {
		add(ip.IP)
	}
	if n == 0 {
		add(s.PodIP)
	}
	if n == 0 {
		return nil
	}
	addrs := make([]netip.Addr, 0, n)
	for _, a := range first {
		if a.IsValid() {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// namedPorts returns the named ports of all containers that run as long as the
// pod does: the ordinary ones, and the init containers that are restarted
// always (sidecars).
func namedPorts(s *corev1.PodSpec) []policy.NamedPort {
	n := 0
	eachPort(s, func(corev1.ContainerPort) { n++ })
	if n == 0 {
		return nil
	}
	ports := make([]policy.NamedPort, 0, n)
	eachPort(s, func(p corev1.ContainerPort) {
		if protocol, ok := protocolFrom(p.Protocol); ok && p.ContainerPort > 0 && p.ContainerPort <= 65535 {
			ports = append(ports, policy.NamedPort{Name: p.Name, Protocol: protocol, Port: uint16(p.ContainerPort)})
		}
	})
	return ports
}

func eachPort(s *corev1.PodSpec, yield func(corev1.ContainerPort)) {
	for i := range s.InitContainers {
		c := &s.InitContainers[i]
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		eachNamed(c, yield)
	}
	for i := range s.Containers {
		eachNamed(&s.Containers[i], yield)
	}
}

func eachNamed(c *corev1.Container, yield func(corev1.ContainerPort)) {
	for _, p := range c.Ports {
		if p.Name != "" {
			yield(p)
		}
	}
}

func protocolFrom(p corev1.Protocol) (policy.Protocol, bool) {
	switch p {
	case "", corev1.ProtocolTCP:
		return policy.TCP, true
	case corev1.ProtocolUDP:
		return policy.UDP, true
	case corev1.ProtocolSCTP:
		return policy.SCTP, true
	}
	return 0, false
}

func (in *interner) namespace(n *corev1.Namespace) *policy.Namespace {
	return &policy.Namespace{Meta: in.meta(n), Labels: in.labelsOf(n.Labels), Annotations: in.annotationsOf(n.Annotations)}
}

func (in *interner) node(n *corev1.Node) *policy.Node {
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	node := &policy.Node{Meta: in.meta(n), PodCIDRs: prefixes(cidrs), Addrs: nodeAddrs(&n.Status), Created: created(n)}
	// The names of nodes are what pods refer to.
	node.Name = in.string(node.Name)
	if in == nil || n.Name == in.self {
		node.Labels = in.labelsOf(n.Labels)
	}
	return node
}

// nodeAddrs returns the addresses by which a node is reached from within and from
// outside of the cluster.
func nodeAddrs(s *corev1.NodeStatus) []netip.Addr {
	var addrs []netip.Addr
	for _, a := range s.Addresses {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue
		}
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			addrs = append(addrs, ip.Unmap().WithZone(""))
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

func (in *interner) networkPolicy(np *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	m := in.meta(np)
	// A pointer into np would keep all of it alive.
	pods := np.Spec.PodSelector
	t := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion,
		},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *in.selector(&pods),
			PolicyTypes: np.Spec.PolicyTypes,
		},
	}
	// nil and empty are not the same here: nil is a direction without rules.
	if np.Spec.Ingress != nil {
		t.Spec.Ingress = make([]networkingv1.NetworkPolicyIngressRule, len(np.Spec.Ingress))
	}
	for i, r := range np.Spec.Ingress {
		t.Spec.Ingress[i] = networkingv1.NetworkPolicyIngressRule{Ports: r.Ports, From: in.peers(r.From)}
	}
	if np.Spec.Egress != nil {
		t.Spec.Egress = make([]networkingv1.NetworkPolicyEgressRule, len(np.Spec.Egress))
	}
	for i, r := range np.Spec.Egress {
		t.Spec.Egress[i] = networkingv1.NetworkPolicyEgressRule{Ports: r.Ports, To: in.peers(r.To)}
	}
	return t
}

func (in *interner) peers(peers []networkingv1.NetworkPolicyPeer) []networkingv1.NetworkPolicyPeer {
	if peers == nil {
		return nil
	}
	shared := make([]networkingv1.NetworkPolicyPeer, len(peers))
	for i, p := range peers {
		shared[i] = networkingv1.NetworkPolicyPeer{
			PodSelector:       in.selector(p.PodSelector),
			NamespaceSelector: in.selector(p.NamespaceSelector),
			IPBlock:           p.IPBlock,
		}
	}
	return shared
}
