package artifacts

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// linkFlags leave out what only debuggers read: a third of the size.
const linkFlags = "-s -w"

// temporary is the directory of an artifact, while it is built, for what
// compilers leave behind.
const temporary = "tmp"

// goTool is the Go tool, as it is used for everything here.
type goTool struct {
	modules string // the directory of the nested modules
	version string
}

func newGoTool(ctx context.Context, modules string) (goTool, error) {
	t := goTool{modules: modules}
	out, err := t.command("", "env", "GOVERSION").run(ctx)
	if err != nil {
		return t, fmt.Errorf("the Go tool: %w", err)
	}
	t.version = strings.TrimSpace(out)
	return t, nil
}

// command returns a run of the Go tool in a directory. The caches for modules
// and compiled packages are the user's own.
func (t goTool) command(dir string, args ...string) command {
	return command{dir: dir, argv: append([]string{"go"}, args...), env: []string{
		"GOFLAGS=-trimpath", "GOWORK=off", "GOTOOLCHAIN=local", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + runtime.GOARCH,
	}}
}

// compile runs the Go tool for g; the programs go into bin below dir.
func (b *builder) compile(ctx context.Context, g goBuild, dir string) error {
	work := filepath.Join(b.tool.modules, g.Module)
	if g.Source != "" {
		copied, err := b.copySource(ctx, g, dir)
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(copied) }() // dir goes as well if that fails
		work = copied
	}
	var env []string
	if g.Static {
		lib, err := b.seccomp(ctx, dir)
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(lib.temp) }()
		env = lib.env()
	}
	packages, err := b.load(ctx, g, work, env)
	if err != nil {
		return err
	}
	var n counts
	cmd, err := b.tool.command(work, g.args(filepath.Join(dir, "bin"))...).temporary(filepath.Join(dir, temporary))
	if err != nil {
		return err
	}
	cmd.env = append(cmd.env, env...)
	cmd.line = func(line string) bool {
		if packages[line] {
			n.compiled.Add(1)
		}
		return packages[line]
	}
	return b.during(func() string {
		return fmt.Sprintf("%d of at most %d packages compiled", n.compiled.Load(), len(packages))
	}, func() error {
		_, err := cmd.run(ctx)
		return err
	})
}

// args are those of the Go tool that builds g.
func (g goBuild) args(bin string) []string {
	args := []string{"build"}
	if g.Test {
		args = []string{"test", "-c"}
	}
	link := linkFlags
	for _, s := range g.Set {
		link += " -X " + s
	}
	if g.Static {
		link += " -extldflags -static"
	}
	return slices.Concat(args, []string{
		"-v", "-buildvcs=false", "-tags=" + g.Tags, "-ldflags=" + link, "-o", filepath.Join(bin, g.Out) + g.slash(),
	}, g.Packages)
}

// slash makes the Go tool put several programs into a directory.
func (g goBuild) slash() string {
	if g.Out == "" {
		return string(filepath.Separator)
	}
	return ""
}

// load downloads what g needs, no more, and returns all packages of it.
func (b *builder) load(ctx context.Context, g goBuild, work string, env []string) (map[string]bool, error) {
	args := []string{"list", "-deps", "-tags=" + g.Tags}
	if g.Test {
		args = append(args, "-test")
	}
	var n counts
	cmd := b.tool.command(work, append(args, g.Packages...)...)
	cmd.env = append(cmd.env, env...)
	cmd.line = func(line string) bool {
		downloading := strings.HasPrefix(line, "go: downloading ")
		if downloading {
			n.downloads.Add(1)
		}
		return downloading
	}
	var out string
	err := b.during(func() string {
		return fmt.Sprintf("%d modules downloaded", n.downloads.Load())
	}, func() (err error) {
		out, err = cmd.run(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	if d := n.downloads.Load(); d > 0 {
		b.note("%d modules downloaded", d)
	}
	packages := make(map[string]bool)
	for line := range strings.Lines(out) {
		packages[strings.TrimSpace(line)] = true
	}
	return packages, nil
}

// moduleDir returns where a module is that a nested one requires, and downloads
// it if it must. The Go tool has checked it against go.sum.
func (b *builder) moduleDir(ctx context.Context, nested, path string) (string, error) {
	var out string
	err := b.during(func() string { return "downloading " + path }, func() (err error) {
		out, err = b.tool.command(filepath.Join(b.tool.modules, nested), "mod", "download", "-json", path).run(ctx)
		return err
	})
	if err != nil {
		return "", err
	}
	var module struct{ Dir string }
	if err := json.Unmarshal([]byte(out), &module); err != nil {
		return "", fmt.Errorf("where is %s: %w", path, err)
	}
	return module.Dir, nil
}

// copySource copies the module g.Source below dir, with g.Empty as packages that
// have nothing in them.
func (b *builder) copySource(ctx context.Context, g goBuild, dir string) (string, error) {
	from, err := b.moduleDir(ctx, g.Module, g.Source)
	if err != nil {
		return "", err
	}
	to := filepath.Join(dir, "src")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return "", fmt.Errorf("copy %s: %w", g.Source, err)
	}
	for _, name := range g.Empty {
		pkg := filepath.Join(to, name)
		if err := os.RemoveAll(pkg); err != nil {
			return "", err
		}
		if err := os.Mkdir(pkg, 0o755); err != nil {
			return "", err
		}
		text := "package " + filepath.Base(name) + "\n"
		if err := os.WriteFile(filepath.Join(pkg, "empty.go"), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	return to, nil
}
