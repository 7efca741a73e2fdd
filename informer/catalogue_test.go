package informer

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const settleTime = time.Second

// shelf is a catalogue with the files that it looks at.
type shelf struct {
	*catalogue
	files  map[string]string
	failed map[string]bool
	now    time.Time
}

func newShelf(files map[string]string) *shelf {
	return &shelf{newCatalogue(settleTime), files, map[string]bool{}, epoch}
}

// see looks once.
func (s *shelf) see() finding {
	t := &tree{failed: map[string]*ManifestError{}}
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		if s.failed[name] {
			continue
		}
		t.files = append(t.files, file{name, []byte(s.files[name])})
	}
	for name, failed := range s.failed {
		if !failed {
			continue
		}
		t.failed[name] = &ManifestError{File: name, Reason: ReasonRead, Err: errors.New("input/output error")}
	}
	return s.catalogue.look(t, s.now)
}

// settled looks until nothing can come of it any more.
func (s *shelf) settled() []*ManifestError {
	errs := s.see().errors
	s.now = s.now.Add(settleTime)
	return append(errs, s.see().errors...)
}

// first returns one of the errors that there are.
func (s *shelf) first() *ManifestError {
	for _, err := range s.reported {
		return err
	}
	return nil
}

// inForce returns what is held, with one detail that tells versions apart.
func (s *shelf) inForce() []string {
	var all []string
	for id, h := range s.held {
		all = append(all, strings.TrimPrefix(fmt.Sprintf("%s %s/%s v%s", kindInfo[id.kind].kind, id.namespace, id.name, h.object.GetLabels()["v"]), " "))
	}
	slices.Sort(all)
	return all
}

func pod1(name, version string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", labels: {v: '" + version + "'}}\n"
}

func policy1(name, version, spec string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: " + name + ", labels: {v: '" + version + "'}}\nspec: " + spec + "\n"
}

// TestBadInput puts something wrong in the place of two good objects: what is
// said of it, and what stays in force.
func TestBadInput(t *testing.T) {
	good := policy1("p", "1", "{podSelector: {}}") + "---\n" + pod1("a", "1")
	const kept = "NetworkPolicy default/p v1"
	tests := []struct {
		name string
		bad  string
		// want are the lines, without the name of the file.
		want   []string
		reason Reason
		field  string
		held   []string
	}{
		{
			"not YAML at all", "\t{{", []string{": document 1 (line 1): "}, ReasonSyntax, "",
			[]string{kept, "Pod default/a v1"},
		},
		{
			"a document that does not parse", "# first\n---\nkind: [\n---\n" + pod1("a", "2"),
			[]string{": document 1 (line 3): "}, ReasonSyntax, "", []string{kept, "Pod default/a v2"},
		},
		{
			"a key twice", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nkind: Pod\n",
			[]string{`: document 1 (line 1): line 4: key "kind" already set in map`}, ReasonSyntax, "",
			[]string{kept, "Pod default/a v1"},
		},
		{
			"no object", "just words\n", []string{": document 1 (line 1): not a Kubernetes object"}, ReasonSyntax, "",
			[]string{kept, "Pod default/a v1"},
		},
		{
			"no kind", "metadata: {name: a}\n", []string{": document 1 (line 1): not a Kubernetes object: kind is missing"}, ReasonKind, "",
			[]string{kept, "Pod default/a v1"},
		},
		{
			"an unknown field", policy1("p", "2", "{podSelector: {}, ingres: []}") + "---\n" + pod1("a", "2"),
			[]string{`: document 1 (line 1): NetworkPolicy default/p: unknown field "spec.ingres"`}, ReasonField, "spec.ingres",
			[]string{kept, "Pod default/a v2"},
		},
		{
			"two unknown fields", policy1("p", "2", "{podSelector: {}, a: 1, b: 2}") + "---\n" + pod1("a", "1"),
			[]string{`: document 1 (line 1): NetworkPolicy default/p: unknown field "spec.a", unknown field "spec.b"`}, ReasonField, "spec.a, spec.b",
			[]string{kept, "Pod default/a v1"},
		},
		{
			"a field of the wrong type", pod1("a", "1") + "---\n" + policy1("p", "2", "{podSelector: {}, policyTypes: Ingress}"),
			[]string{": document 2 (line 5): NetworkPolicy default/p: spec.policyTypes: string where a list is wanted"}, ReasonField, "spec.policyTypes",
			[]string{kept, "Pod default/a v1"},
		},
		{
			"a label that is a number", pod1("a", "1") + "---\n" + policy1("p", "2", "{podSelector: {matchLabels: {port: 80}}}"),
			[]string{": document 2 (line 5): NetworkPolicy default/p: spec.podSelector.matchLabels: number where a string is wanted"}, ReasonField, "spec.podSelector.matchLabels",
			[]string{kept, "Pod default/a v1"},
		},
		{
			"an apiVersion of old", strings.Replace(good, "networking.k8s.io/v1", "extensions/v1beta1", 1),
			[]string{`: document 1 (line 1): NetworkPolicy default/p: apiVersion "extensions/v1beta1" is not known for this kind, only networking.k8s.io/v1`}, ReasonKind, "",
			[]string{kept, "Pod default/a v1"},
		},
		{
			"an invalid policy", policy1("p", "2", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/99}}]}]}") + "---\n" + pod1("a", "1"),
			[]string{": document 1 (line 1): NetworkPolicy default/p: spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "}, ReasonInvalid, "spec.ingress[0].from[0].ipBlock.cidr",
			[]string{kept, "Pod default/a v1"},
		},
		{
			"an invalid address", policy1("p", "1", "{podSelector: {}}") + "---\n" + pod1("a", "2") + "status: {podIP: 10.0.0.300}\n",
			[]string{": document 2 (line 6): Pod default/a: status.podIP: Invalid value: "}, ReasonInvalid, "status.podIP",
			[]string{kept, "Pod default/a v1"},
		},
		{
			"a name that is none", policy1("p", "1", "{podSelector: {}}") + "---\n" + pod1("../a", "2"),
			[]string{": document 2 (line 6): Pod default/../a: metadata.name: Invalid value: "}, ReasonInvalid, "metadata.name",
			[]string{kept, "Pod default/a v1"},
		},
		{
			"the same object twice", good + "---\n" + pod1("a", "2"),
			[]string{": document 3 (line 10): Pod default/a: is already defined in m.yaml, document 2 (line 6), which stays in force"}, ReasonDuplicate, "",
			[]string{kept, "Pod default/a v1"},
		},
		{
			"a bad item of a list", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a, labels: {v: '2'}}}\n- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {x: 1}}\n",
			[]string{`: document 1 (line 1): NetworkPolicy default/p: unknown field "spec.x"`}, ReasonField, "items[1].spec.x",
			[]string{kept, "Pod default/a v2"},
		},
		{
			"a bad list", "apiVersion: v1\nkind: PodList\nitem: []\n",
			[]string{`: document 1 (line 1): PodList: unknown field "item"`}, ReasonField, "item",
			[]string{kept, "Pod default/a v1"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newShelf(map[string]string{"m.yaml": good, "other.yaml": pod1("b", "1")})
			if errs := s.settled(); len(errs) > 0 {
				t.Fatal(errs)
			}
			s.files["m.yaml"] = tt.bad
			s.files["other.yaml"] = pod1("b", "2") // Everything else goes on.
			errs := s.settled()
			if len(errs) != len(tt.want) {
				t.Fatalf("errors = %v, want %d", errs, len(tt.want))
			}
			for i, err := range errs {
				if got := err.Error(); !strings.HasPrefix(got, "m.yaml"+tt.want[i]) || strings.Contains(got, "\n") {
					t.Errorf("error = %q,\nwant a line that begins with %q", got, "m.yaml"+tt.want[i])
				}
				if err.Reason != tt.reason || err.Field != tt.field {
					t.Errorf("reason %q, field %q; want %q, %q", err.Reason, err.Field, tt.reason, tt.field)
				}
			}
			if diff := cmp.Diff(append(slices.Clone(tt.held), "Pod default/b v2"), s.inForce()); diff != "" {
				t.Errorf("in force (-want +got):\n%s", diff)
			}
			// Said once, until the file changes.
			if again := s.settled(); len(again) > 0 {
				t.Errorf("said again: %v", again)
			}
			s.files["m.yaml"] = tt.bad + "\n# touched"
			if again := s.settled(); len(again) != len(tt.want) {
				t.Errorf("after the file changed: %v, want %d errors", again, len(tt.want))
			}
			// And once it is mended, it counts.
			s.files["m.yaml"] = policy1("p", "3", "{podSelector: {}}")
			f := s.see()
			if diff := cmp.Diff([]string{"m.yaml"}, f.restored); diff != "" {
				t.Errorf("restored (-want +got):\n%s", diff)
			}
			s.now = s.now.Add(settleTime)
			s.see()
			if diff := cmp.Diff([]string{"NetworkPolicy default/p v3", "Pod default/b v2"}, s.inForce()); diff != "" {
				t.Errorf("in force when mended (-want +got):\n%s", diff)
			}
		})
	}
}

func TestInvalidFromTheFirst(t *testing.T) {
	const wrong = "{podSelector: {}, ingress: [{ports: [{port: 99999}]}]}"
	s := newShelf(map[string]string{"m.yaml": policy1("p", "1", wrong)})
	if errs := s.settled(); len(errs) != 1 || errs[0].Reason != ReasonInvalid {
		t.Fatalf("errors = %v", errs)
	}
	want := func(held ...string) {
		t.Helper()
		if diff := cmp.Diff(held, s.inForce()); diff != "" {
			t.Errorf("in force (-want +got):\n%s", diff)
		}
	}
	want("NetworkPolicy default/p v1") // Whom it selects must be isolated.
	if got := s.standing(s.first()); !strings.HasPrefix(got, "what can be understood") {
		t.Errorf("in force: %s", got)
	}
	s.files["m.yaml"] = policy1("p", "2", wrong)
	s.settled()
	want("NetworkPolicy default/p v2")
	s.files["m.yaml"] = policy1("p", "3", "{podSelector: {}}")
	s.settled()
	want("NetworkPolicy default/p v3")
	s.files["m.yaml"] = policy1("p", "4", wrong)
	s.settled()
	want("NetworkPolicy default/p v3") // Now there is a good one.
	if got := s.standing(s.first()); got != "the last good version" {
		t.Errorf("in force: %s", got)
	}
}

func TestDuplicates(t *testing.T) {
	s := newShelf(map[string]string{"b.yaml": pod1("a", "b"), "c.yaml": pod1("a", "c")})
	want := func(held ...string) {
		t.Helper()
		if diff := cmp.Diff(held, s.inForce()); diff != "" {
			t.Errorf("in force (-want +got):\n%s", diff)
		}
	}
	errs := s.settled()
	if len(errs) != 1 || !strings.Contains(errs[0].Error(), "c.yaml: document 1 (line 1): Pod default/a: is already defined in b.yaml") {
		t.Errorf("errors = %v", errs)
	}
	want("Pod default/a vb")
	s.files["a.yaml"] = pod1("a", "a") // The order of paths decides, not that of time.
	s.settled()
	want("Pod default/a va")
	s.files["a.yaml"] = "{{" // It may have it still.
	s.settled()
	want("Pod default/a va")
	delete(s.files, "a.yaml")
	f := s.see() // The next takes over at once, and nothing is ever missing.
	if !f.confirm.IsZero() || len(f.removed) > 0 {
		t.Errorf("missing until %s, removed %v", f.confirm, f.removed)
	}
	want("Pod default/a vb")
	s.files["d/x.yaml"] = s.files["b.yaml"]
	delete(s.files, "b.yaml")
	delete(s.files, "c.yaml") // A file that moves takes its objects along.
	s.settled()
	want("Pod default/a vb")
}

// TestCatalogueForgets: whatever was there before, what is in force in the end
// is what the files say, as long as they are in order.
func TestCatalogueForgets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		object := rapid.Custom(func(t *rapid.T) string {
			name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
			version := rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "version")
			if rapid.Bool().Draw(t, "policy") {
				return policy1(name, version, "{podSelector: {}}")
			}
			return pod1(name, version)
		})
		s := newShelf(map[string]string{})
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			name := rapid.SampledFrom([]string{"1.yaml", "2.yaml", "d/3.yaml"}).Draw(t, "file")
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0:
				delete(s.files, name)
			case 1:
				s.files[name] = "[" // broken
			case 2:
				s.failed[name] = !s.failed[name]
			default:
				s.files[name] = strings.Join(rapid.SliceOfN(object, 0, 3).Draw(t, "objects"), "---\n")
			}
			s.now = s.now.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "wait")) * settleTime / 2)
			s.see()
		}
		clear(s.failed)
		maps.DeleteFunc(s.files, func(_, text string) bool { return text == "[" })
		s.settled()
		fresh := newShelf(s.files)
		fresh.settled()
		if diff := cmp.Diff(fresh.inForce(), s.inForce()); diff != "" {
			t.Fatalf("in force (-want +got):\n%s", diff)
		}
	})
}

func TestRemoval(t *testing.T) {
	s := newShelf(map[string]string{"m.yaml": pod1("a", "1") + "---\n" + pod1("b", "1"), "sub/n.yaml": pod1("c", "1")})
	s.settled()
	all := []string{"Pod default/a v1", "Pod default/b v1", "Pod default/c v1"}
	want := func(held ...string) {
		t.Helper()
		if diff := cmp.Diff(held, s.inForce()); diff != "" {
			t.Errorf("in force (-want +got):\n%s", diff)
		}
	}
	full := s.files["m.yaml"]
	// Half-written, and whole again before anybody believes it.
	s.files["m.yaml"] = ""
	f := s.see()
	if f.confirm != s.now.Add(settleTime) {
		t.Errorf("look again at %s, want %s", f.confirm, s.now.Add(settleTime))
	}
	s.now = s.now.Add(settleTime - 1)
	s.see()
	want(all...)
	s.files["m.yaml"] = full
	s.see()
	s.files["m.yaml"] = pod1("a", "1")
	s.see()
	s.now = s.now.Add(1) // Missing for an instant only, since it was seen meanwhile.
	s.see()
	want(all...)
	s.now = s.now.Add(settleTime)
	if f := s.see(); len(f.removed) != 1 || f.removed[0].name != "b" {
		t.Errorf("removed %v, want b", f.removed)
	}
	want(all[0], all[2])

	// What cannot be read is not gone: a file, a directory, all of it.
	for _, failed := range []string{"m.yaml", "."} {
		s.failed[failed] = true
		delete(s.files, "m.yaml")
		s.settled()
		want(all[0], all[2])
		delete(s.failed, failed)
		s.files["m.yaml"] = pod1("a", "1")
	}
	s.failed["sub"] = true
	delete(s.files, "sub/n.yaml")
	if errs := s.settled(); len(errs) != 1 || errs[0].Reason != ReasonRead {
		t.Errorf("errors = %v", errs)
	}
	want(all[0], all[2])
	delete(s.failed, "sub")
	delete(s.files, "m.yaml")
	s.settled()
	want()
}
