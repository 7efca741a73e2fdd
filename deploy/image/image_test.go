package image_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/selvage-net/selvage/deploy/image"
)

const ref = "ghcr.io/selvage-net/selvage:v0.1.0"

// spec is an image with everything in it. The program's content is on disk, in
// a file whose own mode and time must not matter.
func spec(t *testing.T, platform string) image.Spec {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("program for "+platform), 0o600); err != nil {
		t.Fatal(err)
	}
	return image.Spec{
		Platform: platform,
		Files: map[string]image.File{
			"/usr/bin/program": {Path: program, Mode: 0o755},
			"/etc/empty":       {},
			"/tmp":             {Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		},
		Entrypoint: []string{"/usr/bin/program"},
		Cmd:        []string{"agent"},
		Env:        []string{"A=b"},
		User:       "0:0",
		WorkingDir: "/",
		Labels:     map[string]string{"org.opencontainers.image.title": "program"},
	}
}

func build(t *testing.T, s image.Spec) v1.Image {
	t.Helper()
	img, err := image.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func digest(t *testing.T, img interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func TestLayer(t *testing.T) {
	img := build(t, spec(t, "linux/amd64"))
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, error %v; want one", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	type file struct {
		Name, Content string
		Mode          int64
		UID, GID      int
		Time          int64
	}
	var got []file
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, file{h.Name, string(data), h.Mode, h.Uid, h.Gid, h.ModTime.Unix()})
	}
	want := []file{
		{Name: "etc/", Mode: 0o755},
		{Name: "etc/empty", Mode: 0o644},
		{Name: "tmp/", Mode: 0o1777},
		{Name: "usr/", Mode: 0o755},
		{Name: "usr/bin/", Mode: 0o755},
		{Name: "usr/bin/program", Mode: 0o755, Content: "program for linux/amd64"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the layer differs (-want +got):\n%s", diff)
	}
}

func TestConfig(t *testing.T) {
	img := build(t, spec(t, "linux/arm64"))
	got, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	want := v1.Config{
		Entrypoint: []string{"/usr/bin/program"}, Cmd: []string{"agent"}, Env: []string{"A=b"}, User: "0:0", WorkingDir: "/",
		Labels: map[string]string{"org.opencontainers.image.title": "program"},
	}
	if diff := cmp.Diff(want, got.Config); diff != "" {
		t.Errorf("the configuration differs (-want +got):\n%s", diff)
	}
	if p := got.Platform().String(); p != "linux/arm64" {
		t.Errorf("platform %s, want linux/arm64", p)
	}
	if got.Created.Unix() != 0 {
		t.Errorf("created %v, want 1970", got.Created)
	}
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	media := []types.MediaType{manifest.MediaType, manifest.Config.MediaType, manifest.Layers[0].MediaType}
	if diff := cmp.Diff([]types.MediaType{types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer}, media); diff != "" {
		t.Errorf("the media types differ (-want +got):\n%s", diff)
	}
}

// TestReproducible builds twice, from files with different times and modes.
func TestReproducible(t *testing.T) {
	first := digest(t, build(t, spec(t, "linux/amd64")))
	s := spec(t, "linux/amd64")
	path := s.Files["/usr/bin/program"].Path
	if err := os.Chtimes(path, time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if second := digest(t, build(t, s)); second != first {
		t.Errorf("digests %s and %s of the same input", first, second)
	}
	s.Created = time.Unix(1e9, 0)
	if other := digest(t, build(t, s)); other == first {
		t.Errorf("the time of creation is not in the image")
	}
	if other := digest(t, build(t, spec(t, "linux/arm64"))); other == first {
		t.Errorf("two platforms have the same digest")
	}
}

func TestArchive(t *testing.T) {
	img := build(t, spec(t, "linux/amd64"))
	dir := filepath.Join(t.TempDir(), "made")
	first, second := filepath.Join(dir, "a.tar"), filepath.Join(dir, "b.tar")
	for _, path := range []string{first, second, second} { // over one that is there, too
		if err := image.WriteArchive(path, ref, img); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(read(t, first), read(t, second)) {
		t.Error("two archives of one image differ")
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	back, err := tarball.ImageFromPath(first, &tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(back); err != nil {
		t.Errorf("the archive is not consistent: %v", err)
	}
	want, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := back.ConfigName(); err != nil || got != want {
		t.Errorf("read back: configuration %v, error %v; want %v", got, err, want)
	}
	out, err := exec.Command("tar", "tf", first).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "manifest.json") {
		t.Errorf("tar cannot read the archive: %v\n%s", err, out)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.new")); err != nil || left != nil {
		t.Errorf("left behind: %v, error %v", left, err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestLayout(t *testing.T) {
	amd64, arm64 := build(t, spec(t, "linux/amd64")), build(t, spec(t, "linux/arm64"))
	dir := filepath.Join(t.TempDir(), "oci")
	for range 2 { // the second time over the first
		if err := image.WriteLayout(dir, ref, amd64, arm64); err != nil {
			t.Fatal(err)
		}
	}
	root, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(root); err != nil {
		t.Errorf("the layout is not consistent: %v", err)
	}
	top, err := root.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(top.Manifests) != 1 || top.Manifests[0].Annotations["io.containerd.image.name"] != ref ||
		top.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "v0.1.0" {
		t.Fatalf("index.json has %+v, want one entry with the image's name", top.Manifests)
	}
	index, err := root.ImageIndex(top.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range manifest.Manifests {
		got[m.Platform.String()] = m.Digest.String()
	}
	want := map[string]string{"linux/amd64": digest(t, amd64), "linux/arm64": digest(t, arm64)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the index differs (-want +got):\n%s", diff)
	}
}

// TestLayoutSpares sees that a directory with something else in it survives.
func TestLayoutSpares(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "thesis.tex")
	if err := os.WriteFile(path, []byte("years of work"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := image.WriteLayout(dir, ref, build(t, spec(t, "linux/amd64")))
	if err == nil || !strings.Contains(err.Error(), "is no OCI layout") {
		t.Errorf("error %v, want one that says why", err)
	}
	if got := string(read(t, path)); got != "years of work" {
		t.Errorf("the file has %q now", got)
	}
}

func TestBad(t *testing.T) {
	file := map[string]image.File{"/a": {Data: []byte("x")}}
	for _, c := range []struct {
		what string
		spec image.Spec
		want string
	}{
		{"no platform", image.Spec{Files: file}, "want operating system and architecture"},
		{"half a platform", image.Spec{Platform: "linux", Files: file}, "want operating system and architecture"},
		{"no files", image.Spec{Platform: "linux/amd64"}, "without a file"},
		{"relative", image.Spec{Platform: "linux/amd64", Files: map[string]image.File{"a": {}}}, "absolute"},
		{"root", image.Spec{Platform: "linux/amd64", Files: map[string]image.File{"/": {Mode: fs.ModeDir}}}, "absolute path below /"},
		{"twice", image.Spec{Platform: "linux/amd64", Files: map[string]image.File{"/a": {}, "/b/../a": {}}}, "named twice"},
		{"two contents", image.Spec{Platform: "linux/amd64", Files: map[string]image.File{"/a": {Path: "/x", Data: []byte("x")}}}, "both Path and Data"},
		{"file as directory", image.Spec{Platform: "linux/amd64", Files: map[string]image.File{"/a": {}, "/a/b": {}}}, "/a is not a directory"},
		{"directory with content", image.Spec{Platform: "linux/amd64", Files: map[string]image.File{"/a": {Mode: fs.ModeDir, Data: []byte("x")}}}, "no content"},
		{"device", image.Spec{Platform: "linux/amd64", Files: map[string]image.File{"/a": {Mode: fs.ModeDevice}}}, "neither a regular file"},
		{"no such file", image.Spec{Platform: "linux/amd64", Files: map[string]image.File{"/a": {Path: "/does/not/exist"}}}, "no such file"},
	} {
		if _, err := image.Build(c.spec); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.what, err, c.want)
		}
	}
	img := build(t, spec(t, "linux/amd64"))
	if _, err := image.Index(img, img); err == nil || !strings.Contains(err.Error(), "two images") {
		t.Errorf("index over one platform twice: error %v", err)
	}
	for _, bad := range []string{"", "a b", "selvage"} {
		if err := image.WriteArchive(filepath.Join(t.TempDir(), "a.tar"), bad, img); err == nil {
			t.Errorf("archive with the name %q: no error", bad)
		}
	}
}
