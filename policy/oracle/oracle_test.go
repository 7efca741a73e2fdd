package oracle_test

import (
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
)

func pod(ns, name, node, addr string, created int64, labels map[string]string, ports ...policy.NamedPort) *policy.Pod {
	return &policy.Pod{
		Meta: policy.Meta{Namespace: ns, Name: name, UID: types.UID(name)}, Node: node, Created: created,
		Labels: policy.NewLabels(labels), Ports: ports, Addrs: []netip.Addr{netip.MustParseAddr(addr)},
	}
}

func http(port uint16) policy.NamedPort {
	return policy.NamedPort{Name: "http", Protocol: policy.TCP, Port: port}
}

// cluster has two pods in namespace default on node a (db 10.1.0.2, web
// 10.1.0.3), one of namespace myproject on node b, and shows what has an
// address and what only seems to.
func cluster() policy.Snapshot {
	host := pod("default", "host", "b", "192.168.0.2", 1, map[string]string{"role": "frontend"}, http(80))
	host.HostNetwork = true
	done := pod("default", "done", "b", "10.2.0.9", 9, map[string]string{"role": "frontend"})
	done.Finished = true
	return policy.Snapshot{
		Pods: []*policy.Pod{
			pod("default", "db", "a", "10.1.0.2", 1, map[string]string{"role": "db"}, http(8080)),
			pod("default", "web", "a", "10.1.0.3", 1, map[string]string{"role": "frontend"}, http(80)),
			pod("myproject", "client", "b", "10.2.0.2", 1, map[string]string{"role": "client"}, http(81)),
			pod("default", "older", "b", "10.2.0.3", 1, map[string]string{"role": "frontend"}),
			pod("myproject", "newer", "b", "10.2.0.3", 2, nil),
			host, done,
		},
		Namespaces: []*policy.Namespace{{Meta: policy.Meta{Name: "myproject"}, Labels: policy.NewLabels(map[string]string{"project": "myproject"})}},
		Nodes: []*policy.Node{
			{Meta: policy.Meta{Name: "a"}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}},
			{Meta: policy.Meta{Name: "b"}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}},
		},
	}
}

// TestAllowed are statements of the API's documentation, one by one, judged by
// node a.
func TestAllowed(t *testing.T) {
	const db, web, client, shared, host, done, world, unknown = "10.1.0.2", "10.1.0.3", "10.2.0.2", "10.2.0.3", "192.168.0.2", "10.2.0.9", "203.0.113.9", "10.1.0.77"
	// The example of the documentation's page on network policies.
	const example = `{podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress, Egress],
		ingress: [{from: [{ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}}, {namespaceSelector: {matchLabels: {project: myproject}}},
			{podSelector: {matchLabels: {role: frontend}}}], ports: [{protocol: TCP, port: 6379}]}],
		egress: [{to: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{protocol: TCP, port: 5978}]}]}`
	tests := []struct {
		name, spec string
		src, dst   string
		protocol   policy.Protocol
		port       uint16
		want       bool
	}{
		{"no policy", ``, world, db, policy.TCP, 80, true},
		{"unknown source", ``, unknown, world, policy.TCP, 80, false},
		{"unknown destination", ``, world, unknown, policy.TCP, 80, false},
		{"a pod cannot block access to itself", `{policyTypes: [Ingress, Egress]}`, db, db, policy.TCP, 80, true},
		{"only pods of the node are judged", `{policyTypes: [Ingress, Egress]}`, client, shared, policy.TCP, 80, true},

		{"example: by pod", example, web, db, policy.TCP, 6379, true},
		{"example: another port", example, web, db, policy.TCP, 6380, false},
		{"example: another protocol", example, web, db, policy.UDP, 6379, false},
		{"example: by namespace", example, client, db, policy.TCP, 6379, true},
		{"example: by block", example, "172.17.0.1", db, policy.TCP, 6379, true},
		{"example: excepted", example, "172.17.1.1", db, policy.TCP, 6379, false},
		{"example: out", example, db, "10.0.0.255", policy.TCP, 5978, true},
		{"example: out elsewhere", example, db, "10.0.1.0", policy.TCP, 5978, false},
		{"example: not selected", example, world, web, policy.TCP, 80, true},

		{"ingress by default", `{}`, world, db, policy.TCP, 80, false},
		{"not egress by default", `{}`, db, world, policy.TCP, 80, true},
		{"egress by a rule", `{egress: [{ports: [{port: 80}]}]}`, db, world, policy.TCP, 81, false},
		{"and ingress with it", `{egress: [{ports: [{port: 80}]}]}`, world, db, policy.TCP, 80, false},
		{"egress alone", `{policyTypes: [Egress]}`, world, db, policy.TCP, 80, true},
		{"an unknown type", `{policyTypes: [Ingress, Sideways]}`, db, world, policy.TCP, 80, false},
		{"empty rule", `{ingress: [{}]}`, world, db, 47, 0, true},
		{"empty lists", `{ingress: [{from: [], ports: []}]}`, world, db, 47, 0, true},
		{"empty list of rules", `{ingress: []}`, world, db, policy.TCP, 80, false},

		{"all pods here", `{ingress: [{from: [{podSelector: {}}]}]}`, web, db, policy.TCP, 80, true},
		{"none elsewhere", `{ingress: [{from: [{podSelector: {}}]}]}`, client, db, policy.TCP, 80, false},
		{"all namespaces", `{ingress: [{from: [{namespaceSelector: {}}]}]}`, client, db, policy.TCP, 80, true},
		{"but no others", `{ingress: [{from: [{namespaceSelector: {}}]}]}`, world, db, policy.TCP, 80, false},
		{"both selectors", `{ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: client}}}]}]}`, client, db, policy.TCP, 80, true},
		{"both must match", `{ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: client}}}]}]}`, web, db, policy.TCP, 80, false},
		{"namespace by name", `{ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}}]}]}`, web, db, policy.TCP, 80, true},
		{"hostNetwork is no peer", `{ingress: [{from: [{podSelector: {}}]}]}`, host, db, policy.TCP, 80, false},
		{"a finished pod is no peer", `{ingress: [{from: [{podSelector: {}}]}]}`, done, db, policy.TCP, 80, false},
		{"the newer pod has the address", `{ingress: [{from: [{podSelector: {}}]}]}`, shared, db, policy.TCP, 80, false},
		{"a block holds nodes", `{ingress: [{from: [{ipBlock: {cidr: 192.168.0.0/24}}]}]}`, host, db, policy.TCP, 80, true},
		{"a block holds pods", `{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16, 10.2.0.0/24]}}]}]}`, web, db, policy.TCP, 80, true},
		{"excepts overlap", `{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16, 10.2.0.0/24]}}]}]}`, client, db, policy.TCP, 80, false},
		{"an except outside", `{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/24]}}]}]}`, web, db, policy.TCP, 80, false},
		{"an except that is larger", `{ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/24, except: [10.0.0.0/8]}}]}]}`, web, db, policy.TCP, 80, false},
		{"a peer that says nothing", `{ingress: [{from: [{}]}]}`, web, db, policy.TCP, 80, false},
		{"a peer that says too much", `{ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 0.0.0.0/0}}]}]}`, web, db, policy.TCP, 80, false},
		{"a bad selector of peers", `{ingress: [{from: [{podSelector: {matchExpressions: [{key: role, operator: Near}]}}]}]}`, web, db, policy.TCP, 80, false},
		{"a bad selector of pods", `{podSelector: {matchExpressions: [{key: role, operator: Near}]}}`, world, db, policy.TCP, 80, false},

		{"TCP by default", `{ingress: [{ports: [{port: 53}]}]}`, world, db, policy.UDP, 53, false},
		{"protocol alone", `{ingress: [{ports: [{protocol: UDP}]}]}`, world, db, policy.UDP, 53, true},
		{"ports let nothing else in", `{ingress: [{ports: [{}, {protocol: UDP}, {protocol: SCTP}]}]}`, world, db, 1, 0, false},
		{"end of a range", `{ingress: [{ports: [{port: 80, endPort: 90}]}]}`, world, db, policy.TCP, 90, true},
		{"behind a range", `{ingress: [{ports: [{port: 80, endPort: 90}]}]}`, world, db, policy.TCP, 91, false},
		{"a range backwards", `{ingress: [{ports: [{port: 80, endPort: 79}]}]}`, world, db, policy.TCP, 80, false},
		{"endPort alone", `{ingress: [{ports: [{endPort: 90}]}]}`, world, db, policy.TCP, 90, false},
		{"port zero", `{ingress: [{ports: [{port: 0, endPort: 90}]}]}`, world, db, policy.TCP, 80, false},
		{"an unknown protocol", `{ingress: [{ports: [{protocol: ICMP}]}]}`, world, db, 1, 0, false},
		{"named, on the selected pod", `{ingress: [{ports: [{port: http}]}]}`, world, db, policy.TCP, 8080, true},
		{"named, and another number", `{ingress: [{ports: [{port: http}]}]}`, world, db, policy.TCP, 80, false},
		{"named, and another protocol", `{ingress: [{ports: [{port: http, protocol: UDP}]}]}`, world, db, policy.UDP, 8080, false},
		{"named, on the peer", `{policyTypes: [Egress], egress: [{ports: [{port: http}]}]}`, db, client, policy.TCP, 81, true},
		{"named, on a peer by its block", `{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.2.0.0/24}}], ports: [{port: http}]}]}`, db, client, policy.TCP, 81, true},
		{"named, on what is no pod", `{policyTypes: [Egress], egress: [{ports: [{port: http}]}]}`, db, host, policy.TCP, 80, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := cluster()
			if tt.spec != "" {
				np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "np"}}
				if err := yaml.UnmarshalStrict([]byte(tt.spec), &np.Spec); err != nil {
					t.Fatal(err)
				}
				s.Policies = append(s.Policies, np)
			}
			p := oracle.Packet{Src: netip.MustParseAddr(tt.src), Dst: netip.MustParseAddr(tt.dst), Protocol: tt.protocol, Port: tt.port}
			if got := oracle.Allowed(s, "a", p); got != tt.want {
				t.Errorf("%s: allowed %v, want %v", p, got, tt.want)
			}
		})
	}
}

// TestIsolated: a policy isolates the pods that it selects, in its directions.
func TestIsolated(t *testing.T) {
	s := cluster()
	s.Policies = []*networkingv1.NetworkPolicy{{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "np"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"role": "db"}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		},
	}}
	for addr, want := range map[string]bool{"10.1.0.2": true, "10.1.0.3": false, "10.2.0.2": false, "203.0.113.9": false} {
		ingress, egress := oracle.Isolated(s, "a", netip.MustParseAddr(addr))
		if ingress || egress != want {
			t.Errorf("%s: isolated for ingress %v, for egress %v; want egress %v", addr, ingress, egress, want)
		}
	}
}
