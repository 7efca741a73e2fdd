package informer

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/selvage-net/selvage/informer/api/calico"
)

// FuzzManifests replaces a file with anything. Nothing may panic; and an object
// that was in force may only go if the new text leaves no doubt that it does
// not define it.
func FuzzManifests(f *testing.F) {
	good := pod1("a", "1") + "---\n" + pool1("p", "{cidrs: [10.1.0.0/16]}") + "---\n" + calicoPool1("p", "crd.projectcalico.org/v1", "{cidr: 10.2.0.0/16}") + "---\n" + policy1("p", "1", "{podSelector: {}}") + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n"
	f.Add([]byte(good), false)
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}]}`), true)
	f.Add([]byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems:\n- metadata: {name: p}\n  spec: {podSelector: {matchExpressions: [{key: a, operator: In}]}}\n"), false)
	f.Add([]byte("a: &a [*a]\n--- !!binary x\n...\n%TAG\n---\n? {}\n: [\n"), false)
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{ports: [{name: x, containerPort: -1}]}]}\nstatus: {podIPs: [{ip: '::ffff:1.2.3.4%x'}]}\n"), false)
	f.Add([]byte("kind: Pod\napiVersion: v1\nmetadata: {name: 1, namespace: [x]}\n"), false)
	f.Add([]byte(`{"kind":"Pod"}{"kind":`), true)
	f.Add([]byte(pool1("p", "{cidrs: [10.1.0.0/16, 'fd00::/56', 10.1.0.7/8, '::ffff:10.0.0.0/104'], bandwidth: {ingress: 1e99}, nodeSelector: {matchExpressions: [{key: a, operator: In}]}}")+
		"---\n"+calicoPool1("p", "projectcalico.org/v3", "{cidr: 10.2.0.0/16, x: y, nodeSelector: \"!has(a) && (b not in {'c', 'd'} || all())\"}")), false)
	f.Add([]byte("apiVersion: networking.k8s.io/v1\nkind: ServiceCIDRList\nitems: [{metadata: {name: s}, spec: {cidrs: [10.96.0.0/12, x]}}]\n---\nkind: IPPool\nmetadata: {name: p}\n---\napiVersion: a/b\nkind: IPPoolList\n"), false)
	if manifests, err := filepath.Glob("../policy/testdata/*/objects.yaml"); err == nil {
		for _, name := range manifests {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data, false)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, asJSON bool) {
		name := "m.yaml"
		if asJSON {
			name = "m.json"
		}
		objects, errs := Decode(name, data)
		for _, err := range errs {
			if err.Error() == "" {
				t.Error("an error without words")
			}
		}
		SnapshotOf(objects...)

		// In the shelf it stands where the good file stood.
		s := newShelf(map[string]string{name: good})
		if asJSON {
			s.files = map[string]string{name: `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}`}
		}
		s.settled()
		before := make(map[identity]*heldObject, len(s.held))
		for id, h := range s.held {
			c := *h
			before[id] = &c
		}
		if len(before) == 0 {
			t.Fatal("nothing is in force")
		}
		s.files[name] = string(data)
		s.settled()
		checkKept(t, decode(name, data), before, s.held)
		checkAgain(t, s, objects)
	})
}

// checkKept checks what became of the objects that were in force.
func checkKept(t *testing.T, items []item, before, after map[identity]*heldObject) {
	t.Helper()
	for id, old := range before {
		of := func(it item) bool { return it.id == id }
		doubt := slices.ContainsFunc(items, func(it item) bool { return it.id.name == "" })
		now := after[id]
		first := slices.IndexFunc(items, of)
		switch {
		case first < 0 && !doubt:
			if now != nil {
				t.Errorf("%v is in force, but nothing defines it", id)
			}
		case now == nil:
			t.Errorf("%v is gone because of a mistake", id)
		case first < 0 || items[first].err != nil:
			if now.object != old.object {
				t.Errorf("%v is not the last good version", id)
			}
		}
	}
}

// checkAgain checks that looking again changes nothing.
func checkAgain(t *testing.T, s *shelf, objects []runtime.Object) {
	t.Helper()
	if f := s.see(); len(f.put)+len(f.removed)+len(f.errors)+len(f.restored) > 0 {
		t.Errorf("a second look found something: %+v", f)
	}
	if len(s.held) < min(len(objects), 1) {
		t.Errorf("none of %d objects is in force", len(objects))
	}
}

// FuzzCalicoSelector: whatever is written there, nothing panics, and there is either a
// selector or an error.
func FuzzCalicoSelector(f *testing.F) {
	for _, text := range []string{"all()", `has(a) && !has(b)`, `(a == "x" && b not in {'y', "z"})`, `a != "x" || global()`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p := CalicoPoolFrom(&calico.IPPool{Spec: calico.IPPoolSpec{CIDR: "10.1.0.0/16", NodeSelector: text}})
		if p.Err != nil && p.On(nil) {
			t.Errorf("%q is not understood, and selects nodes", text)
		}
	})
}
