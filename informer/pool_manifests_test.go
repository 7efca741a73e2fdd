package informer

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func pool1(name, spec string) string {
	return "apiVersion: selvage.dev/v1alpha1\nkind: IPPool\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
}

func calicoPool1(name, apiVersion, spec string) string {
	return "apiVersion: " + apiVersion + "\nkind: IPPool\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
}

func TestDecodePools(t *testing.T) {
	const calicoSpec = "{cidr: 10.2.0.0/16, natOutgoing: true, blockSize: 26, ipipMode: Always, vxlanMode: Never, nodeSelector: all(), allowedUses: [Workload]}"
	for _, tt := range []struct {
		name, file, data string
		want             []string
	}{
		{"selvage.dev", "a.yaml", pool1("p", "{cidrs: [10.1.0.0/16, 'fd00:1::/56'], natOutgoing: true, bandwidth: {ingress: 10M, egress: 1500000}}"), []string{"IPPool p"}},
		{"as the API server has it", "a.yaml", calicoPool1("p", "crd.projectcalico.org/v1", calicoSpec), []string{"CalicoPool p"}},
		{"as calicoctl has it", "a.yaml", calicoPool1("p", "projectcalico.org/v3", calicoSpec), []string{"CalicoPool p"}},
		{"JSON", "a.json", `{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"p"},"spec":{"cidr":"10.2.0.0/16","x":{}}}`, []string{"CalicoPool p"}},
		{"lists", "a.yaml", "apiVersion: selvage.dev/v1alpha1\nkind: IPPoolList\nitems:\n- {metadata: {name: p}, spec: {cidrs: [10.1.0.0/16]}}\n---\napiVersion: projectcalico.org/v3\nkind: IPPoolList\nitems:\n- {metadata: {name: p}, spec: {cidr: 10.1.0.0/16}}\n",
			[]string{"IPPool p", "CalicoPool p"}},
		{"pools of others", "a.yaml", calicoPool1("p", "whereabouts.cni.cncf.io/v1alpha1", "{range: x}") + "---\napiVersion: kubeovn.io/v1\nkind: IPPoolList\nitems: [{}]\n", nil},
		{"ranges of Services", "a.yaml", "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: s}\nspec: {cidrs: [10.96.0.0/12]}\n", []string{"ServiceCIDR s"}},
		{"the same name twice", "a.yaml", pool1("p", "{cidrs: [10.1.0.0/16]}") + "---\n" + calicoPool1("p", "projectcalico.org/v3", calicoSpec), []string{"IPPool p", "CalicoPool p"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects, errs := Decode(tt.file, []byte(tt.data))
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			if diff := cmp.Diff(tt.want, names(objects)); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
		})
	}
}

// TestBadPools puts something wrong in the place of good objects: it is refused as the
// API server would, and what was in force stays.
func TestBadPools(t *testing.T) {
	const services = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: s}\nspec: "
	good := map[string]string{
		"a.yaml": pool1("p", "{cidrs: [10.1.0.0/16]}"), "b.yaml": calicoPool1("p", "crd.projectcalico.org/v1", "{cidr: 10.2.0.0/16}"),
		"c.yaml": services + "{cidrs: [10.96.0.0/12]}\n",
	}
	for _, tt := range []struct {
		name, file, bad string
		reason          Reason
		field, want     string
	}{
		{"no blocks", "a.yaml", pool1("p", "{cidrs: []}"), ReasonInvalid, "spec.cidrs", "at least one block"},
		{"too many blocks", "a.yaml", pool1("p", "{cidrs: ["+strings.Repeat("10.1.0.0/16, ", 17)+"]}"), ReasonInvalid, "", "must have at most 16 items"},
		{"no block", "a.yaml", pool1("p", "{cidrs: [10.1.0.0]}"), ReasonInvalid, "spec.cidrs[0]", "must be a block of addresses"},
		{"bits of a host", "a.yaml", pool1("p", "{cidrs: [10.1.0.1/16]}"), ReasonInvalid, "spec.cidrs[0]", "write 10.1.0.0/16"},
		{"overlap", "a.yaml", pool1("p", "{cidrs: [10.1.0.0/16, 10.0.0.0/8]}"), ReasonInvalid, "spec.cidrs[1]", "overlaps 10.1.0.0/16"},
		{"too slow", "a.yaml", pool1("p", "{cidrs: [10.1.0.0/16], bandwidth: {egress: 10m}}"), ReasonInvalid, "spec.bandwidth.egress", "too little"},
		{"no quantity", "a.yaml", pool1("p", "{cidrs: [10.1.0.0/16], bandwidth: {egress: 10Mbit}}"), ReasonField, "", "quantities must match"},
		{"no selector", "a.yaml", pool1("p", "{cidrs: [10.1.0.0/16], nodeSelector: {matchLabels: {a: 'b c'}}}"), ReasonInvalid, "spec.nodeSelector.matchLabels", "a valid label must"},
		{"unknown field", "a.yaml", pool1("p", "{cidrs: [10.1.0.0/16], natOutgoin: true}"), ReasonField, "spec.natOutgoin", "unknown field"},
		{"another version", "a.yaml", strings.Replace(good["a.yaml"], "v1alpha1", "v1", 1), ReasonKind, "", `"selvage.dev/v1" is not known for this kind, only selvage.dev/v1alpha1, crd.projectcalico.org/v1, projectcalico.org/v3`},
		{"another version of Calico", "b.yaml", strings.Replace(good["b.yaml"], "/v1", "/v9", 1), ReasonKind, "", "only selvage.dev/v1alpha1, crd"},
		{"no version", "b.yaml", "kind: IPPool\nmetadata: {name: p}\n", ReasonKind, "", "apiVersion is missing"},
		{"no block of Calico", "b.yaml", calicoPool1("p", "projectcalico.org/v3", "{cidr: 10.2.0.0/99}"), ReasonInvalid, "spec.cidr", "must be a block"},
		{"wrong type", "b.yaml", calicoPool1("p", "projectcalico.org/v3", "{cidr: 10.2.0.0/16, natOutgoing: often}"), ReasonField, "spec.natOutgoing", "string where true or false"},
		{"no range", "c.yaml", services + "{}\n", ReasonInvalid, "spec.cidrs", "at least one block"},
		{"no CIDR", "c.yaml", services + "{cidrs: [services]}\n", ReasonInvalid, "spec.cidrs[0]", "must be a CIDR"},
		{"an older version", "c.yaml", strings.Replace(good["c.yaml"], "/v1", "/v1beta1", 1), ReasonKind, "", "only networking.k8s.io/v1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newShelf(map[string]string{"a.yaml": good["a.yaml"], "b.yaml": good["b.yaml"], "c.yaml": good["c.yaml"]})
			if errs := s.settled(); len(errs) > 0 || len(s.held) != len(good) {
				t.Fatalf("%v, %v", errs, s.inForce())
			}
			before := s.inForce()
			held := map[identity]apiObject{}
			for id, h := range s.held {
				held[id] = h.object
			}
			s.files[tt.file] = tt.bad
			errs := s.settled()
			if len(errs) != 1 {
				t.Fatalf("errors = %v", errs)
			}
			if e := errs[0]; e.Reason != tt.reason || tt.field != "" && e.Field != tt.field || !strings.Contains(e.Error(), tt.want) || strings.Contains(e.Error(), "\n") {
				t.Errorf("%s: field %q, %q", e.Reason, e.Field, e)
			}
			if now := s.inForce(); !slices.Equal(now, before) {
				t.Errorf("in force: %v, before %v", now, before)
			}
			for id, h := range s.held {
				if h.object != held[id] {
					t.Errorf("%v is not the last good version", id)
				}
			}
			if got := s.standing(errs[0]); !strings.HasPrefix(got, "the last good version") {
				t.Errorf("in force is %s", got)
			}
		})
	}
}

// TestPoolName: policies refer to a pool by a label. The API server of Calico has no such
// rule.
func TestPoolName(t *testing.T) {
	long := strings.Repeat("p", 64)
	if _, errs := Decode("a.yaml", []byte(pool1(long, "{cidrs: [10.1.0.0/16]}"))); len(errs) != 1 || !strings.Contains(errs[0].Error(), "metadata.name: Too long") {
		t.Errorf("errors = %v", errs)
	}
	if _, errs := Decode("a.yaml", []byte(calicoPool1(long, "projectcalico.org/v3", "{cidr: 10.1.0.0/16}"))); len(errs) > 0 {
		t.Errorf("errors = %v", errs)
	}
	if _, errs := Decode("a.yaml", []byte(pool1(long[1:], "{cidrs: [10.1.0.0/16]}"))); len(errs) > 0 {
		t.Errorf("errors = %v", errs)
	}
}

// TestManifestsOfPools follows a directory with pools.
func TestManifestsOfPools(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "pools.yaml", pool1("p", "{cidrs: [10.1.0.0/16]}")+"---\n"+calicoPool1("p", "projectcalico.org/v3", "{cidr: 10.2.0.0/16, nodeSelector: a || b}"))
	write(t, dir, "services.yaml", "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: s}\nspec: {cidrs: [10.96.0.0/12]}\n")
	snapshot, err := Load(dir)
	if err != nil || len(snapshot.Pools) != 2 || len(snapshot.Services) != 1 {
		t.Errorf("snapshot = %+v, %v", snapshot, err)
	}
	sink, log := follow(t, dir, ManifestsOptions{})
	if got := strings.Join(sink.initial, " "); got != "+IPPool calico/p +IPPool selvage/p +ServiceCIDR s" {
		t.Errorf("initial batch: %s", got)
	}
	// What we do not understand of a selector is the pool's matter.
	sink.has("IPPool calico/p", "spec.nodeSelector: Invalid value")
	write(t, dir, "pools.yaml", pool1("p", "{cidrs: [10.1.0.0/16], natOutgoing: true}"))
	sink.has("IPPool selvage/p", "true")
	sink.lacks("IPPool calico/p")
	if got := log.with("refused"); len(got) > 0 {
		t.Errorf("errors: %v", got)
	}
	write(t, dir, "pools.yaml", pool1("p", "{cidrs: [10.1.0.1/16]}"))
	eventually(t, "the mistake is logged", func() bool { return len(log.with("refused")) == 1 })
	if got := log.with("refused"); !strings.Contains(got[0], `in_force="the last good version"`) || !strings.Contains(got[0], `object="IPPool p"`) {
		t.Errorf("logged %s", got[0])
	}
	if v, ok := sink.get("IPPool selvage/p"); !ok || !strings.Contains(v, "true") {
		t.Errorf("in force is %q", v)
	}
}
