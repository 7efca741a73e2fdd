package bench

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-net/selvage/policy"
)

// Shape says how big a generated cluster is. The same shape always gives the
// same cluster.
//
// Pods belong to apps; the pods of an app are selected by the same policies,
// PerPod of them, and each policy selects one app. The node's pods are spread
// over as many apps as the policies suffice for: with 250 pods, 1000 policies
// and 20 per pod there are 50 apps of five local pods. What policies remain
// select apps that have pods on other nodes only.
//
// Each policy allows ingress from one group of remote pods, by a namespace
// selector together with a pod selector. Policies take the groups in turn.
type Shape struct {
	// LocalPods are the pods of Node, all of them isolated.
	LocalPods int `json:"localPods"`
	// RemotePods are the pods of other nodes. Each belongs to one group.
	RemotePods int `json:"remotePods"`
	Policies   int `json:"policies"`
	// PerPod is how many policies select each pod.
	PerPod int `json:"policiesPerPod"`
	// Peers is how many pods a group has.
	Peers int `json:"peersPerPolicy"`
	// Egress says that policies allow egress to their group as well, and that
	// the last policy of each app allows all pods of the node both ways.
	Egress bool `json:"egress,omitempty"`
	// DualStack gives every pod an IPv6 address too.
	DualStack bool `json:"dualStack,omitempty"`
}

// Node is the node whose pods are isolated.
const Node = "node-0"

// Port is allowed by every policy, by TCP and by UDP.
const Port = 5000

const (
	namespaces   = 100
	podsPerNode  = 110 // on the other nodes: the kubelet's default
	portLists    = 8
	groupLabel   = "group"
	appLabel     = "app"
	nearLabel    = "near"
	firstRemote  = 1 << 23 // 10.128.0.0
	firstLocal   = 1 << 22 // 10.64.0.0
	created      = 1_700_000_000
	localPodBits = 20 // 10.64.0.0/20: room for 4096 pods
)

// String names the shape for a table.
func (s Shape) String() string {
	name := fmt.Sprintf("%d/%d/%d/%d", s.LocalPods, s.Policies, s.PerPod, s.Peers)
	if s.Egress {
		name += "/egress"
	}
	if s.DualStack {
		name += "/dual"
	}
	return name
}

// apps returns the number of apps with local pods, and of all apps.
func (s Shape) apps() (local, all int) {
	all = max(1, s.Policies/max(1, s.PerPod))
	return max(1, min(s.LocalPods, all)), all
}

func (s Shape) groups() int { return max(1, s.RemotePods/max(1, s.Peers)) }

// Snapshot generates the cluster.
func (s Shape) Snapshot() policy.Snapshot {
	var snap policy.Snapshot
	for i := range namespaces {
		name := namespaceName(i)
		snap.Namespaces = append(snap.Namespaces, &policy.Namespace{
			Meta:   policy.Meta{Name: name, UID: types.UID("namespace-" + name)},
			Labels: policy.NewLabels(map[string]string{corev1.LabelMetadataName: name, "env": "prod"}),
		})
	}
	snap.Nodes = append(snap.Nodes, &policy.Node{
		Meta:     policy.Meta{Name: Node, UID: Node},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(v4(firstLocal), localPodBits), netip.PrefixFrom(v6(firstLocal), 128-32+localPodBits)},
	})
	for i := range s.LocalPods {
		snap.Pods = append(snap.Pods, s.LocalPod(i))
	}
	for i := range s.RemotePods {
		snap.Pods = append(snap.Pods, s.RemotePod(i))
	}
	for i := range s.Policies {
		snap.Policies = append(snap.Policies, s.Policy(i))
	}
	return snap
}

// LocalPod returns the i-th pod of Node, from 0.
func (s Shape) LocalPod(i int) *policy.Pod {
	local, _ := s.apps()
	app := i % local
	return s.pod(fmt.Sprintf("local-%d", i), Node, app, firstLocal+2+i, map[string]string{nearLabel: "yes"})
}

// RemotePod returns the i-th pod of the other nodes, from 0.
func (s Shape) RemotePod(i int) *policy.Pod {
	local, all := s.apps()
	app := all // an app that no policy selects
	if all > local {
		app = local + i%(all-local)
	}
	return s.pod(fmt.Sprintf("remote-%d", i), fmt.Sprintf("node-%d", 1+i/podsPerNode), app, firstRemote+1+i,
		map[string]string{groupLabel: groupName(i / max(1, s.Peers) % s.groups())})
}

func (s Shape) pod(name, node string, app, addr int, more map[string]string) *policy.Pod {
	labels := map[string]string{
		appLabel:                      appName(app),
		"app.kubernetes.io/component": "server",
		"pod-template-hash":           fmt.Sprintf("%08x", app),
	}
	for k, v := range more {
		labels[k] = v
	}
	ns := namespaceName(app % namespaces)
	p := &policy.Pod{
		Meta:    policy.Meta{Namespace: ns, Name: name, UID: types.UID("pod-" + name)},
		Node:    node,
		Labels:  policy.NewLabels(labels),
		Addrs:   []netip.Addr{v4(addr)},
		Ports:   []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Port: 8080}},
		Created: created,
	}
	if s.DualStack {
		p.Addrs = append(p.Addrs, v6(addr))
	}
	return p
}

// Policy returns the i-th policy, from 0.
func (s Shape) Policy(i int) *networkingv1.NetworkPolicy {
	app := i / max(1, s.PerPod)
	name := fmt.Sprintf("policy-%d", i)
	peers := []networkingv1.NetworkPolicyPeer{{
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "prod"}},
		PodSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{groupLabel: groupName(i % s.groups())}},
	}}
	if s.Egress && i%s.PerPod == s.PerPod-1 {
		peers = append(peers, networkingv1.NetworkPolicyPeer{
			NamespaceSelector: &metav1.LabelSelector{},
			PodSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{nearLabel: "yes"}},
		})
	}
	ports := []networkingv1.NetworkPolicyPort{
		port(corev1.ProtocolTCP, Port), port(corev1.ProtocolTCP, 8000+i%portLists), port(corev1.ProtocolUDP, Port),
	}
	np := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespaceName(app % namespaces), Name: name, UID: types.UID(name)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{appLabel: appName(app)}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: peers, Ports: ports}},
		},
	}
	if s.Egress {
		np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: peers, Ports: ports}}
	}
	return np
}

// Flow returns what to measure: the last local pod, which the last of the
// policies with local pods selects, and as peers all whom its policies allow,
// in random order, but at most as many as a conntrack flush lies apart.
func (s Shape) Flow() Flow {
	f := Flow{Pod: s.LocalPod(s.LocalPods - 1).Addrs[0], Port: Port}
	if s.Egress {
		f.Peers = []netip.Addr{s.LocalPod(0).Addrs[0]}
		return f
	}
	local, _ := s.apps()
	app := (s.LocalPods - 1) % local
	for i := app * s.PerPod; i < min((app+1)*s.PerPod, s.Policies); i++ {
		for member := range s.Peers {
			f.Peers = append(f.Peers, v4(firstRemote+1+i%s.groups()*s.Peers+member))
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	rng.Shuffle(len(f.Peers), func(i, j int) { f.Peers[i], f.Peers[j] = f.Peers[j], f.Peers[i] })
	f.Peers = f.Peers[:min(len(f.Peers), maxFlows)]
	return f
}

func port(protocol corev1.Protocol, number int) networkingv1.NetworkPolicyPort {
	p := intstr.FromInt32(int32(number))
	return networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &p}
}

func namespaceName(i int) string { return fmt.Sprintf("namespace-%d", i) }
func groupName(i int) string     { return fmt.Sprintf("group-%d", i) }
func appName(i int) string       { return fmt.Sprintf("app-%d", i) }

// v4 and v6 are the i-th addresses of 10.0.0.0/8 and fd00::/96.
func v4(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

func v6(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
}
