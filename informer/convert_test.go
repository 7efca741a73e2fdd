package informer

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-net/selvage/policy"
)

var addrEqual = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestPodFrom(t *testing.T) {
	always, onFailure := corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyOnFailure
	meta1 := metav1.ObjectMeta{
		Namespace: "x", Name: "a", UID: "u1", ResourceVersion: "7",
		Labels:            map[string]string{"b": "2", "a": "1"},
		CreationTimestamp: metav1.NewTime(time.Unix(1234, 0)),
		Annotations:       map[string]string{"large": "thing"},
	}
	base := policy.Meta{Namespace: "x", Name: "a", UID: "u1", ResourceVersion: "7"}
	labels := policy.Labels{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}}
	tests := []struct {
		name string
		pod  corev1.Pod
		want policy.Pod
	}{
		{
			"everything",
			corev1.Pod{
				ObjectMeta: meta1,
				Spec: corev1.PodSpec{
					NodeName: "n1",
					InitContainers: []corev1.Container{
						{Name: "once", Ports: []corev1.ContainerPort{{Name: "setup", ContainerPort: 1}}},
						{Name: "again", RestartPolicy: &onFailure, Ports: []corev1.ContainerPort{{Name: "setup", ContainerPort: 2}}},
						{Name: "sidecar", RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "proxy", ContainerPort: 15001}}},
					},
					Containers: []corev1.Container{
						{Ports: []corev1.ContainerPort{
							{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP},
							{ContainerPort: 9090},
							{Name: "odd", ContainerPort: 70000},
						}},
						{Ports: []corev1.ContainerPort{
							{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP},
							{Name: "sig", ContainerPort: 2905, Protocol: corev1.ProtocolSCTP},
							{Name: "alien", ContainerPort: 1, Protocol: "ICMP"},
						}},
					},
				},
				Status: corev1.PodStatus{
					Phase:  corev1.PodRunning,
					PodIP:  "10.1.0.1",
					PodIPs: []corev1.PodIP{{IP: "10.1.0.1"}, {IP: "fd00::1"}},
				},
			},
			policy.Pod{
				Meta: base, Node: "n1", Labels: labels, Created: 1234,
				Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00::1")},
				Ports: []policy.NamedPort{
					{Name: "proxy", Protocol: policy.TCP, Port: 15001},
					{Name: "http", Protocol: policy.TCP, Port: 8080},
					{Name: "dns", Protocol: policy.UDP, Port: 53},
					{Name: "sig", Protocol: policy.SCTP, Port: 2905},
				},
			},
		},
		{
			"one address, IPv6 first, mapped and with a zone",
			corev1.Pod{Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "fe80::1%eth0"}, {IP: "::ffff:10.1.0.2"}, {IP: "10.1.0.3"}}}},
			policy.Pod{Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fe80::1")}},
		},
		{
			"only the old field",
			corev1.Pod{Status: corev1.PodStatus{PodIP: "10.1.0.1"}},
			policy.Pod{Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.1")}},
		},
		{
			"no valid address",
			corev1.Pod{Status: corev1.PodStatus{PodIP: "soon", PodIPs: []corev1.PodIP{{IP: ""}, {IP: "10.1.0"}}}},
			policy.Pod{},
		},
		{"host network", corev1.Pod{Spec: corev1.PodSpec{HostNetwork: true}}, policy.Pod{HostNetwork: true}},
		{"succeeded", corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodSucceeded}}, policy.Pod{Finished: true}},
		{"failed", corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed}}, policy.Pod{Finished: true}},
		{"terminating", corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: new(metav1.Time)}}, policy.Pod{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, in := range []*interner{nil, {}} {
				if diff := cmp.Diff(&tt.want, in.pod(&tt.pod), addrEqual); diff != "" {
					t.Errorf("pod (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestNodeFrom(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", CreationTimestamp: metav1.NewTime(time.Unix(1234, 0)), Labels: map[string]string{"zone": "a"}}}
	n.Spec.PodCIDRs = []string{"10.1.0.7/24", "fd00:1::/64", "nonsense"}
	n.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: "10.9.9.9"}, {Type: corev1.NodeInternalDNS, Address: "10.8.8.8"},
		{Type: corev1.NodeInternalIP, Address: "fe80::1%eth0"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.7"},
		{Type: corev1.NodeExternalIP, Address: "198.51.100.7"}, {Type: corev1.NodeExternalIP, Address: "::ffff:192.0.2.7"},
		{Type: corev1.NodeExternalIP, Address: "node.example.com"},
	}
	got := NodeFrom(n)
	if text, want := fmt.Sprint(got.PodCIDRs, got.Addrs, got.Labels, got.Created), "[10.1.0.0/24 fd00:1::/64] [192.0.2.7 198.51.100.7 fe80::1] [{zone a}] 1234"; text != want {
		t.Errorf("node = %s, want %s", text, want)
	}
	n.Spec.PodCIDR, n.Spec.PodCIDRs = "10.2.0.0/24", nil
	if got := fmt.Sprint(NodeFrom(n).PodCIDRs); got != "[10.2.0.0/24]" {
		t.Errorf("pod CIDRs = %s", got)
	}
	for _, in := range []*interner{{}, {self: "n2"}} {
		if got := in.node(n); got.Labels != nil {
			t.Errorf("labels of another node than %q: %v", in.self, got.Labels)
		}
	}
	if got := (&interner{self: "n1"}).node(n); got.Labels.Get("zone") != "a" {
		t.Errorf("labels of the node itself: %v", got.Labels)
	}
}

// TestNodeUnchanged: of what a kubelet tells again and again nothing counts, and all
// that is kept does.
func TestNodeUnchanged(t *testing.T) {
	base := func() *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"zone": "a"}}}
		n.Spec.PodCIDRs = []string{"10.1.0.0/24"}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}}
		return n
	}
	for name, change := range map[string]func(*corev1.Node){
		"uid":       func(n *corev1.Node) { n.UID = "other" },
		"created":   func(n *corev1.Node) { n.CreationTimestamp = metav1.NewTime(time.Unix(7, 0)) },
		"labels":    func(n *corev1.Node) { n.Labels["zone"] = "b" },
		"pod CIDRs": func(n *corev1.Node) { n.Spec.PodCIDRs = nil },
		"addresses": func(n *corev1.Node) { n.Status.Addresses[0].Address = "192.0.2.8" },
	} {
		changed := base()
		change(changed)
		if unchanged(NodeFrom(base()), NodeFrom(changed)) {
			t.Errorf("a change of %s is none", name)
		}
	}
	beat := base()
	beat.ResourceVersion = "8"
	beat.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}}
	if !unchanged(NodeFrom(base()), NodeFrom(beat)) {
		t.Error("a heartbeat is a change")
	}
}

// BenchmarkHeartbeat is what a change of a node costs that changes nothing.
func BenchmarkHeartbeat(b *testing.B) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"zone": "a"}}}
	n.Spec.PodCIDRs = []string{"10.1.0.0/24", "fd00:1::/64"}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}, {Type: corev1.NodeHostName, Address: "n1"}}
	in := &interner{self: "n2"}
	before := in.node(n)
	b.ReportAllocs()
	for b.Loop() {
		if !unchanged(before, in.node(n)) {
			b.Fatal("changed")
		}
	}
}

func TestNetworkPolicyFrom(t *testing.T) {
	np := apiPolicy("p", 0)
	np.UID, np.ResourceVersion, np.Generation = "u", "9", 4
	np.Labels = map[string]string{"a": "b"}
	np.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "{}"}
	np.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
	sel := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	np.Spec.PodSelector = *sel
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{
		{},
		{From: []networkingv1.NetworkPolicyPeer{}},
		{
			From:  []networkingv1.NetworkPolicyPeer{{PodSelector: sel}, {NamespaceSelector: sel, PodSelector: &metav1.LabelSelector{}}, {IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8"}}},
			Ports: []networkingv1.NetworkPolicyPort{{}},
		},
	}
	want := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p", UID: "u", ResourceVersion: "9"},
		Spec:       *np.Spec.DeepCopy(),
	}
	before := np.DeepCopy()
	in := &interner{}
	first := in.networkPolicy(np)
	// nil and empty are different things in a policy: cmp tells them apart.
	for _, got := range []*networkingv1.NetworkPolicy{NetworkPolicyFrom(np), first, in.networkPolicy(first)} {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("policy (-want +got):\n%s", diff)
		}
	}
	if diff := cmp.Diff(before, np); diff != "" {
		t.Errorf("the original was changed (-want +got):\n%s", diff)
	}
	for _, spec := range []networkingv1.NetworkPolicySpec{
		{Ingress: nil, Egress: []networkingv1.NetworkPolicyEgressRule{}},
		{Ingress: []networkingv1.NetworkPolicyIngressRule{}, Egress: []networkingv1.NetworkPolicyEgressRule{{To: np.Spec.Ingress[2].From}}},
	} {
		if diff := cmp.Diff(spec, NetworkPolicyFrom(&networkingv1.NetworkPolicy{Spec: spec}).Spec); diff != "" {
			t.Errorf("spec (-want +got):\n%s", diff)
		}
	}
}

// TestTrimTwice: client-go may give a transform what came out of it.
func TestTrimTwice(t *testing.T) {
	in := &interner{}
	for _, o := range []any{apiPod("a", "10.0.0.1", "k", "v"), &corev1.Namespace{}, &corev1.Node{}, apiPolicy("p", 2)} {
		once, err := in.trim(o)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := in.trim(once)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(once, twice, addrEqual); diff != "" {
			t.Errorf("%T (-once +twice):\n%s", o, diff)
		}
		a, err := meta.Accessor(once)
		if err != nil || a.GetName() != o.(metav1.Object).GetName() {
			t.Errorf("client-go cannot read %T: %v", once, err)
		}
	}
	for _, o := range []any{apiPool("p", "10.1.0.0/16"), apiCalicoPool("p", "10.1.0.0/16"), apiServices("s", "10.96.0.0/12")} {
		once, err := in.trim(o)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := in.trim(once); err != nil || twice != once {
			t.Errorf("%T became %v, %v", o, twice, err)
		}
	}
	if _, err := in.trim(&corev1.Service{}); err == nil {
		t.Error("a Service was accepted")
	}
}

func TestInterner(t *testing.T) {
	in := &interner{}
	a := in.pod(apiPod("a", "", "app", "web", "tier", "front"))
	b := in.pod(apiPod("b", "", "tier", "front", "app", "web"))
	if &a.Labels[0] != &b.Labels[0] {
		t.Error("equal labels are stored twice")
	}
	// Joined without care, these would look the same.
	c := in.pod(apiPod("c", "", "a", "b\x00c\x00d"))
	d := in.pod(apiPod("d", "", "a", "b", "c", "d"))
	if len(c.Labels) != 1 || len(d.Labels) != 2 {
		t.Errorf("labels = %v, %v", c.Labels, d.Labels)
	}
	s1, s2 := in.selector(&metav1.LabelSelector{MatchLabels: map[string]string{"a": "b", "c": "d"}}), in.selector(&metav1.LabelSelector{MatchLabels: map[string]string{"c": "d", "a": "b"}})
	if s1 != s2 {
		t.Error("equal selectors are stored twice")
	}
	if s3 := in.selector(&metav1.LabelSelector{}); s3 == s1 || len(s3.MatchLabels) > 0 {
		t.Error("the empty selector became another")
	}
	for n := range 3 * internLimit {
		in.pod(apiPod("e", "", "n", fmt.Sprint(n)))
	}
	if len(in.labels) > internLimit || len(in.strings) > internLimit {
		t.Errorf("%d label sets and %d strings are kept", len(in.labels), len(in.strings))
	}
}
