package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// repository makes one with a program that is small, where the real one would
// take a minute to build.
func repository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"go.mod":              "module example.com/selvage\n\ngo 1.26.0\n",
		"LICENSE":             "do what you like\n",
		"cmd/selvage/main.go": "package main\n\nimport \"os\"\n\nvar version = \"unknown\"\n\nfunc main() { _, _ = os.Stdout.WriteString(version) }\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func testOptions(t *testing.T) options {
	t.Helper()
	return options{
		Repo: repository(t), Out: filepath.Join(t.TempDir(), "image"), Ref: "ghcr.io/selvage-net/selvage:v0.1.0",
		Version: "v7.8.9", Revision: "0123abc", Platforms: []string{"linux/amd64", "linux/arm64"}, Progress: t.Output(),
	}
}

func TestBuild(t *testing.T) {
	o := testOptions(t)
	if err := build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		img, err := tarball.ImageFromPath(filepath.Join(o.Out, "selvage-"+arch+".tar"), nil)
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if p := config.Platform().String(); p != "linux/"+arch {
			t.Errorf("%s: platform %s", arch, p)
		}
		want := v1.Config{Entrypoint: []string{"/selvage"}, User: "0:0", WorkingDir: "/", Labels: map[string]string{
			"org.opencontainers.image.title":       "selvage",
			"org.opencontainers.image.description": "NetworkPolicy and bandwidth in the kernel, for Kubernetes clusters with a simple network",
			"org.opencontainers.image.source":      "https://github.com/selvage-net/selvage",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.version":     "v7.8.9",
			"org.opencontainers.image.revision":    "0123abc",
		}}
		if diff := cmp.Diff(want, config.Config); diff != "" {
			t.Errorf("%s: the configuration differs (-want +got):\n%s", arch, diff)
		}
		checkFiles(t, img, machine)
	}
}

// checkFiles looks at what is in the image: the program, which must need
// nothing else, and the license.
func checkFiles(t *testing.T, img v1.Image, machine elf.Machine) {
	t.Helper()
	content := mutate.Extract(img)
	defer content.Close()
	var names []string
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if h.Name != "selvage" {
			continue
		}
		if h.Mode != 0o755 {
			t.Errorf("%v: the program has mode %o", machine, h.Mode)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		checkProgram(t, data, machine)
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{"LICENSE", "selvage"}, names); diff != "" {
		t.Errorf("%v: the files differ (-want +got):\n%s", machine, diff)
	}
}

func checkProgram(t *testing.T, data []byte, machine elf.Machine) {
	t.Helper()
	program, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if program.Machine != machine {
		t.Errorf("the program is for %v, want %v", program.Machine, machine)
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			t.Errorf("%v: the program is not static", machine)
		}
	}
	if !bytes.Contains(data, []byte("v7.8.9")) {
		t.Errorf("%v: the version is not in the program", machine)
	}
}

func TestBuildTwice(t *testing.T) {
	o := testOptions(t)
	o.Platforms = []string{"linux/amd64"}
	var archives [2][]byte
	for i := range archives {
		if err := build(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(o.Out, "selvage-amd64.tar"))
		if err != nil {
			t.Fatal(err)
		}
		archives[i] = data
		o.Repo = repository(t) // in another place
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two builds of the same sources differ")
	}
}

func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New())
	defer server.Close()
	o := testOptions(t)
	o.Push = strings.TrimPrefix(server.URL, "http://") + "/mirror/selvage:v0.1.0"
	if err := build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(o.Push)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: "arm64"}))
	if err != nil {
		t.Fatal(err)
	}
	checkFiles(t, img, elf.EM_AARCH64)
}

func TestBad(t *testing.T) {
	for _, c := range []struct {
		what, want string
		change     func(*options)
	}{
		{"no platform", "no platform", func(o *options) { o.Platforms = nil }},
		{"unknown platform", "unsupported GOOS/GOARCH", func(o *options) { o.Platforms = []string{"linux/pdp11"} }},
		{"no repository", "build cmd/selvage", func(o *options) { o.Repo = t.TempDir() }},
		{"bad name", "name of the image", func(o *options) { o.Ref = "a b" }},
		{"bad registry", "--push", func(o *options) { o.Push = "a b" }},
	} {
		o := testOptions(t)
		o.Platforms = []string{"linux/amd64"}
		var said bytes.Buffer
		o.Progress = &said
		c.change(&o)
		err := build(t.Context(), o)
		if err == nil {
			t.Errorf("%s: no error", c.what)
		} else if all := err.Error() + said.String(); !strings.Contains(all, c.want) {
			t.Errorf("%s: error %q, want one with %q", c.what, all, c.want)
		}
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if err := build(t.Context(), testOptions(t)); err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
		t.Errorf("bad SOURCE_DATE_EPOCH: error %v", err)
	}
}
