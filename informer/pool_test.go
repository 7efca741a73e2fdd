package informer

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-net/selvage/informer/api/calico"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
	"github.com/selvage-net/selvage/policy"
)

func quantity(text string) *resource.Quantity {
	q := resource.MustParse(text)
	return &q
}

// told writes a pool down, but for its name and age.
func told(p *policy.Pool) string {
	var nodes []string
	for _, zone := range []string{"", "a", "b"} {
		l := policy.Labels{{Key: "zone", Value: zone}}
		if zone == "" {
			l = nil
		}
		if p.On(l) {
			nodes = append(nodes, "zone="+zone)
		}
	}
	return fmt.Sprintf("%s %v nat=%t disabled=%t %v %d/%d", p.Origin, p.CIDRs, p.NATOutgoing, p.Disabled, nodes, p.Ingress, p.Egress)
}

func TestPoolFrom(t *testing.T) {
	const all = " nat=false disabled=false [zone= zone=a zone=b] 0/0"
	zone := func(op metav1.LabelSelectorOperator, values ...string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "zone", Operator: op, Values: values}}}
	}
	for _, tt := range []struct {
		name string
		spec v1alpha1.IPPoolSpec
		want string
		// errs are in the error, each once.
		errs []string
	}{
		{"both families", v1alpha1.IPPoolSpec{CIDRs: []string{"10.1.0.0/16", "fd00:1::/56"}}, "selvage [10.1.0.0/16 fd00:1::/56]" + all, nil},
		{
			"everything",
			v1alpha1.IPPoolSpec{
				CIDRs: []string{"10.1.0.0/16"}, NATOutgoing: true, Disabled: true, NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "a"}},
				Bandwidth: &v1alpha1.Bandwidth{Ingress: quantity("10M"), Egress: quantity("1.5k")},
			},
			"selvage [10.1.0.0/16] nat=true disabled=true [zone=a] 10000000/1500", nil,
		},
		{"nodes by expressions", v1alpha1.IPPoolSpec{NodeSelector: zone(metav1.LabelSelectorOpNotIn, "a")}, "selvage [] nat=false disabled=false [zone= zone=b] 0/0", nil},
		{"all nodes", v1alpha1.IPPoolSpec{NodeSelector: &metav1.LabelSelector{}}, "selvage []" + all, nil},
		{
			"one block is none", v1alpha1.IPPoolSpec{CIDRs: []string{"10.1.0.0/33", "10.2.0.0/16", "pods"}}, "selvage [10.2.0.0/16]" + all,
			[]string{`spec.cidrs[0]: Invalid value: "10.1.0.0/33"`, `spec.cidrs[2]: Invalid value: "pods"`},
		},
		{
			"bits of a host", v1alpha1.IPPoolSpec{CIDRs: []string{"10.1.0.1/16", "fd00::1/64"}}, "selvage []" + all,
			[]string{"write 10.1.0.0/16", "write fd00::/64"},
		},
		{"IPv4 in IPv6", v1alpha1.IPPoolSpec{CIDRs: []string{"::ffff:10.1.0.0/112"}}, "selvage []" + all, []string{"IPv4 is to be written as such"}},
		{
			"overlap", v1alpha1.IPPoolSpec{CIDRs: []string{"10.1.0.0/16", "10.1.7.0/24", "10.0.0.0/8", "10.2.0.0/16"}}, "selvage [10.1.0.0/16 10.2.0.0/16]" + all,
			[]string{`spec.cidrs[1]: Invalid value: "10.1.7.0/24": overlaps 10.1.0.0/16`, `spec.cidrs[2]: Invalid value: "10.0.0.0/8": overlaps 10.1.0.0/16`},
		},
		{
			"rates", v1alpha1.IPPoolSpec{Bandwidth: &v1alpha1.Bandwidth{Ingress: quantity("10m"), Egress: quantity("2P")}}, "selvage []" + all,
			[]string{`spec.bandwidth.ingress: Invalid value: "10m": "10m" is too little`, `spec.bandwidth.egress: Invalid value: "2P": "2P" is too much`},
		},
		{
			"no such operator", v1alpha1.IPPoolSpec{NATOutgoing: true, NodeSelector: zone("Like", "a")}, "selvage [] nat=true disabled=false [] 0/0",
			[]string{"spec.nodeSelector.matchExpressions[0].operator"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := PoolFrom(&v1alpha1.IPPool{Spec: tt.spec})
			if got := told(p); got != tt.want {
				t.Errorf("%s,\nwant %s", got, tt.want)
			}
			checkErr(t, p.Err, tt.errs)
		})
	}
	p := apiPool("p", "10.1.0.0/16")
	p.UID, p.ResourceVersion, p.CreationTimestamp = "u", "7", metav1.NewTime(time.Unix(1234, 0))
	p.Spec.Bandwidth = &v1alpha1.Bandwidth{Ingress: quantity("1.5M")}
	before := p.DeepCopy()
	want := policy.Meta{Name: "p", UID: "u", ResourceVersion: "7"}
	if got := PoolFrom(p); got.Meta != want || got.Created != 1234 {
		t.Errorf("%+v, created at %d", got.Meta, got.Created)
	}
	// Others may look at the object at the same time.
	if !reflect.DeepEqual(before, p) {
		t.Errorf("the object was changed: %#v, before %#v", p.Spec.Bandwidth, before.Spec.Bandwidth)
	}
}

// checkErr checks that an error is one line that says each of these once.
func checkErr(t *testing.T, err error, texts []string) {
	t.Helper()
	if (err != nil) != (len(texts) > 0) || err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("error = %v", err)
	}
	for _, text := range texts {
		if err != nil && strings.Count(err.Error(), text) != 1 {
			t.Errorf("%q is not in %q", text, err)
		}
	}
}

func TestCalicoPoolFrom(t *testing.T) {
	p := apiCalicoPool("p", "10.1.0.0/16")
	p.CreationTimestamp = metav1.NewTime(time.Unix(1234, 0))
	p.Spec.NATOutgoing, p.Spec.Disabled, p.Spec.NodeSelector = true, true, `zone == "b"`
	got := CalicoPoolFrom(p)
	if text := told(got); text != "calico [10.1.0.0/16] nat=true disabled=true [zone=b] 0/0" || got.Created != 1234 || got.Err != nil {
		t.Errorf("%s, created at %d, %v", text, got.Created, got.Err)
	}
	p.Spec = calico.IPPoolSpec{CIDR: "10.1.0.7/16", NATOutgoing: true, NodeSelector: `zone == "a" || zone == "b"`}
	got = CalicoPoolFrom(p)
	if text := told(got); text != "calico [] nat=true disabled=false [] 0/0" {
		t.Error(text)
	}
	checkErr(t, got.Err, []string{"spec.cidr: Invalid value", "spec.nodeSelector: Invalid value", "write 10.1.0.0/16", `not understood from "|| zone`})
}

func TestCalicoSelector(t *testing.T) {
	// The nodes, by name, with their labels.
	nodes := []struct {
		name   string
		labels policy.Labels
	}{
		{"none", nil},
		{"a", policy.NewLabels(map[string]string{"zone": "a", "example.com/rack-1": "7"})},
		{"b", policy.NewLabels(map[string]string{"zone": "b", "all": "x", "inner": "i"})},
	}
	for text, want := range map[string]string{
		"": "none a b", " \t ": "none a b", "all()": "none a b", " all( ) && all()": "none a b",
		"has(zone)": "a b", "has( zone )": "a b", "!has(zone)": "none", "! ! has(zone)": "a b",
		`zone == "a"`: "a", `zone=='a'`: "a", `zone != "a"`: "none b", `!zone == "a"`: "none b", `!zone != 'a'`: "a",
		`zone in {"a", 'b'}`: "a b", `zone in{"a",}`: "a", `zone not in {"a"}`: "none b", `zone notin {"a"}`: "none b", `!zone in {"a"}`: "none b",
		`has(zone) && zone != "a"`: "b", `(has(zone)) && ((zone != "b") && all())`: "a", `zone == "a" && zone == "b"`: "",
		`example.com/rack-1 == "7"`: "a", `all == "x"`: "b", `inner in {"i"}`: "b", `has(inner)&&has(all)`: "b", `zone == ""`: "",
	} {
		s, err := calicoSelector(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		var got []string
		for _, n := range nodes {
			if (&policy.Pool{Nodes: s}).On(n.labels) {
				got = append(got, n.name)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q selects %v, want %s", text, got, want)
		}
	}
	for _, text := range []string{
		`a == "x" || b == "y"`, `a contains "x"`, `a starts with "x"`, `a ends with "x"`, "global()", "!all()", "!(has(a))",
		"has()", "has(a", "has(a b)", "all(", "all(a)", "zone", "zone ==", "zone == a", `zone = "a"`, `zone == "a`, `"a" == zone`,
		"zone in", `zone in "a"`, "zone in {}", `zone in {"a"`, `zone in {"a" "b"}`, `zone not {"a"}`, "&& has(a)", "has(a) &&", "has(a) & has(b)", "has(a) has(b)",
		"(has(a)", "has(a))", "()", "!", `zone == "not a value"`, `-zone- == "a"`, "has(a)\n&& has(b)", strings.Repeat("(", 1<<20),
	} {
		s, err := calicoSelector(text)
		if err == nil || s != nil || len(err.Error()) > 500 {
			t.Errorf("%.40q: %v, %v", text, s, err)
		}
	}
}

func TestServiceCIDRFrom(t *testing.T) {
	s := apiServices("kubernetes", "10.96.0.1/12", "fd00:96::/112", "nonsense")
	s.CreationTimestamp = metav1.NewTime(time.Unix(1234, 0))
	if got := ServiceCIDRFrom(s); fmt.Sprint(got.CIDRs) != "[10.96.0.0/12 fd00:96::/112]" || got.Created != 1234 || got.Name != "kubernetes" {
		t.Errorf("%+v", got)
	}
}

// TestPoolUnchanged changes each field of a pool in turn: all of them count, but for the
// resource version.
func TestPoolUnchanged(t *testing.T) {
	base := func() *v1alpha1.IPPool {
		p := apiPool("p", "10.1.0.0/16")
		p.Spec.Bandwidth = &v1alpha1.Bandwidth{Ingress: quantity("1M"), Egress: quantity("1M")}
		p.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "a"}}
		return p
	}
	for name, change := range map[string]func(*v1alpha1.IPPool){
		"uid":      func(p *v1alpha1.IPPool) { p.UID = "other" },
		"created":  func(p *v1alpha1.IPPool) { p.CreationTimestamp = metav1.NewTime(time.Unix(7, 0)) },
		"cidrs":    func(p *v1alpha1.IPPool) { p.Spec.CIDRs = []string{"10.2.0.0/16"} },
		"nat":      func(p *v1alpha1.IPPool) { p.Spec.NATOutgoing = true },
		"disabled": func(p *v1alpha1.IPPool) { p.Spec.Disabled = true },
		"nodes":    func(p *v1alpha1.IPPool) { p.Spec.NodeSelector.MatchLabels["zone"] = "b" },
		"no nodes": func(p *v1alpha1.IPPool) { p.Spec.NodeSelector.MatchLabels["zone"] = "not a value" },
		"any node": func(p *v1alpha1.IPPool) { p.Spec.NodeSelector = nil },
		"ingress":  func(p *v1alpha1.IPPool) { p.Spec.Bandwidth.Ingress = quantity("2M") },
		"egress":   func(p *v1alpha1.IPPool) { p.Spec.Bandwidth.Egress = nil },
		"error":    func(p *v1alpha1.IPPool) { p.Spec.CIDRs = append(p.Spec.CIDRs, "nonsense") },
	} {
		changed := base()
		change(changed)
		if unchanged(PoolFrom(base()), PoolFrom(changed)) {
			t.Errorf("a change of %s is none", name)
		}
	}
	same := base()
	same.ResourceVersion, same.Labels = "8", map[string]string{"a": "b"}
	if !unchanged(PoolFrom(base()), PoolFrom(same)) {
		t.Error("what nobody looks at is a change")
	}
	a, b := ServiceCIDRFrom(apiServices("s", "10.96.0.0/12")), ServiceCIDRFrom(apiServices("s", "10.97.0.0/16"))
	if unchanged(a, b) || !unchanged(a, ServiceCIDRFrom(apiServices("s", "10.96.0.0/12"))) {
		t.Error("a change of a range of Services is not told apart")
	}
}
