package policy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

// asked are questions about testdata/explain/cluster.yaml, and what each is about.
var asked = []struct{ about, from, to, port string }{
	{"allowed at both ends; named ports are numbers of the pod that serves", "lab/client", "shop/web-0", "http"},
	{"the peer matches, the port does not", "lab/client", "svc/shop/web", "81"},
	{"a Service whose pods have different ports", "lab/client", "svc/shop/web", "80"},
	{"no selector of another namespace's pods", "lab/web-0", "shop/web-0", "443/TCP"},
	{"labels of the pod and of its namespace", "lab/web-0", "shop/web-0", "8050"},
	{"ipBlock, and its except", "10.2.0.200", "shop/web-0", "443"},
	{"ipBlock, from outside", "203.0.113.9", "shop/web-0", "443"},
	{"no pod's address", "198.51.100.7", "shop/web-0", "8080"},
	{"by its pool", "lab/web-0", "shop/db-0", "5432"},
	{"in no pool", "shop/web-1", "shop/db-0", "5433"},
	{"another protocol, a name that the peer does not have", "lab/client", "203.0.113.9", "53/UDP"},
	{"without ports", "lab/client", "shop/web-0", "ICMP"},
	{"a rule without ports allows all protocols", "shop/web-1", "shop/web-0", "icmp"},
	{"itself", "shop/web-0", "shop/web-0", "80"},
	{"its own node", "lab/web-0", "node/node-a", "10250"},
	{"another node", "lab/web-0", "node/node-b", "10250"},
	{"from its own node", "node/node-a", "shop/web-0", "8080"},
	{"from another node's network", "shop/agent", "shop/web-1", "9090"},
	{"to a pod on the node's network", "lab/client", "shop/agent", "8080"},
	{"an address that no pod is known to have", "10.1.0.200", "shop/web-1", "443"},
	{"an address that a finished pod had", "shop/web-0", "10.1.0.9", "80"},
	{"a reused address", "shop/web-0", "10.1.0.4", "80"},
	{"what cannot be understood", "shop/web-0", "lab/bad", "80"},
	{"neither end is a pod", "203.0.113.9", "198.51.100.7", "80"},
	{"an address of a link", "fe80::1", "shop/web-0", "80"},
	{"finished", "shop/job", "shop/web-0", "80"},
	{"its address is another pod's", "shop/web-0", "shop/old", "80"},
	{"no address yet", "shop/starting", "shop/web-0", "80"},
	{"nor at the other end", "shop/starting", "shop/job", "80"},
	{"no address of the same family", "fd00:2::3", "shop/db-0", "5432"},
}

// shopServices are the Services beside testdata/explain/cluster.yaml.
func shopServices() []*policy.Service {
	meta := func(name string) policy.Meta { return policy.Meta{Namespace: "shop", Name: name} }
	return []*policy.Service{
		{
			Meta: meta("web"), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Selector: map[string]string{"app": "web"},
			Ports: []policy.ServicePort{
				{Name: "plain", Protocol: policy.TCP, Port: 80, Target: intstr.FromString("http")},
				{Name: "odd", Protocol: policy.TCP, Port: 81, Target: intstr.FromInt32(8181)},
				{Name: "same", Protocol: policy.TCP, Port: 8080},
				{Name: "nowhere", Protocol: policy.TCP, Port: 82, Target: intstr.FromString("nothing")},
			},
		},
		{Meta: meta("db"), Headless: true, Selector: map[string]string{"app": "db"}, Ports: []policy.ServicePort{{Name: "pg", Protocol: policy.TCP, Port: 5431, Target: intstr.FromInt32(5432)}}},
		{Meta: meta("external")},
		{Meta: meta("idle"), Selector: map[string]string{"app": "none"}},
		{Meta: policy.Meta{Namespace: "lab", Name: "web"}, Selector: map[string]string{"app": "web"}},
	}
}

func shop(t *testing.T) policy.Snapshot {
	t.Helper()
	// The policy lab/broken is an error.
	s, err := informer.Load("testdata/explain/cluster.yaml")
	if err != nil && !strings.Contains(err.Error(), "broken") {
		t.Fatal(err)
	}
	return s
}

// goldenText compares with a file of testdata/explain, which -update writes.
func goldenText(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata/explain", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("-want +got (go test ./policy -run Explain -update):\n%s", d)
	}
}

// TestExplainTexts compares with testdata/explain/want.txt what people get to read.
func TestExplainTexts(t *testing.T) {
	s := shop(t)
	var out bytes.Buffer
	for _, toNode := range []policy.PodToNode{policy.PodToNodeAllow, policy.PodToNodePolicy} {
		cfg := policy.DefaultConfig(policytest.NodeA)
		cfg.PodToNode = toNode
		x := policy.NewExplainer(cfg, s, shopServices())
		for _, q := range asked {
			if toNode == policy.PodToNodePolicy && q.about != "its own node" {
				continue
			}
			fmt.Fprintf(&out, "# %s\n$ selvage explain %s %s %s\n", q.about, q.from, q.to, q.port)
			all, err := x.Ask(policy.Question{From: q.from, To: q.to, Port: q.port})
			if err != nil {
				t.Fatalf("%s: %v", q.about, err)
			}
			for _, e := range all {
				out.WriteString(e.String())
				out.WriteByte('\n')
			}
			fmt.Fprintf(&out, "=> %s\n\n", policy.OutcomeOf(all))
		}
	}
	goldenText(t, "want.txt", out.Bytes())
}

// TestExplainJSON compares with testdata/explain/want.json what programs get: names and
// meanings there stay.
func TestExplainJSON(t *testing.T) {
	x := policy.NewExplainer(policy.DefaultConfig(policytest.NodeA), shop(t), shopServices())
	var all []policy.Explanation
	for _, q := range []policy.Question{
		{From: "lab/client", To: "svc/shop/web", Port: "80"},
		{From: "lab/web-0", To: "shop/web-0", Port: "443"},
		{From: "10.1.0.200", To: "shop/web-1", Port: "icmp"},
		{From: "shop/job", To: "shop/agent", Port: "80"},
	} {
		answers, err := x.Ask(q)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, answers...)
	}
	got, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	goldenText(t, "want.json", append(got, '\n'))
}

// TestExplainFlow: who knows pods and addresses need not type them.
func TestExplainFlow(t *testing.T) {
	s := shop(t)
	client, web := policy.Endpoint{Namespace: "lab", Name: "client"}, policy.Endpoint{Namespace: "shop", Name: "web-1"}
	tests := []struct {
		name    string
		flow    policy.Flow
		outcome policy.Outcome
		summary string
	}{
		{"IPv4 goes first", policy.Flow{From: client, To: web, Protocol: policy.TCP, Port: 9090}, policy.OutcomeAllowed, "allowed"},
		{"an address that is its own", policy.Flow{From: client, To: at(web, "fd00:2::2"), Protocol: policy.TCP, Port: 9090}, policy.OutcomeAllowed, "allowed"},
		{"an address that is not", policy.Flow{From: client, To: at(web, "10.1.0.2"), Protocol: policy.TCP, Port: 9090}, policy.OutcomeUnclear, "cannot tell: shop/web-1 does not have the address 10.1.0.2"},
		{"an address in IPv6", policy.Flow{From: at(policy.Endpoint{}, "::ffff:10.2.0.3"), To: web, Protocol: policy.TCP, Port: 9090}, policy.OutcomeAllowed, "allowed"},
		{"no such pod", policy.Flow{From: client, To: policy.Endpoint{Namespace: "shop", Name: "web"}, Protocol: policy.TCP, Port: 9090}, policy.OutcomeUnclear, "cannot tell: there is no pod shop/web"},
		{"nothing", policy.Flow{From: client, Protocol: policy.TCP, Port: 9090}, policy.OutcomeUnclear, "cannot tell: an end is neither a pod nor an address"},
	}
	for _, tt := range tests {
		e := policy.Explain(policy.DefaultConfig(policytest.NodeA), s, tt.flow)
		if e.Outcome != tt.outcome || e.Summary != tt.summary {
			t.Errorf("%s: %s", tt.name, e)
		}
		if e.Outcome == policy.OutcomeAllowed && (e.Flow.From.Addr.Is4() != e.Flow.To.Addr.Is4() || e.Flow.To.Addr != e.To.Address) {
			t.Errorf("%s: judged %+v", tt.name, e.Flow)
		}
	}
}

func at(e policy.Endpoint, addr string) policy.Endpoint {
	e.Addr = netip.MustParseAddr(addr)
	return e
}

// TestParseEndpoint: what somebody types, and what it stands for.
func TestParseEndpoint(t *testing.T) {
	s := shop(t)
	tests := []struct {
		text, namespace string
		want            string // the ends, or candidates
		reason          policy.EndpointReason
		message         string
	}{
		{text: "shop/db-0", want: "shop/db-0"},
		{text: " pod/shop/db-0 ", want: "shop/db-0"},
		{text: "pods/db-0", want: "shop/db-0"},
		{text: "db-0", want: "shop/db-0"},
		{text: "web-0", namespace: "lab", want: "lab/web-0"},
		{text: "web-0", want: "lab/web-0 shop/web-0", reason: policy.EndpointAmbiguous, message: `there are several with the name "web-0": say which: lab/web-0, shop/web-0`},
		{text: "web-1", namespace: "lab", want: "shop/web-1", reason: policy.EndpointUnknown, message: "there is no pod web-1 in lab; there is: shop/web-1"},
		{text: "web", want: "lab/web-0 shop/web-0 shop/web-1", reason: policy.EndpointUnknown, message: "there is no pod web in any namespace; there is: lab/web-0, shop/web-0, shop/web-1"},
		{text: "shop/nobody", reason: policy.EndpointUnknown, message: "there is no pod nobody in shop"},
		{text: "10.1.0.3", want: "10.1.0.3"},
		{text: "fe80::1%eth0", want: "fe80::1"},
		{text: "::ffff:10.1.0.3", want: "10.1.0.3"},
		{text: "node/node-b", want: "192.168.0.2"},
		{text: "node/node-c", reason: policy.EndpointUnknown, message: "there is no node node-c"},
		{text: "svc/shop/web", want: "shop/agent@shop/web shop/web-0@shop/web shop/web-1@shop/web"},
		{text: "10.96.0.10", want: "shop/agent@shop/web shop/web-0@shop/web shop/web-1@shop/web"},
		{text: "service/db", want: "shop/db-0@shop/db"},
		{text: "svc/web", want: "svc/lab/web svc/shop/web", reason: policy.EndpointAmbiguous, message: `there are several with the name "svc/web": say which: svc/lab/web, svc/shop/web`},
		{text: "svc/web", namespace: "lab", want: "lab/web-0@lab/web"},
		{text: "svc/shop/none", reason: policy.EndpointUnknown, message: "there is no Service none in shop"},
		{text: "svc/shop/idle", reason: policy.EndpointNoPods, message: "the Service shop/idle leads to no pods: none of shop has an address and app=none"},
		{text: "svc/external", reason: policy.EndpointNoPods, message: "the Service shop/external has no selector: ask about one of its ends instead"},
		{text: "", reason: policy.EndpointInvalid, message: `"" is neither`},
		{text: "shop/", reason: policy.EndpointInvalid, message: `"shop/" is neither`},
		{text: "pod/a/b/c", reason: policy.EndpointInvalid, message: `"pod/a/b/c" is neither`},
		{text: "deploy/shop/web", reason: policy.EndpointInvalid, message: `"deploy/shop/web" begins with none of pod, svc and node`},
	}
	for _, tt := range tests {
		got, err := policy.ParseEndpoint(s, shopServices(), tt.namespace, tt.text)
		var names []string
		for _, e := range got.Endpoints {
			names = append(names, endText(e))
		}
		var reason policy.EndpointReason
		message := ""
		if e := (*policy.EndpointError)(nil); errors.As(err, &e) {
			reason, message, names = e.Reason, e.Error(), e.Candidates
		}
		if strings.Join(names, " ") != tt.want || reason != tt.reason || !strings.HasPrefix(message, tt.message) || (tt.message == "") != (err == nil) {
			t.Errorf("%q in %q: %q, %s: %v", tt.text, tt.namespace, names, reason, err)
		}
	}
}

func endText(e policy.Endpoint) string {
	text := e.Namespace + "/" + e.Name
	if e.Name == "" {
		text = e.Addr.String()
	}
	if e.Service != "" {
		text += "@" + e.Service
	}
	return text
}

// TestAskPorts: ports by number and by name, before pods and before Services.
func TestAskPorts(t *testing.T) {
	x := policy.NewExplainer(policy.DefaultConfig(policytest.NodeA), shop(t), shopServices())
	tests := []struct{ to, port, want string }{
		{"shop/web-1", "80", "80/TCP"},
		{"shop/web-1", "53/udp", "53/UDP"},
		{"shop/web-1", "http", "9090/TCP"},
		{"10.2.0.2", "http/TCP", "9090/TCP"},
		{"shop/web-1", "icmp", "ICMP"},
		{"fd00:2::2", "ICMP", "ICMPv6"},
		{"shop/web-1", "http/UDP", "the destination has no UDP port named http"},
		{"203.0.113.9", "http", "the destination has no TCP port named http"},
		{"svc/shop/db", "pg", "5432/TCP"},
		{"svc/shop/db", "1234", "1234/TCP"},
		{"svc/shop/db", "icmp", "ICMP"},
		{"svc/shop/db", "http", "the Service shop/db has no port http: 5431/TCP"},
		{"svc/shop/web", "same", "8080/TCP"},
		{"svc/shop/web", "odd", "8181/TCP"},
		{"svc/shop/web", "8080", "8080/TCP"},
		{"svc/shop/web", "plain", "8080/TCP 9090/TCP"},
		{"svc/shop/web", "443", "the Service shop/web has no port 443: 80/TCP, 81/TCP, 8080/TCP, 82/TCP"},
		{"svc/shop/web", "ICMP", "the Service shop/web has no port ICMP: 80/TCP, 81/TCP, 8080/TCP, 82/TCP"},
		{"svc/shop/web", "80/UDP", "the Service shop/web has no port 80/UDP: 80/TCP, 81/TCP, 8080/TCP, 82/TCP"},
		{"svc/shop/web", "82", "none of the pods of the Service shop/web has a TCP port named nothing"},
		{"shop/web-1", "", `the port is missing in ""`},
		{"shop/web-1", "TCP", `the port is missing in "TCP"`},
		{"shop/web-1", "/TCP", `the port is missing in "/TCP"`},
		{"shop/web-1", "0", `the port in "0" is none from 1 to 65535`},
		{"shop/web-1", "65536/TCP", `the port in "65536/TCP" is none from 1 to 65535`},
		{"shop/web-1", "80/ICMP", `the protocol in "80/ICMP" is none of TCP, UDP and SCTP`},
		{"shop/web-1", "icmp/echo", `the protocol in "icmp/echo" is none of TCP, UDP and SCTP`},
		{"shop/web-1", "80/TCP/x", `the protocol in "80/TCP/x" is none of TCP, UDP and SCTP`},
	}
	for _, tt := range tests {
		from := "198.51.100.7"
		if strings.Contains(tt.to, ":") {
			from = "2001:db8::1"
		}
		all, err := x.Ask(policy.Question{From: from, To: tt.to, Port: tt.port})
		var got []string
		for _, e := range all {
			for _, flow := range append([]string{e.String()}, e.Same...) {
				line := flow[strings.Index(flow, " to "):]
				line, _, _ = strings.Cut(line, "\n")
				got = append(got, line[strings.LastIndex(line, " ")+1:])
			}
		}
		slices.Sort(got)
		text := strings.Join(slices.Compact(got), " ")
		if err != nil {
			text = err.Error()
		}
		if text != tt.want && (err == nil || !strings.HasPrefix(text, tt.want)) {
			t.Errorf("%s at %s: %s, want %s", tt.port, tt.to, text, tt.want)
		}
	}
	for _, q := range []policy.Question{{From: "nobody", To: "shop/web-1", Port: "80"}, {From: "shop/web-1", To: "nobody", Port: "80"}} {
		if _, err := x.Ask(q); err == nil || !strings.Contains(err.Error(), "there is no pod nobody") {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

// TestOutcomeOf: one that is denied is what the question was about.
func TestOutcomeOf(t *testing.T) {
	const allowed, denied, unclear = policy.OutcomeAllowed, policy.OutcomeDenied, policy.OutcomeUnclear
	for _, tt := range []struct{ of, want []policy.Outcome }{
		{nil, []policy.Outcome{allowed}},
		{[]policy.Outcome{allowed, unclear}, []policy.Outcome{unclear}},
		{[]policy.Outcome{unclear, denied, allowed}, []policy.Outcome{denied}},
	} {
		var all []policy.Explanation
		for _, o := range tt.of {
			all = append(all, policy.Explanation{Outcome: o})
		}
		if got := policy.OutcomeOf(all); got != tt.want[0] {
			t.Errorf("%v: %s", tt.of, got)
		}
	}
}

// TestExplainNodes: what is known of a node besides its pods.
func TestExplainNodes(t *testing.T) {
	host := somePod("agent", policytest.NodeA, "")
	host.HostNetwork = true
	s := policy.Snapshot{
		Pods: []*policy.Pod{host, somePod("web", policytest.NodeA, "10.1.0.2"), somePod("far", policytest.NodeB, "10.2.0.2")},
		Nodes: []*policy.Node{
			{Meta: policy.Meta{Name: policytest.NodeA}, Addrs: []netip.Addr{netip.MustParseAddr("192.168.0.1")}},
			{Meta: policy.Meta{Name: policytest.NodeB}},
		},
		Pools:    []*policy.Pool{pool("trusted", 1, "10.2.0.0/24")},
		Policies: []*networkingv1.NetworkPolicy{ingressPolicy("trusted", networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{policy.PoolLabel: "trusted"}}}}})},
	}
	cfg := policy.DefaultConfig(policytest.NodeA)
	x := policy.NewExplainer(cfg, s, nil)
	web := policy.Endpoint{Namespace: "shop", Name: "web"}
	fromHost := policy.Flow{From: policy.Endpoint{Namespace: "shop", Name: "agent"}, To: web, Protocol: policy.TCP, Port: 80}
	if e := x.Explain(fromHost); e.From.Address.String() != "192.168.0.1" || e.Ingress.Why != policy.WhyOwnNode {
		t.Errorf("a pod on its node's network without an address of its own:\n%s", e)
	}
	if _, err := x.Ask(policy.Question{From: "node/" + policytest.NodeB, To: "shop/web", Port: "80"}); err == nil || !strings.Contains(err.Error(), "no address of the node node-b is known") {
		t.Errorf("a node without an address: %v", err)
	}
	fromPool := policy.Flow{From: policy.Endpoint{Namespace: "shop", Name: "far"}, To: web, Protocol: policy.TCP, Port: 80}
	if e := x.Explain(fromPool); e.Outcome != policy.OutcomeAllowed {
		t.Errorf("from the pool:\n%s", e)
	}
	// What the configuration knows of Services keeps a pool out of force.
	cfg.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}
	if e := policy.Explain(cfg, s, fromPool); e.Outcome != policy.OutcomeDenied {
		t.Errorf("from a pool that is not in force:\n%s", e)
	}
}

// evil is a text that a terminal would not just show.
const evil = "a\x1b[2J\n\u202e\x80\u009b31m"

// TestExplainEvilNames: nothing that a manifest can hold gets to the terminal as it is,
// and the names in JSON are still what they are.
func TestExplainEvilNames(t *testing.T) {
	web := somePod("web"+evil, policytest.NodeA, "10.1.0.2")
	web.Labels = policy.NewLabels(map[string]string{"app": evil})
	web.Ports = []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Port: 80}, {Name: evil, Protocol: policy.TCP, Port: 81}}
	old := somePod("old"+evil, policytest.NodeA, "10.1.0.2")
	old.Created = -1
	client := somePod("client"+evil, policytest.NodeB, "10.2.0.2")
	client.Labels = policy.NewLabels(map[string]string{"app": evil})
	np := allow("policy"+evil, "client")
	np.Spec.PodSelector = metav1.LabelSelector{}
	np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
		From: []networkingv1.NetworkPolicyPeer{
			{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{evil: evil}}},
			{IPBlock: &networkingv1.IPBlock{CIDR: evil, Except: []string{evil}}},
			{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}},
		},
		Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromString(evil))}},
	})
	np.Spec.PolicyTypes = []networkingv1.PolicyType{evil}
	x := policy.NewExplainer(policy.DefaultConfig(policytest.NodeA), policy.Snapshot{
		Pods: []*policy.Pod{web, old, client}, Policies: []*networkingv1.NetworkPolicy{np},
		Nodes: []*policy.Node{{Meta: policy.Meta{Name: "node" + evil}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}}},
	}, []*policy.Service{{Meta: policy.Meta{Namespace: evil, Name: evil}, Selector: map[string]string{evil: evil}}})
	var texts []string
	for _, f := range []policy.Flow{
		{From: at(policy.Endpoint{}, "10.2.0.2"), To: at(policy.Endpoint{}, "10.1.0.2"), Protocol: policy.TCP, Port: 80},
		{From: at(policy.Endpoint{}, "10.9.0.2"), To: at(policy.Endpoint{}, "10.1.0.2"), Protocol: policy.TCP, Port: 80},
		{From: policy.Endpoint{Namespace: "shop", Name: evil, Service: evil}, To: at(policy.Endpoint{}, "10.1.0.2"), Protocol: policy.TCP, Port: 80},
	} {
		e := x.Explain(f)
		if e.Outcome == policy.OutcomeAllowed {
			t.Errorf("%s", e)
		}
		texts = append(texts, strings.ReplaceAll(e.String(), "\n", " "), e.Summary)
		texts = append(append(texts, e.Notes...), e.Same...)
		texts = append(texts, prose(e.Egress)...)
		texts = append(texts, prose(e.Ingress)...)
		if e.Outcome == policy.OutcomeDenied && e.To.Name != "web"+evil {
			t.Errorf("the name has become %q", e.To.Name)
		}
	}
	for _, q := range []policy.Question{
		{From: evil, To: "10.1.0.2", Port: "80"}, {From: "w", To: "10.1.0.2", Port: "80"}, {From: "svc/" + evil + "/" + evil, To: "10.1.0.2", Port: "80"},
		{From: "10.1.0.2", To: "10.1.0.2", Port: "x" + evil}, {From: "10.1.0.2", To: "10.1.0.2", Port: "80/" + evil}, {From: "node/" + evil, To: "10.1.0.2", Port: "80"},
	} {
		_, err := x.Ask(q)
		if err == nil {
			t.Fatalf("%+v: no error", q)
		}
		texts = append(texts, err.Error())
	}
	for _, text := range texts {
		if bad := strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }); bad >= 0 {
			t.Errorf("%q", text)
		}
	}
}

// prose is all of a side that is meant to be read.
func prose(s *policy.Side) []string {
	if s == nil {
		return nil
	}
	out := []string{s.Text}
	for _, r := range s.AllowedBy {
		out = append(out, r.Text)
	}
	for _, np := range s.Policies {
		out = append(out, np.Problems...)
		for _, r := range np.Rules {
			out = append(out, r.Text)
			for _, tried := range slices.Concat(r.Peers, r.Ports) {
				out = append(out, tried.Text, tried.Why)
			}
		}
	}
	return out
}

// TestExplainOnAScreen: however much there is to say, the text stays short.
func TestExplainOnAScreen(t *testing.T) {
	s := policy.Snapshot{Pods: []*policy.Pod{somePod("web", policytest.NodeA, "10.1.0.2"), somePod("client", policytest.NodeB, "10.2.0.2")}}
	for i := range 40 {
		np := allow(fmt.Sprintf("policy-%02d", i), "client")
		np.Spec.PodSelector = metav1.LabelSelector{}
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
		for j := range 40 {
			np.Spec.Ingress[0].From = append(np.Spec.Ingress[0].From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("192.0.2.%d/32", j)}})
		}
		for j := range 40 {
			np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromInt(j + 1))}}})
		}
		s.Policies = append(s.Policies, np)
	}
	e := policy.Explain(policy.DefaultConfig(policytest.NodeA), s, policy.Flow{From: at(policy.Endpoint{}, "10.2.0.2"), To: at(policy.Endpoint{}, "10.1.0.2"), Protocol: policy.TCP, Port: 80})
	if lines := strings.Count(e.String(), "\n"); e.Outcome != policy.OutcomeDenied || lines > 45 || len(e.String()) > 45*300 {
		t.Errorf("%d lines:\n%s", lines, e)
	}
	for i := range 30 {
		s.Pods = append(s.Pods, somePod(fmt.Sprintf("web-%02d", i), policytest.NodeA, fmt.Sprintf("10.1.0.%d", 100+i), "web"))
	}
	x := policy.NewExplainer(policy.DefaultConfig(policytest.NodeA), s, []*policy.Service{{
		Meta: policy.Meta{Namespace: "shop", Name: "web"}, Selector: map[string]string{"web": "x"}, Ports: []policy.ServicePort{{Protocol: policy.TCP, Port: 80}},
	}})
	all, err := x.Ask(policy.Question{From: "shop/client", To: "svc/shop/web", Port: "80"})
	if err != nil || len(all) != 1 || len(all[0].Same) != 29 || !strings.HasSuffix(all[0].String(), "\nthe same 24 times more\n") {
		t.Errorf("%v: %s", err, all)
	}
	if first, _, _ := strings.Cut(e.String(), "\n"); !strings.HasPrefix(first, "denied by egress policies of shop: policy-00, policy-01, ") || !strings.HasSuffix(first, "policy-04 and 35 more") {
		t.Errorf("first: %s", first)
	}
}
