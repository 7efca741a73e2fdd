package policy_test

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
	"github.com/selvage-net/selvage/policy/policytest"
	"github.com/selvage-net/selvage/policy/trace"
)

// local is a pod of the node with both addresses, and labels.
func local(labels map[string]string) *policy.Pod {
	return &policy.Pod{
		Meta: policy.Meta{Namespace: "shop", Name: "web", UID: "web"}, Node: policytest.NodeA,
		Labels: policy.NewLabels(labels),
		Addrs:  []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00:1::2")},
		Ports:  []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Port: 80}},
	}
}

func ingressPolicy(name string, rule networkingv1.NetworkPolicyIngressRule) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{rule}},
	}
}

// agree compiles a snapshot and wants the oracle's verdict for each packet.
func agree(t *testing.T, s policy.Snapshot, packets ...oracle.Packet) {
	t.Helper()
	for _, sharedAbove := range []int{0, policy.DefaultSharedAbove} {
		cfg := policy.DefaultConfig(policytest.NodeA)
		cfg.SharedAbove = sharedAbove
		ruleset, _ := policy.Compile(cfg, s)
		if err := trace.Check(ruleset); err != nil {
			t.Fatalf("%v\n%s", err, ruleset)
		}
		tracer := trace.New(ruleset)
		for _, p := range packets {
			got, err := tracer.Run("forward", policytest.Opening(p))
			if err != nil {
				t.Fatal(err)
			}
			if allowed := oracle.Allowed(s, policytest.NodeA, p); allowed != (got.Verdict == policy.VerdictAccept) {
				t.Fatalf("%s: allowed %v\n%s\n%s\n%s", p, allowed, got, policytest.Text(s), ruleset)
			}
		}
	}
}

// around returns packets to the pod from an address and its neighbours.
func around(a netip.Addr) []oracle.Packet {
	var packets []oracle.Packet
	a = a.Unmap().WithZone("")
	to := local(nil).Addrs[0]
	if a.Is6() {
		to = local(nil).Addrs[1]
	}
	for _, src := range []netip.Addr{a, a.Prev(), a.Next()} {
		if src.IsValid() {
			packets = append(packets, oracle.Packet{Src: src, Dst: to, Protocol: policy.TCP, Port: 80})
		}
	}
	return packets
}

// FuzzBlock: from CIDRs to the elements of an interval set.
func FuzzBlock(f *testing.F) {
	f.Add("0.0.0.0/0", "255.255.255.255/32", "0.0.0.0/32", "255.255.255.255")
	f.Add("10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "10.1.255.255")
	f.Add("10.0.0.0/8", "10.0.0.0/9", "10.128.0.0/9", "10.127.255.255")
	f.Add("255.255.255.254/31", "255.255.255.254/32", "", "255.255.255.255")
	f.Add("::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "::/1", "8000::")
	f.Add("fd00:1::/64", "fd00:1::8000:0:0:0/65", "fd00:1::/128", "fd00:1::7fff:ffff:ffff:ffff")
	f.Add("10.1.0.77/24", "10.1.0.99/32", "192.0.2.0/24", "10.1.0.99")
	f.Add("::ffff:10.0.0.0/104", "", "", "10.0.0.1")
	f.Add("fe80::1%eth0/64", "010.0.0.0/8", "10.0.0.0/33", "fe80::1")
	f.Fuzz(func(t *testing.T, cidr, except1, except2, addr string) {
		block := &networkingv1.IPBlock{CIDR: cidr}
		for _, e := range []string{except1, except2} {
			if e != "" {
				block.Except = append(block.Except, e)
			}
		}
		s := policy.Snapshot{Pods: []*policy.Pod{local(nil)}, Policies: []*networkingv1.NetworkPolicy{
			ingressPolicy("block", networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{{IPBlock: block}}}),
			// Another one beside it, that may touch or overlap.
			ingressPolicy("beside", networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: except2}}}}),
		}}
		var packets []oracle.Packet
		if a, err := netip.ParseAddr(addr); err == nil {
			packets = append(packets, around(a)...)
		}
		for _, text := range []string{cidr, except1, except2} {
			if p, err := netip.ParsePrefix(text); err == nil && !p.Addr().Is4In6() {
				packets = append(packets, around(p.Masked().Addr())...)
			}
		}
		agree(t, s, packets...)
	})
}

// FuzzPorts: from ports and ranges to matches and interval sets.
func FuzzPorts(f *testing.F) {
	f.Add(int32(80), int32(0), false, "", "TCP", uint16(80))
	f.Add(int32(1), int32(65535), true, "", "TCP", uint16(65535))
	f.Add(int32(65535), int32(65535), true, "", "UDP", uint16(65535))
	f.Add(int32(0), int32(65536), true, "", "SCTP", uint16(1))
	f.Add(int32(65536), int32(-1), true, "", "TCP", uint16(65535))
	f.Add(int32(81), int32(80), true, "", "TCP", uint16(80))
	f.Add(int32(443), int32(444), true, "http", "TCP", uint16(445))
	f.Fuzz(func(t *testing.T, port, end int32, hasEnd bool, name, protocol string, probe uint16) {
		item := networkingv1.NetworkPolicyPort{Protocol: (*corev1.Protocol)(&protocol)}
		if name != "" {
			item.Port = &intstr.IntOrString{Type: intstr.String, StrVal: name}
		} else {
			item.Port = &intstr.IntOrString{IntVal: port}
		}
		if hasEnd {
			item.EndPort = &end
		}
		// Beside it one that may touch or overlap, and one for other peers.
		beside := networkingv1.NetworkPolicyPort{Protocol: item.Protocol, Port: &intstr.IntOrString{IntVal: 81}}
		s := policy.Snapshot{Pods: []*policy.Pod{local(nil)}, Policies: []*networkingv1.NetworkPolicy{
			ingressPolicy("ports", networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{item, beside}}),
		}}
		var packets []oracle.Packet
		for _, p := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP, policytest.ICMP, 136} {
			for _, n := range []int32{int32(probe), port - 1, port, port + 1, end - 1, end, end + 1, 1, 65535} {
				if 0 < n && n < 65536 {
					packets = append(packets, oracle.Packet{
						Src: netip.MustParseAddr("192.0.2.1"), Dst: local(nil).Addrs[0], Protocol: p, Port: uint16(n),
					})
				}
			}
		}
		agree(t, s, packets...)
	})
}

// FuzzSelector: from selectors to pods, by way of the index that finds them.
func FuzzSelector(f *testing.F) {
	f.Add("app", "In", "web", "db", "app", "web", true)
	f.Add("app", "NotIn", "web", "", "tier", "web", false)
	f.Add("app", "Exists", "", "", "app", "", true)
	f.Add("app", "DoesNotExist", "", "", "tier", "x", false)
	f.Add("example.com/app", "In", "", "", "example.com/app", "", true)
	f.Add("kubernetes.io/metadata.name", "In", "shop", "", "app", "x", true)
	f.Add("not a key", "Near", "x y", "", "app", "web", false)
	f.Fuzz(func(t *testing.T, key, op, value1, value2, labelKey, labelValue string, byLabel bool) {
		selector := metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: metav1.LabelSelectorOperator(op)}}}
		for _, v := range []string{value1, value2} {
			if v != "" {
				selector.MatchExpressions[0].Values = append(selector.MatchExpressions[0].Values, v)
			}
		}
		if byLabel {
			selector.MatchLabels = map[string]string{labelKey: labelValue}
		}
		target := local(nil)
		peer := local(map[string]string{labelKey: labelValue})
		peer.Name, peer.UID, peer.Node = "peer", "peer", policytest.NodeB
		peer.Addrs = []netip.Addr{netip.MustParseAddr("10.2.0.2"), netip.MustParseAddr("fd00:2::2")}
		selected := local(map[string]string{labelKey: labelValue})
		selected.Name, selected.UID = "selected", "selected"
		selected.Addrs = []netip.Addr{netip.MustParseAddr("10.1.0.3"), netip.MustParseAddr("fd00:1::3")}
		s := policy.Snapshot{
			Pods:       []*policy.Pod{target, peer, selected},
			Namespaces: []*policy.Namespace{{Meta: policy.Meta{Name: "shop"}, Labels: policy.NewLabels(map[string]string{labelKey: labelValue})}},
			Policies: []*networkingv1.NetworkPolicy{
				ingressPolicy("peers", networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{
					{PodSelector: &selector}, {NamespaceSelector: &selector, PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "none"}}},
				}}),
				{
					ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "selects"},
					Spec:       networkingv1.NetworkPolicySpec{PodSelector: selector, PolicyTypes: []networkingv1.PolicyType{"Egress"}},
				},
			},
		}
		var packets []oracle.Packet
		for i := range 2 {
			for _, src := range s.Pods {
				for _, dst := range s.Pods {
					packets = append(packets, oracle.Packet{Src: src.Addrs[i], Dst: dst.Addrs[i], Protocol: policy.UDP, Port: 53})
				}
			}
		}
		agree(t, s, packets...)
	})
}

// FuzzNames: from the names of objects to those of chains and sets, and to
// comments. Whatever a manifest calls things, nft can read what comes out.
func FuzzNames(f *testing.F) {
	f.Add("shop", "deny", "app", "web")
	f.Add("", "", "", "")
	f.Add("a\"b", "new\nline", "back\\slash", "}; flush ruleset")
	f.Add("ünïcode", "\x00\xff", "x", "\t")
	f.Add("kube-system", "a-name-of-two-hundred-and-fifty-three-characters-is-what-the-api-allows-for-a-policy-and-comments-end-at-one-hundred-and-twenty-eight-bytes-so-that-it-has-to-be-cut-somewhere-in-the-middle", "app", "web")
	f.Fuzz(func(t *testing.T, namespace, name, key, value string) {
		pod, peer := local(map[string]string{key: value}), local(nil)
		pod.Namespace, peer.Namespace = namespace, namespace
		peer.Name, peer.UID, peer.Node, peer.Addrs = "peer", "peer", policytest.NodeB, []netip.Addr{netip.MustParseAddr("10.2.0.2")}
		np := ingressPolicy(name, networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{
			{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}},
			{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24"}},
			{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}},
		}})
		np.Namespace = namespace
		other := np.DeepCopy()
		other.Name += "-"
		agree(t, policy.Snapshot{Pods: []*policy.Pod{pod, peer}, Policies: []*networkingv1.NetworkPolicy{np, other}},
			oracle.Packet{Src: peer.Addrs[0], Dst: pod.Addrs[0], Protocol: policy.TCP, Port: 80},
			oracle.Packet{Src: netip.MustParseAddr("192.0.2.1"), Dst: pod.Addrs[0], Protocol: policy.TCP, Port: 80})
	})
}

// FuzzWorld is TestTracerAgreesWithOracle, led by what the compiler covers
// instead of by chance.
func FuzzWorld(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) {
		w := policytest.Worlds(withPools).Draw(t, "world")
		cfg := policy.DefaultConfig(policytest.NodeA)
		cfg.SharedAbove = rapid.IntRange(0, 3).Draw(t, "shared above")
		cfg.Generation = 1
		ruleset, _ := policy.Compile(cfg, w.Snapshot)
		j := newJudge(t, cfg, w.Snapshot, ruleset)
		for _, p := range w.Packets {
			j.judge(p)
		}
	}))
}
