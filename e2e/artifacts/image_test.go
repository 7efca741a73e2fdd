package artifacts

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// newTree returns a repository with a program of its own.
func newTree(t *testing.T, text string) *tiny {
	t.Helper()
	y := newTiny(t)
	y.recipe = recipe{
		Name: "hello", Version: worktree,
		Tree: &treeBuild{Module: "tree", Package: "."},
		Image: &imageBuild{
			Reference: "selvage.test/hello:v1", Entrypoint: []string{"/hello"},
			Files: map[string]imageFile{"/hello": {Built: "hello"}, "/tmp": {Mode: os.ModeDir | os.ModeSticky | 0o777}},
		},
	}
	writeFile(t, filepath.Join(y.repo, "deploy", "image", "image.go"), "package image\n")
	writeFile(t, filepath.Join(y.repo, "tree", "go.mod"), "module example.org/tree\n\ngo 1.26.0\n")
	y.edit(t, text)
	return y
}

func (y *tiny) edit(t *testing.T, text string) {
	t.Helper()
	writeFile(t, filepath.Join(y.repo, "tree", "main.go"), "package main\n\nvar version string\n\nfunc main() { print(\""+text+"\", version) }\n")
}

// program takes /hello out of an image and returns its path.
func program(t *testing.T, archive, reference string) string {
	t.Helper()
	tag, err := name.NewTag(reference)
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(archive, &tag)
	if err != nil {
		t.Fatal(err)
	}
	r := mutate.Extract(img)
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	start := bytes.Index(text, []byte("\x7fELF"))
	if start < 0 {
		t.Fatal("there is no program in the image")
	}
	path := filepath.Join(t.TempDir(), "hello")
	writeFile(t, path, string(text[start:]))
	return path
}

// TestTree follows a program of the working tree through edits.
func TestTree(t *testing.T) {
	y := newTree(t, "one")
	first := y.build(t).Image("hello")
	if got := output(t, program(t, first, "selvage.test/hello:v1")); got != "one" {
		t.Errorf("the program in the image says %q, want one", got)
	}
	if again := y.build(t).Image("hello"); again != first {
		t.Errorf("without an edit: %s, before %s", again, first)
	}
	writeFile(t, filepath.Join(y.repo, "deploy", "image", "image_test.go"), "package image\n")
	if again := y.build(t).Image("hello"); again != first {
		t.Errorf("with another test of the code that makes images: %s, before %s", again, first)
	}
	y.edit(t, "two")
	second := y.build(t).Image("hello")
	if got := output(t, program(t, second, "selvage.test/hello:v1")); got != "two" {
		t.Errorf("after an edit the program says %q, want two", got)
	}
	y.edit(t, "one")
	y.said = nil
	if back := y.build(t).Image("hello"); back != first || y.told("building") {
		t.Errorf("the edit undone: %s, before %s; %q", back, first, y.said)
	}
	y.edit(t, "\nbroken")
	if _, err := y.builder(t).run(t.Context(), []recipe{y.recipe}); err == nil || !strings.Contains(err.Error(), "main.go:5") {
		t.Errorf("error %v, want that of the compiler", err)
	}
}

// TestShipped has another program make the image, and looks at what it is told.
func TestShipped(t *testing.T) {
	y := newTree(t, "one")
	y.recipe.Tree.Shipped, y.recipe.Tree.Stamp = true, "main.version"
	writeFile(t, filepath.Join(y.repo, "LICENSE"), "free")
	writeFile(t, filepath.Join(y.repo, "deploy", "go.mod"), "module example.org/deploy\n\ngo 1.26.0\n")
	writeFile(t, filepath.Join(y.repo, "deploy", "go.sum"), "")
	writeFile(t, filepath.Join(y.repo, "deploy", "cmd", "image", "main.go"), `package main

import (
	"os"
	"runtime"
	"strings"
)

func main() {
	if err := os.MkdirAll(os.Args[4], 0o755); err != nil {
		panic(err)
	}
	file := os.Args[4] + "/selvage-" + runtime.GOARCH + ".tar"
	if err := os.WriteFile(file, []byte(strings.Join(os.Args[1:], " ")), 0o644); err != nil {
		panic(err)
	}
}
`)
	set := y.build(t)
	text, err := os.ReadFile(set.Image("hello"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"--repo " + y.repo + " --out ", "--ref selvage.test/hello:v1", "--version unknown", "--platform linux/" + runtime.GOARCH} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the builder is told %q, want %q among it", text, want)
		}
	}
	if got := output(t, filepath.Join(y.repo, ".cache", "artifacts", "hello")); got != "oneunknown" {
		t.Errorf("the program says %q, want one and its version, unknown", got)
	}
	writeFile(t, filepath.Join(y.repo, "LICENSE"), "as in freedom")
	if y.build(t).Image("hello") == set.Image("hello") {
		t.Error("another license, and the same image")
	}
}

// TestTreeCancel ends the compilation of the working tree.
func TestTreeCancel(t *testing.T) {
	pids := slowGo(t)
	y := newTree(t, "one")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := y.builder(t)
	done := make(chan error, 1)
	go func() {
		_, err := b.run(ctx, []recipe{y.recipe})
		done <- err
	}()
	waitFor(t, pids)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
	left, err := os.ReadDir(filepath.Join(y.repo, ".cache", "artifacts"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
