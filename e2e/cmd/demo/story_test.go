package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/informer"
)

// requireRoot skips a test that needs privileges, or fails it where a skip
// would hide that it never ran.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
		t.Fatal("NOT RUN: network namespaces need root")
	}
	t.Skip("SKIPPED, NOT TESTED: network namespaces need root")
}

// TestClaims holds what the story claims against the oracle, and the story's
// rows against its columns.
func TestClaims(t *testing.T) {
	requireRoot(t)
	w, err := world.New()
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{world: w, dir: t.TempDir(), places: map[string]*placed{}}
	defer func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	}()
	if err := c.write(clusterManifests()...); err != nil {
		t.Fatal(err)
	}
	s, err := informer.Load(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.build(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	steps := slices.Clone(story)
	for _, a := range acts() {
		if a.step != nil {
			steps = append(steps, *a.step)
		}
	}
	for i, step := range steps {
		if i == len(story) {
			step.add = append([]string{"west", "east"}, step.add...)
		}
		if err := c.write(step.add...); err != nil {
			t.Fatal(err)
		}
		if err := c.remove(step.remove...); err != nil {
			t.Fatal(err)
		}
		if s, err = informer.Load(c.dir); err != nil {
			t.Fatal(err)
		}
		if len(step.about) > 100 || rowWidth+2+len(step.columns)*columnWidth > 100 {
			t.Errorf("step %d is wider than 100 columns", i+1)
		}
		for _, row := range step.claims {
			if len(row.claims) != len(step.columns) {
				t.Errorf("step %d: %s has %d claims for %d columns", i+1, row.from, len(row.claims), len(step.columns))
				continue
			}
			for j, column := range step.columns {
				claim := claims[row.claims[j]]
				to, err := c.target(column)
				if err != nil {
					t.Fatal(err)
				}
				if got := word(c.expected(s, row.from, to)); claim != "" && got != claim {
					t.Errorf("step %d, %s: %s to %s is claimed %s, the oracle says %s", i+1, step.title, row.from, column, claim, got)
				}
			}
		}
	}
	left, err := filepath.Glob(filepath.Join(c.dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("half-written manifests stay: %v (%v)", left, err)
	}
}
