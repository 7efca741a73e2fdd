package policy_test

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

// TestLabels: sorted labels are what the map was.
func TestLabels(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := rapid.MapOf(rapid.StringN(0, 3, -1), rapid.StringN(0, 3, -1)).Draw(t, "labels")
		l := policy.NewLabels(m)
		if !slices.IsSortedFunc(l, func(a, b policy.Label) int { return strings.Compare(a.Key, b.Key) }) || len(l) != len(m) {
			t.Fatalf("%v of %v", l, m)
		}
		keys := append(slices.Collect(maps.Keys(m)), rapid.String().Draw(t, "another key"))
		for _, k := range keys {
			want, there := m[k]
			got, ok := l.Lookup(k)
			if got != want || ok != there || l.Has(k) != there || l.Get(k) != want {
				t.Fatalf("%q is %q, %v; want %q, %v", k, got, ok, want, there)
			}
		}
	})
}

// TestConfigValidate: each mistake is told, all at once.
func TestConfigValidate(t *testing.T) {
	good := policy.DefaultConfig("node")
	good.NoMasquerade = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("2001:db8::1/128")}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	bad := policy.Config{MarkMask: 0x8, DenyAction: "shrug", PodToNode: "maybe", SharedAbove: -1, Generation: 2,
		NoMasquerade: []netip.Prefix{{}, netip.MustParsePrefix("::ffff:10.0.0.0/104")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.1/16")}}
	err := bad.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"name is empty", "0x8", `"shrug"`, `"maybe"`, "-1", "generation 2", "no block of IPv4", "10.96.0.1/16 has bits of a host: it would be 10.96.0.0/16"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("nothing about %s in: %v", want, err)
		}
	}
}

// TestText renders what no golden file shows, as nft writes it.
func TestText(t *testing.T) {
	m := func(f policy.Field, op policy.Op, v, arg uint32) policy.Match {
		return policy.Match{Field: f, Op: op, Value: v, Arg: arg}
	}
	drop := policy.Verdict{Kind: policy.VerdictDrop}
	tests := []struct {
		rule policy.Rule
		want string
	}{
		{policy.Rule{Match: []policy.Match{m(policy.FieldCtState, policy.OpBits, policy.StateInvalid|policy.StateNew|policy.StateUntracked, 0)}, Verdict: drop}, "ct state invalid,new,untracked drop"},
		{policy.Rule{Match: []policy.Match{m(policy.FieldCtDirection, policy.OpEqual, 1, 0)}, Verdict: drop}, "ct direction reply drop"},
		{policy.Rule{Match: []policy.Match{m(policy.FieldL4Proto, policy.OpEqual, uint32(policy.SCTP), 0)}, Counter: true, Verdict: policy.Verdict{Kind: policy.VerdictProhibit}}, "meta l4proto sctp counter reject with icmpv6 admin-prohibited"},
		{policy.Rule{Stamp: policy.Mark{Mask: 0x30c4, Value: 0x2004}, Verdict: policy.Verdict{Kind: policy.VerdictAccept}}, "ct mark set ct mark & 0xffffef3f | 0x00002004 accept"},
	}
	for _, tt := range tests {
		if got := tt.rule.Text(policy.IPv6); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
	s := policy.Set{Key: [2]policy.Type{policy.TypeAddr}, Interval: true}
	for _, r := range [][3]string{
		{"0.0.0.0", "255.255.255.255", "0.0.0.0/0"}, {"10.0.0.0", "10.0.0.0", "10.0.0.0"},
		{"10.0.0.1", "10.0.0.2", "10.0.0.1-10.0.0.2"}, {"::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::/0"},
		{"255.255.255.254", "255.255.255.255", "255.255.255.254/31"},
	} {
		e := policy.Element{Key: policy.AddrKey(netip.MustParseAddr(r[0])), To: policy.AddrKey(netip.MustParseAddr(r[1]))}
		if got := s.ElementText(e); got != r[2] {
			t.Errorf("%s to %s: %s, want %s", r[0], r[1], got, r[2])
		}
	}
}

// TestCounts: what the compiler says of itself, for metrics.
func TestCounts(t *testing.T) {
	cl := newCluster(t,
		&policy.Namespace{Meta: policy.Meta{Name: "shop"}},
		somePod("web", policytest.NodeA, "10.1.0.3"), somePod("db", policytest.NodeA, "10.1.0.2"), somePod("client", policytest.NodeB, "10.2.0.2", "client"),
		allow("clients", "client"))
	counts := cl.c.Counts()
	if counts.Pods != 3 || counts.LocalPods != 2 || counts.Namespaces != 1 || counts.Policies != 1 || counts.Selectors != 1 || counts.Signatures != 1 {
		t.Errorf("%+v", counts)
	}
	if got := cl.c.Prefixes(); !slices.Equal(got, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}) {
		t.Errorf("prefixes %v", got)
	}
}

// TestNamesOfSignatures: what a policy is called must not make it look like two.
func TestNamesOfSignatures(t *testing.T) {
	selecting := func(name, label string) *networkingv1.NetworkPolicy {
		np := allow(name, "client")
		np.Spec.PodSelector.MatchLabels = map[string]string{label: "x"}
		return np
	}
	s := policy.Snapshot{
		Pods:     []*policy.Pod{somePod("web", policytest.NodeA, "10.1.0.2", "one"), somePod("db", policytest.NodeA, "10.1.0.3", "other")},
		Policies: []*networkingv1.NetworkPolicy{selecting("a", "one"), selecting("b", "one"), selecting("a shop/b", "other")},
	}
	ruleset, _ := policy.Compile(policy.DefaultConfig(policytest.NodeA), s)
	chains := map[string]bool{}
	for _, set := range ruleset.Tables[policy.IPv4].Sets {
		for _, e := range set.Elements {
			if e.Verdict.Kind == policy.VerdictGoto && set.Name == "ingress-pods-v4" {
				chains[e.Verdict.Chain] = true
			}
		}
	}
	if len(chains) != 2 {
		t.Errorf("the two pods share a chain:\n%s", ruleset)
	}
}
