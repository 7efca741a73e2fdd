package observe_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"

	"github.com/selvage-net/selvage/deploy/observe"
)

// TestCurrent sees that what is made of the descriptions is there, and nothing else
// beside it.
func TestCurrent(t *testing.T) {
	files, err := observe.Files(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
		} else if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s is not current: go run ./observe/gen, in deploy/ (-want +got):\n%s", name, diff)
		}
	}
	there, err := filepath.Glob("dashboards/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range there {
		if files[name] == nil {
			t.Errorf("%s is not made by anything", name)
		}
	}
}

// read returns the dashboards as they are in the files, by these. A field that
// Grafana's types do not know is an error.
func read(t *testing.T) map[string]observe.Dashboard {
	t.Helper()
	names, err := fs.Glob(os.DirFS("."), "dashboards/*.json")
	if err != nil || len(names) == 0 {
		t.Fatalf("dashboards %v, %v", names, err)
	}
	all := make(map[string]observe.Dashboard)
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		d, err := observe.Read(text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		again, err := json.Marshal(d)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(generic(t, text), generic(t, again)); diff != "" {
			t.Errorf("%s: what Grafana's types do not know (-file +types):\n%s", name, diff)
		}
		all[name] = d
	}
	return all
}

func generic(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestDashboards sees that Grafana takes the dashboards, and that they have what all of
// them should have.
func TestDashboards(t *testing.T) {
	uids := make(map[string]string)
	for name, d := range read(t) {
		if d.Uid == nil || d.Title == nil || d.Description == nil || !strings.HasPrefix(*d.Uid, "selvage-") {
			t.Errorf("%s: uid, title and description are %v, %v, %v", name, d.Uid, d.Title, d.Description)
			continue
		}
		if other, ok := uids[*d.Uid]; ok {
			t.Errorf("%s and %s have the same uid", name, other)
		}
		uids[*d.Uid] = name
		if d.SchemaVersion < 39 {
			t.Errorf("%s: schema version %d", name, d.SchemaVersion)
		}
		if v := d.Templating.List; len(v) == 0 || v[0].Name != "datasource" || v[0].Type != dashboard.VariableTypeDatasource {
			t.Errorf("%s: the first variable is not the datasource", name)
		}
		checkPanels(t, name, d)
	}
}

// checkPanels asserts that each panel says what it shows, and that none covers another.
func checkPanels(t *testing.T, name string, d observe.Dashboard) {
	t.Helper()
	taken, ids, titles := make(map[[2]uint32]string), make(map[uint32]bool), make(map[string]bool)
	for _, either := range d.Panels {
		p := either.Panel
		if p == nil {
			titles = make(map[string]bool) // those of a section
			continue
		}
		what := name + ": " + *p.Title
		if titles[*p.Title] || ids[*p.Id] {
			t.Errorf("%s is there twice, by its title or its id", what)
		}
		titles[*p.Title], ids[*p.Id] = true, true
		if p.Description == nil || !strings.HasSuffix(*p.Description, ".") {
			t.Errorf("%s: description %v, want sentences", what, p.Description)
		}
		if p.FieldConfig == nil || p.FieldConfig.Defaults.Unit == nil || *p.FieldConfig.Defaults.Unit == "" {
			t.Errorf("%s has no unit", what)
		}
		if p.Datasource == nil || p.Datasource.Uid == nil || *p.Datasource.Uid != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("%s: datasource %+v, %d queries", what, p.Datasource, len(p.Targets))
		}
		g := p.GridPos
		if g.W == 0 || g.H == 0 || g.X+g.W > 24 {
			t.Errorf("%s is at %+v", what, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := taken[[2]uint32{x, y}]; other != "" {
					t.Fatalf("%s covers %s", what, other)
				}
				taken[[2]uint32{x, y}] = *p.Title
			}
		}
	}
}

// TestVariables sees that each variable of a dashboard narrows something down, and that
// there is none for which nobody can choose a value.
func TestVariables(t *testing.T) {
	for name, d := range read(t) {
		var queries strings.Builder
		for _, p := range d.Panels {
			if p.Panel == nil {
				continue
			}
			text, err := json.Marshal(p.Panel.Targets)
			if err != nil {
				t.Fatal(err)
			}
			queries.Write(text)
		}
		var known []string
		for _, v := range d.Templating.List[1:] {
			known = append(known, v.Name)
			if !strings.Contains(queries.String(), "$"+v.Name) {
				t.Errorf("%s: no query has the variable %s", name, v.Name)
			}
		}
		for _, v := range []string{"node", "namespace", "policy", "pool"} {
			if strings.Contains(queries.String(), "$"+v) && !slices.Contains(known, v) {
				t.Errorf("%s: there is no variable %s", name, v)
			}
		}
	}
}
