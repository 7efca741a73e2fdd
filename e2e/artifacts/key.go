package artifacts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// key is a hash over all that an artifact is made from, but the machine's C
// compiler and library. Those of the working tree are compiled for it.
func (b *builder) key(ctx context.Context, r recipe) (string, error) {
	h := sha256.New()
	recipe, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	fmt.Fprintln(h, b.tool.version, runtime.GOARCH, linkFlags, string(recipe))
	for _, file := range r.inputs() {
		if err := hashFiles(h, filepath.Join(b.tool.modules, file), true); err != nil {
			return "", err
		}
	}
	if r.Image != nil {
		if err := hashFiles(h, filepath.Join(b.repo, "deploy", "image", "*.go"), false); err != nil {
			return "", err
		}
	}
	if r.Tree != nil {
		if err := b.hashTree(ctx, r, h); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// inputs are patterns of files below the directory of the nested modules.
func (r recipe) inputs() []string {
	var modules, files []string
	for _, g := range r.Go {
		modules = append(modules, g.Module)
		for _, p := range g.Packages {
			if strings.HasPrefix(p, ".") && g.Source == "" {
				files = append(files, filepath.Join(g.Module, p, "*.go"))
			}
		}
	}
	if r.C != nil {
		modules = append(modules, r.C.Module)
	}
	if r.Image != nil {
		for _, f := range r.Image.Files {
			if f.Module != "" {
				modules = append(modules, f.Module)
			}
		}
	}
	for _, m := range modules {
		files = append(files, filepath.Join(m, "go.mod"), filepath.Join(m, "go.sum"))
	}
	slices.Sort(files)
	return slices.Compact(files)
}

// hashTree compiles the program, and hashes it with what makes its image.
func (b *builder) hashTree(ctx context.Context, r recipe, h hash.Hash) error {
	if err := b.compileTree(ctx, r); err != nil {
		return err
	}
	if err := hashFile(h, b.treeBinary(r)); err != nil || !r.Tree.Shipped {
		return err
	}
	// The image carries the version, too; the program has it in it.
	for _, pattern := range []string{"deploy/cmd/image/*.go", "deploy/go.sum", "LICENSE"} {
		if err := hashFiles(h, filepath.Join(b.repo, pattern), false); err != nil {
			return err
		}
	}
	return nil
}

// hashFiles hashes the files of a pattern. Tests count only where a test is
// what is built.
func hashFiles(h hash.Hash, pattern string, tests bool) error {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	if !tests {
		files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
	}
	if len(files) == 0 {
		return fmt.Errorf("there is no %s", pattern)
	}
	for _, f := range files {
		if err := hashFile(h, f); err != nil {
			return err
		}
	}
	return nil
}

func hashFile(h hash.Hash, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// Names and lengths keep contents apart.
	fmt.Fprintf(h, "\n%s %d\n", filepath.Base(name), info.Size())
	_, err = io.Copy(h, f)
	return err
}
