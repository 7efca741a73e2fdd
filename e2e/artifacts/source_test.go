package artifacts

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"
)

// newProxy makes a directory that is a module proxy with one version of one
// module, and has the Go tool use it and an empty module cache.
func newProxy(t *testing.T, v module.Version, files map[string]string) {
	t.Helper()
	source, proxy, cache := t.TempDir(), t.TempDir(), t.TempDir()
	for name, text := range files {
		writeFile(t, filepath.Join(source, name), text)
	}
	dir := filepath.Join(proxy, v.Path, "@v")
	writeFile(t, filepath.Join(dir, v.Version+".mod"), files["go.mod"])
	writeFile(t, filepath.Join(dir, v.Version+".info"), `{"Version":"`+v.Version+`"}`)
	out, err := os.Create(filepath.Join(dir, v.Version+".zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := modzip.CreateFromDir(out, v, source); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOPROXY", "file://"+proxy)
	t.Setenv("GONOSUMDB", "*")
	t.Setenv("GOMODCACHE", cache)
	t.Cleanup(func() { // what is in there cannot be written to
		if out, err := exec.Command("go", "clean", "-modcache").CombinedOutput(); err != nil {
			t.Errorf("go clean -modcache: %v\n%s", err, out)
		}
	})
}

// TestSource builds the main package of a module, one of whose packages needs a
// module that nobody has.
func TestSource(t *testing.T) {
	v := module.Version{Path: "example.org/other", Version: "v1.2.3"}
	newProxy(t, v, map[string]string{
		"go.mod":          "module example.org/other\n\ngo 1.26.0\n\nrequire example.org/missing v1.0.0\n",
		"main.go":         "package main\n\nimport (\n\t_ \"example.org/other/pkg/cloud\"\n\t\"example.org/other/pkg/text\"\n)\n\nfunc main() { print(text.Text) }\n",
		"pkg/cloud/a.go":  "package cloud\n\nimport _ \"example.org/missing\"\n",
		"pkg/text/a.go":   "package text\n\nconst Text = \"other\"\n",
		"pkg/text/a_c.go": "package text\n",
	})
	y := newTiny(t)
	y.write(t, "go.mod", "module example.org/hello\n\ngo 1.26.0\n\nrequire example.org/other v1.2.3\n")
	y.recipe.Go[0].Source = v.Path
	nested := filepath.Join(y.repo, "e2e", "artifacts", "modules", "hello")
	sum := exec.Command("go", "mod", "download", v.Path)
	sum.Dir = nested
	if out, err := sum.CombinedOutput(); err != nil {
		t.Fatalf("go mod download: %v\n%s", err, out)
	}
	if _, err := y.builder(t).run(t.Context(), []recipe{y.recipe}); err == nil {
		t.Error("the package that cannot be built was built")
	}
	y.recipe.Go[0].Empty = []string{"pkg/cloud"}
	if got := output(t, y.build(t).Binary("hello")); got != "other" {
		t.Errorf("the program says %q, want other", got)
	}
	// The copy is not part of the artifact.
	if left, err := filepath.Glob(filepath.Join(y.cache, "*", "src")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// TestDownload says what was downloaded, and sees that go.sum is obeyed.
func TestDownload(t *testing.T) {
	v := module.Version{Path: "example.org/lib", Version: "v1.0.0"}
	newProxy(t, v, map[string]string{"go.mod": "module example.org/lib\n", "lib.go": "package lib\n\nconst Text = \"lib\"\n"})
	y := newTiny(t)
	y.write(t, "go.mod", "module example.org/hello\n\ngo 1.26.0\n\nrequire example.org/lib v1.0.0\n")
	y.write(t, "main.go", "package main\n\nimport \"example.org/lib\"\n\nfunc main() { print(lib.Text) }\n")
	if _, err := y.builder(t).run(t.Context(), []recipe{y.recipe}); err == nil {
		t.Error("a module without a checksum in go.sum was taken")
	}
	sum := exec.Command("go", "mod", "tidy")
	sum.Dir = filepath.Join(y.repo, "e2e", "artifacts", "modules", "hello")
	sum.Env = append(os.Environ(), "GOMODCACHE="+t.TempDir(), "GOFLAGS=-modcacherw")
	if out, err := sum.CombinedOutput(); err != nil {
		t.Fatalf("go mod tidy: %v\n%s", err, out)
	}
	if got := output(t, y.build(t).Binary("hello")); got != "lib" {
		t.Errorf("the program says %q, want lib", got)
	}
	if !y.told("1 modules downloaded") {
		t.Errorf("nothing of the download is said: %q", y.said)
	}
}
