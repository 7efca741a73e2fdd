package artifacts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/selvage-net/selvage/deploy/image"
)

// platform is that of this machine: the images run on it.
const platform = "linux/" + runtime.GOARCH

// writeImage makes the archive in dir from the programs in bin below it.
func (b *builder) writeImage(ctx context.Context, r recipe, dir string) error {
	spec := image.Spec{
		Platform: platform, Files: map[string]image.File{},
		Entrypoint: r.Image.Entrypoint, Cmd: r.Image.Cmd, WorkingDir: "/",
		Env: []string{"PATH=/"},
	}
	for name, f := range r.Image.Files {
		file := image.File{Mode: f.Mode}
		switch {
		case f.Built != "":
			file = image.File{Path: filepath.Join(dir, "bin", f.Built), Mode: 0o755}
		case f.File != "":
			module, err := b.moduleDir(ctx, f.Module, f.Path)
			if err != nil {
				return err
			}
			file.Path = filepath.Join(module, f.File)
		}
		spec.Files[name] = file
	}
	img, err := image.Build(spec)
	if err != nil {
		return fmt.Errorf("image %s: %w", r.Image.Reference, err)
	}
	return image.WriteArchive(filepath.Join(dir, r.archive()), r.Image.Reference, img)
}

// ship has the image made by the program that makes the users' one.
func (b *builder) ship(ctx context.Context, r recipe, dir string) error {
	version, err := b.gitVersion(ctx)
	if err != nil {
		return err
	}
	out := filepath.Join(dir, "out")
	run, err := b.tool.command(filepath.Join(b.repo, "deploy"), "run", "-buildvcs=false", "./cmd/image",
		"--repo", b.repo, "--out", out, "--ref", r.Image.Reference, "--version", version, "--platform", platform,
	).temporary(filepath.Join(dir, temporary))
	if err != nil {
		return err
	}
	err = b.during(func() string { return "deploy/cmd/image" }, func() error {
		_, err := run.run(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(out, "selvage-"+runtime.GOARCH+".tar"), filepath.Join(dir, r.archive())); err != nil {
		return err
	}
	for _, name := range []string{out, filepath.Join(dir, "bin")} {
		if err := os.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}
