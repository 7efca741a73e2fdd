package shaping

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// notes are annotations: what shaping knows by short names.
type notes map[string]string

func (n notes) Lookup(key string) (string, bool) {
	short := map[string]string{
		"kubernetes.io/ingress-bandwidth": "in", "kubernetes.io/egress-bandwidth": "out",
		"selvage.dev/ingress-burst": "in-burst", "selvage.dev/egress-burst": "out-burst",
	}
	v, ok := n[short[key]]
	return v, ok
}

func testPod(name string, n notes, addrs ...string) Pod {
	p := Pod{Key: Key{"shop", name}, UID: "uid-" + name, Annotations: n}
	for _, a := range addrs {
		p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
	}
	return p
}

func TestAnnotations(t *testing.T) {
	want := []string{"kubernetes.io/ingress-bandwidth", "selvage.dev/ingress-burst", "kubernetes.io/egress-bandwidth", "selvage.dev/egress-burst"}
	if got := AnnotationKeys(); !slices.Equal(got[:], want) {
		t.Errorf("%q", got)
	}
}

// TestPrecedence has pod, namespace, pool and node say something, or not.
func TestPrecedence(t *testing.T) {
	node := Limits{Ingress: {Rate: 1 * m}, Egress: {Rate: 2 * m}}
	pool := Limits{Ingress: {Rate: 3 * m}}
	for _, tt := range []struct {
		name           string
		pod, namespace notes
		pools          []Pool
		defaults       Limits
		want           Limits
	}{
		{name: "nobody"},
		{name: "node", defaults: node, want: node},
		{name: "pool", defaults: node, pools: []Pool{{prefixes("10.1.0.0/16"), pool}}, want: Limits{{Rate: 3 * m}, {Rate: 2 * m}}},
		{name: "another pool", defaults: node, pools: []Pool{{prefixes("10.2.0.0/16"), pool}}, want: node},
		{
			name: "a pool within a pool", want: pool,
			pools: []Pool{{prefixes("10.1.0.0/24"), pool}, {prefixes("10.0.0.0/8"), Limits{{Rate: 9 * m}, {Rate: 9 * m}}}},
		},
		{
			name: "the pool of the first address", want: pool,
			pools: []Pool{{prefixes("fd00::7/128"), Limits{{Rate: 9 * m}, {Rate: 9 * m}}}, {prefixes("10.1.0.0/16"), pool}},
		},
		{
			name: "a pool that says nothing", pools: []Pool{{CIDRs: prefixes("10.1.0.0/16")}, {prefixes("fd00::/64"), pool}},
		},
		{name: "by IPv6", pools: []Pool{{prefixes("fd00::/64"), pool}}, want: pool},
		{
			name: "namespace", namespace: notes{"in": "4M", "in-burst": "80k"}, defaults: node,
			pools: []Pool{{prefixes("10.1.0.0/16"), pool}}, want: Limits{{Rate: 4 * m, Burst: 10_000}, {Rate: 2 * m}},
		},
		{
			name: "pod", pod: notes{"out": "5M"}, namespace: notes{"in": "4M", "out": "6M", "out-burst": "80k"}, defaults: node,
			want: Limits{{Rate: 4 * m}, {Rate: 5 * m}},
		},
		{
			name: "the pod's burst for a rate from elsewhere", pod: notes{"out-burst": "800k", "in-burst": "80k"}, defaults: Limits{Egress: {Rate: 2 * m}},
			want: Limits{Egress: {Rate: 2 * m, Burst: 100_000}},
		},
	} {
		mo := NewModel(tt.defaults)
		mo.SetPools(tt.pools)
		mo.SetNamespace("shop", tt.namespace)
		mo.SetPod(testPod("web", tt.pod, "10.1.0.7", "fd00::7"))
		if got := mo.Limits(Key{"shop", "web"}); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if got := mo.Limits(Key{"shop", "other"}); got != (Limits{}) {
			t.Errorf("%s: a pod that is not there has %v", tt.name, got)
		}
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

// TestModelHistory follows one model through changes: what has changed, what is in
// force, what is wrong.
func TestModelHistory(t *testing.T) {
	mo := NewModel(Limits{Ingress: {Rate: 1 * m}})
	web := Key{"shop", "web"}
	step := func(name string, f func(), changed string, in, out Rate, problems ...string) {
		t.Helper()
		f()
		if got := fmt.Sprint(mo.Changed()); got != changed {
			t.Errorf("%s: changed %s, want %s", name, got, changed)
		}
		if got := mo.Limits(web); got[Ingress].Rate != in || got[Egress].Rate != out {
			t.Errorf("%s: %v, want %v and %v", name, got, in, out)
		}
		var texts []string
		for _, p := range mo.Problems() {
			texts = append(texts, p.Pod.String()+" "+p.UID+" "+p.Err.Error())
		}
		if len(texts) != len(problems) {
			t.Errorf("%s: problems %q, want %q", name, texts, problems)
			return
		}
		for i, p := range problems {
			if !strings.HasPrefix(texts[i], p) {
				t.Errorf("%s: problem %q, want %q", name, texts[i], p)
			}
		}
	}
	pod := func(n notes) func() { return func() { mo.SetPod(testPod("web", n)) } }
	namespace := func(n notes) func() { return func() { mo.SetNamespace("shop", n) } }
	step("a namespace without pods", namespace(notes{"out": "-1"}), "[]", 0, 0)
	step("it is put right", namespace(notes{}), "[]", 0, 0)
	step("a pod", pod(nil), "[shop/web]", 1*m, 0)
	step("annotated", pod(notes{"in": "10M", "out": "20M"}), "[shop/web]", 10*m, 20*m)
	step("unusable: the last usable value", pod(notes{"in": "10Mbit", "out": "0"}), "[shop/web]", 10*m, 20*m,
		`shop/web uid-web annotation kubernetes.io/egress-bandwidth: "0" is zero`,
		`shop/web uid-web annotation kubernetes.io/ingress-bandwidth: not a quantity: "10Mbit"`)
	step("one is put right", pod(notes{"in": "5M", "out": "0"}), "[shop/web]", 5*m, 20*m, "shop/web uid-web annotation kubernetes.io/egress")
	step("the other is withdrawn", pod(notes{"in": "5M"}), "[shop/web]", 5*m, 0)
	step("a namespace that says the same", namespace(notes{"in": "7M"}), "[shop/web]", 5*m, 0)
	step("the pod says nothing", pod(nil), "[shop/web]", 7*m, 0)
	step("the namespace is unusable", namespace(notes{"in": "fast", "in-burst": "much"}), "[shop/web]", 7*m, 0, "shop/  annotation kubernetes.io", "shop/  annotation selvage.dev")
	step("as before", namespace(notes{"in": "7M"}), "[shop/web]", 7*m, 0)
	step("nothing new", namespace(notes{"in": "7M"}), "[]", 7*m, 0)
	step("the namespace says more", namespace(notes{"in": "7M", "out": "8M"}), "[shop/web]", 7*m, 8*m)
	step("the namespace goes", func() { mo.SetNamespace("shop", nil) }, "[shop/web]", 1*m, 0)
	step("unusable from the start: the default", func() {
		p := testPod("web", notes{"in": "x"})
		p.UID = "another"
		mo.SetPod(p)
	}, "[shop/web]", 1*m, 0, "shop/web another annotation")
	step("pools", func() { mo.SetPools(nil) }, "[shop/web]", 1*m, 0, "shop/web another annotation")
	step("it goes", func() { mo.RemovePod(web) }, "[shop/web]", 0, 0)
	step("it goes again", func() { mo.RemovePod(web) }, "[]", 0, 0)
	if _, ok := mo.Pod(web); ok || len(mo.Pods()) != 0 {
		t.Error("a pod that is gone is known")
	}
}

// TestAdopt takes over what an earlier agent had in force, for what cannot be used
// and for nothing else.
func TestAdopt(t *testing.T) {
	mo := NewModel(Limits{Ingress: {Rate: 1 * m}})
	mo.SetNamespace("shop", notes{"out": "bad"})
	mo.SetPod(testPod("unusable", notes{"in": "bad"}))
	mo.SetPod(testPod("usable", notes{"in": "2M"}))
	mo.SetPod(testPod("silent", nil))
	before := Limits{{Rate: 8 * m}, {Rate: 9 * m}}
	for _, k := range append(mo.Pods(), Key{"shop", "unknown"}) {
		mo.Adopt(k, before)
	}
	for name, want := range map[string]Limits{
		"unusable": {{Rate: 8 * m}, {Rate: 9 * m}}, "usable": {{Rate: 2 * m}, {Rate: 9 * m}}, "silent": {{Rate: 1 * m}, {Rate: 9 * m}},
	} {
		if got := mo.Limits(Key{"shop", name}); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	mo.Adopt(Key{"shop", "unusable"}, Limits{{Rate: 3 * m}, {Rate: 3 * m}})
	if got := mo.Limits(Key{"shop", "unusable"}); got != before {
		t.Errorf("adopted twice: %v", got)
	}
	mo.SetPod(testPod("unusable", nil))
	if got := mo.Limits(Key{"shop", "unusable"}); got[Ingress].Rate != 1*m {
		t.Errorf("the annotation is withdrawn: %v", got)
	}
}

// TestAdoptFollows leaves alone what follows from an annotation or default that can be
// used, even where another one cannot.
func TestAdoptFollows(t *testing.T) {
	mo := NewModel(Limits{})
	mo.SetNamespace("shop", notes{"in": "5M"})
	mo.SetPod(testPod("web", notes{"in": "bad"}))
	mo.Adopt(Key{"shop", "web"}, Limits{{Rate: 5 * m}, {}})
	mo.SetNamespace("shop", notes{"in": "8M"})
	if got := mo.Limits(Key{"shop", "web"}); got[Ingress].Rate != 8*m {
		t.Errorf("%v", got)
	}
}

// TestClaims gives an address to the newest pod that claims it.
func TestClaims(t *testing.T) {
	mo := NewModel(Limits{})
	add := func(name string, created int64, host bool, addrs ...string) {
		p := testPod(name, nil, addrs...)
		p.Created, p.HostNetwork = created, host
		mo.SetPod(p)
	}
	is := func(what, changed, want string) {
		t.Helper()
		if got := fmt.Sprint(mo.Changed()); got != changed {
			t.Errorf("%s: changed %s, want %s", what, got, changed)
		}
		var texts []string
		for _, k := range mo.Pods() {
			p, _ := mo.Pod(k)
			texts = append(texts, fmt.Sprint(p.Addrs))
		}
		if got := strings.Join(texts, " "); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	add("a", 1, false, "10.1.0.1", "fd00::1")
	is("one", "[shop/a]", "[10.1.0.1 fd00::1]")
	add("b", 2, false, "10.1.0.1")
	is("a newer one", "[shop/a shop/b]", "[fd00::1] [10.1.0.1]")
	add("c", 9, true, "10.1.0.1")
	is("a hostNetwork pod claims nothing", "[shop/a shop/b shop/c]", "[fd00::1] [10.1.0.1] [10.1.0.1]")
	add("b", 2, false, "10.1.0.2")
	is("it has moved", "[shop/a shop/b shop/c]", "[10.1.0.1 fd00::1] [10.1.0.2] [10.1.0.1]")
	add("b", 2, false, "10.1.0.1")
	mo.Changed()
	mo.RemovePod(Key{"shop", "b"})
	is("it is gone", "[shop/a shop/b shop/c]", "[10.1.0.1 fd00::1] [10.1.0.1]")
}

func TestAsks(t *testing.T) {
	mo := NewModel(Limits{Ingress: {Rate: 1 * m}})
	for name, want := range map[string]bool{"in": true, "bad": true, "no": false} {
		mo.SetPod(testPod(name, map[string]notes{"in": {"in": "2M"}, "bad": {"out": "x"}}[name]))
		if got := mo.Asks(Key{"shop", name}); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if mo.Asks(Key{"shop", "none"}) {
		t.Error("a pod that is not there asks")
	}
	for p, want := range map[*Pod]bool{{}: false, {HostNetwork: true, Addrs: []netip.Addr{{}}}: false, {Addrs: []netip.Addr{{}}}: true} {
		if p.Located() != want {
			t.Errorf("%+v", p)
		}
	}
}
