package artifacts

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// treeBinary is where the program of the working tree is compiled to. It stays,
// so that the Go tool has nothing to do if nothing has changed.
func (b *builder) treeBinary(r recipe) string {
	return filepath.Join(b.repo, ".cache", "artifacts", r.Name)
}

// compileTree compiles the program of the working tree.
func (b *builder) compileTree(ctx context.Context, r recipe) error {
	link := linkFlags
	if r.Tree.Stamp != "" {
		version, err := b.gitVersion(ctx)
		if err != nil {
			return err
		}
		link += " -X " + r.Tree.Stamp + "=" + version
	}
	temp := b.treeBinary(r) + ".tmp"
	defer func() { _ = os.RemoveAll(temp) }() // the next compilation would
	build, err := b.tool.command(filepath.Join(b.repo, r.Tree.Module),
		"build", "-buildvcs=false", "-ldflags="+link, "-o", b.treeBinary(r), r.Tree.Package,
	).temporary(temp)
	if err != nil {
		return err
	}
	return b.during(func() string { return "compiling" }, func() error {
		_, err := build.run(ctx)
		return err
	})
}

// gitVersion is what the Makefile stamps programs with.
func (b *builder) gitVersion(ctx context.Context) (string, error) {
	out, err := command{dir: b.repo, argv: []string{"git", "describe", "--tags", "--always", "--dirty"}}.run(ctx)
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		// Sources without their history have none.
		return "unknown", nil //nolint:nilerr // as above
	}
	return strings.TrimSpace(out), nil
}

// copyFile copies a program.
func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
