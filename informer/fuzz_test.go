package informer

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
)

// FuzzManifests replaces a file with anything. Nothing may panic; and an object
// that was in force may only go if the new text leaves no doubt that it does
// not define it.
func FuzzManifests(f *testing.F) {
	good := pod1("a", "1") + "---\n" + policy1("p", "1", "{podSelector: {}}") + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n"
	f.Add([]byte(good), false)
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}]}`), true)
	f.Add([]byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems:\n- metadata: {name: p}\n  spec: {podSelector: {matchExpressions: [{key: a, operator: In}]}}\n"), false)
	f.Add([]byte("a: &a [*a]\n--- !!binary x\n...\n%TAG\n---\n? {}\n: [\n"), false)
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{ports: [{name: x, containerPort: -1}]}]}\nstatus: {podIPs: [{ip: '::ffff:1.2.3.4%x'}]}\n"), false)
	f.Add([]byte("kind: Pod\napiVersion: v1\nmetadata: {name: 1, namespace: [x]}\n"), false)
	f.Add([]byte(`{"kind":"Pod"}{"kind":`), true)
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
