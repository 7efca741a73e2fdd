package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

const repo = "../../.."

// stages reads the Dockerfile with BuildKit's own parser. No engine has built
// it here: what is tested is that BuildKit understands it and what it says.
func stages(t *testing.T) []instructions.Stage {
	t.Helper()
	text, err := os.ReadFile(repo + "/deploy/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range parsed.Warnings {
		t.Errorf("warning: %s (%s)", w.Short, w.URL)
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(stages) != 2 || stages[0].Name != "build" || stages[1].BaseName != "scratch" {
		t.Fatalf("stages %+v, want build and one from scratch", stages)
	}
	return stages
}

// TestDockerfile compares what the Dockerfile makes with what this program
// makes.
func TestDockerfile(t *testing.T) {
	o := options{Version: "$VERSION"}
	want := o.spec("linux/amd64", "selvage", time.Time{})
	got := want
	got.Files, got.Labels, got.Entrypoint, got.User, got.WorkingDir = nil, map[string]string{}, nil, "", ""
	files, wantFiles := map[string]fs.FileMode{}, map[string]fs.FileMode{}
	for path, f := range want.Files {
		wantFiles[path] = f.Mode
	}
	want.Files = nil
	for _, c := range stages(t)[1].Commands {
		switch c := c.(type) {
		case *instructions.LabelCommand:
			for _, l := range c.Labels {
				got.Labels[strings.Trim(l.Key, `"`)] = strings.Trim(l.Value, `"`)
			}
		case *instructions.CopyCommand:
			files[c.DestPath] = map[string]fs.FileMode{"0755": 0o755, "0644": 0o644}[c.Chmod]
		case *instructions.UserCommand:
			got.User = c.User
		case *instructions.WorkdirCommand:
			got.WorkingDir = c.Path
		case *instructions.EntrypointCommand:
			got.Entrypoint = c.CmdLine
			if c.PrependShell {
				t.Error("the entrypoint runs a shell, and there is none")
			}
		case *instructions.ArgCommand:
		default:
			t.Errorf("unexpected instruction %s", c.Name())
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the Dockerfile's image differs (-cmd/image +Dockerfile):\n%s", diff)
	}
	if diff := cmp.Diff(wantFiles, files); diff != "" {
		t.Errorf("the Dockerfile's files differ (-cmd/image +Dockerfile):\n%s", diff)
	}
}

// TestDockerfileSources sees that the stage that compiles is given all that the
// program consists of, and compiles it as this program does.
func TestDockerfileSources(t *testing.T) {
	var copied, runs []string
	for _, stage := range stages(t) {
		for _, c := range stage.Commands {
			switch c := c.(type) {
			case *instructions.CopyCommand:
				if c.From == "" {
					copied = append(copied, c.SourcePaths...)
				}
			case *instructions.RunCommand:
				runs = append(runs, strings.Join(c.CmdLine, " "))
			}
		}
	}
	if !strings.Contains(strings.Join(runs, "\n"), `go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" -o /selvage ./cmd/selvage`) {
		t.Errorf("the Dockerfile does not compile as cmd/image does:\n%s", strings.Join(runs, "\n"))
	}
	ignored := ignored(t)
	for _, path := range copied {
		if _, err := os.Stat(filepath.Join(repo, path)); err != nil {
			t.Errorf("copied, but not there: %v", err)
		}
	}
	for _, path := range sources(t) {
		if !slices.ContainsFunc(copied, func(c string) bool { return strings.HasPrefix(path, filepath.Clean(c)+"/") }) {
			t.Errorf("%s is compiled, and not copied", path)
		}
		if ignored(path) {
			t.Errorf("%s is compiled, and Dockerfile.dockerignore keeps it out", path)
		}
	}
	for _, path := range []string{"go.mod", "go.sum", "LICENSE"} {
		if ignored(path) {
			t.Errorf("Dockerfile.dockerignore keeps %s out", path)
		}
	}
	for _, path := range []string{".git/HEAD", "bin/selvage", "e2e/go.mod", "policy/compile_test.go"} {
		if !ignored(path) {
			t.Errorf("Dockerfile.dockerignore lets %s in", path)
		}
	}
}

// ignored returns what Dockerfile.dockerignore says of a path.
func ignored(t *testing.T) func(string) bool {
	t.Helper()
	file, err := os.Open(repo + "/deploy/Dockerfile.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	patterns, err := ignorefile.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	return func(path string) bool {
		out, err := matcher.MatchesOrParentMatches(path)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

// sources returns the files of this repository that the program is compiled
// from, relative to its root.
func sources(t *testing.T) []string {
	t.Helper()
	root, err := filepath.Abs(repo)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "list", "-deps", "-json=Dir,GoFiles,EmbedFiles,Module", "./cmd/selvage")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]bool{}
	for decoder := json.NewDecoder(bytes.NewReader(out)); decoder.More(); {
		var p struct {
			Dir                 string
			GoFiles, EmbedFiles []string
			Module              *struct{ Main bool }
		}
		if err := decoder.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if p.Module == nil || !p.Module.Main {
			continue
		}
		for _, f := range slices.Concat(p.GoFiles, p.EmbedFiles) {
			path, err := filepath.Rel(root, filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			files[path] = true
		}
	}
	if len(files) == 0 {
		t.Fatal("the program consists of nothing")
	}
	return slices.Sorted(maps.Keys(files))
}
