package vm

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
)

// emptyProgram writes one that needs no libraries, and does nothing.
func emptyProgram(t *testing.T, dir, name string) string {
	t.Helper()
	var b bytes.Buffer
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Ehsize: 64,
	}
	if err := binary.Write(&b, binary.LittleEndian, h); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, b.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// put writes files, each of its own name.
func put(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// content is what an archive has: files by their names; of links, "-> " and the
// target.
func content(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := map[string]string{}
	dirs := map[string]bool{".": true}
	for r := cpio.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		if !dirs[path.Dir(h.Name)] {
			t.Errorf("%s comes before its directory", h.Name)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case h.Mode.IsDir():
			dirs[h.Name] = true
		case h.Linkname != "":
			found[h.Name] = "-> " + h.Linkname
		default:
			found[h.Name] = string(text)
		}
	}
}

// simple is an initramfs with little in it.
func simple(t *testing.T) initramfs {
	t.Helper()
	dir, repo := t.TempDir(), t.TempDir()
	put(t, dir, "lib/modules/6.1.0/modules.dep", "vmlinuz")
	put(t, repo, "policy/testdata/a", "bin/vm", ".cache/big", ".git/HEAD", "cmd/bin/main.go")
	if err := os.Symlink("nowhere", filepath.Join(repo, "link")); err != nil {
		t.Fatal(err)
	}
	return initramfs{
		kernel: &Kernel{Release: "6.1.0", dir: dir}, repo: repo,
		init: emptyProgram(t, dir, "vm"), packages: []string{"dash", "grep"},
		programs: []Program{
			{Dir: "policy", Argv: []string{"x", "-test.v"}, Binary: emptyProgram(t, dir, "policy.test")},
			{Argv: []string{"sh", "-c", "true"}},
		},
	}
}

func TestInitramfs(t *testing.T) {
	i := simple(t)
	file := filepath.Join(t.TempDir(), initramfsFile)
	if err := i.write(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	found := content(t, file)
	for name, want := range map[string]string{
		"sbin": "-> usr/bin", "lib": "-> usr/lib", "repo/link": "-> nowhere",
		"repo/policy/testdata/a": "policy/testdata/a", "repo/cmd/bin/main.go": "cmd/bin/main.go",
		"usr/lib/modules/6.1.0/modules.dep": "lib/modules/6.1.0/modules.dep",
	} {
		if found[name] != want {
			t.Errorf("%s is %q, want %q", name, found[name], want)
		}
	}
	for _, name := range []string{"init", "tests/policy.test", "usr/bin/sh", "usr/bin/grep", "etc/hosts"} {
		if found[name] == "" {
			t.Errorf("%s is missing", name)
		}
	}
	for name := range found {
		if strings.HasPrefix(name, "repo/bin") || strings.HasPrefix(name, "repo/.") {
			t.Errorf("%s is there", name)
		}
	}
	for _, library := range []string{"libc.so.6", "ld-linux-x86-64.so.2"} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(found)), func(name string) bool { return path.Base(name) == library }) {
			t.Errorf("%s is missing", library)
		}
	}
	var p plan
	if err := json.Unmarshal([]byte(found["plan.json"]), &p); err != nil {
		t.Fatal(err)
	}
	if got := p.Programs[0]; got.Dir != "/repo/policy" || strings.Join(got.Argv, " ") != "/tests/policy.test -test.v" {
		t.Errorf("the test runs as %q in %s", got.Argv, got.Dir)
	}
	if got := p.Programs[1]; got.Dir != "/repo" || strings.Join(got.Argv, " ") != "sh -c true" {
		t.Errorf("the program runs as %q in %s", got.Argv, got.Dir)
	}
}

func TestInitramfsFails(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		change     func(*initramfs)
	}{
		{"a dynamic init", "is linked dynamically: build it with CGO_ENABLED=0", func(i *initramfs) { i.init = "/bin/sh" }},
		{"a dynamic test", "is linked dynamically", func(i *initramfs) { i.programs[0].Binary = "/bin/sh" }},
		{"a package that is not installed", "no-such-package", func(i *initramfs) { i.packages = []string{"no-such-package"} }},
		{"no modules", "no such file", func(i *initramfs) { i.kernel.Release = "none" }},
	} {
		i := simple(t)
		tt.change(&i)
		if err := i.write(t.Context(), filepath.Join(t.TempDir(), "x")); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error with %q", tt.name, err, tt.want)
		}
	}
}

func TestParseLdd(t *testing.T) {
	got, err := parseLdd(`/usr/sbin/ip:
	linux-vdso.so.1 (0x00007ffc3b5f2000)
	libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0000000000)
	/lib64/ld-linux-x86-64.so.2 (0x00007f0000000000)
`)
	if want := []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q (%v), want %q", got, err, want)
	}
	if _, err := parseLdd("\tlibmnl.so.0 => not found\n"); err == nil || !strings.Contains(err.Error(), "libmnl.so.0") {
		t.Errorf("a missing library: %v", err)
	}
}
