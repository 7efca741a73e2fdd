package image

import (
	"errors"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Spec says what is in an image and how it is started.
type Spec struct {
	// Platform is what the image runs on, as "linux/amd64".
	Platform string
	// Files are what the layer holds, by their absolute paths in the image.
	// Directories above them need not be named; they get mode 0755.
	Files map[string]File

	Entrypoint []string
	Cmd        []string
	Env        []string // as "NAME=value"
	// User is a number, or "user:group" as numbers: there is no /etc/passwd
	// unless Files bring one.
	User       string
	WorkingDir string
	Labels     map[string]string

	// Created is when the image claims to have been made, and when each file
	// claims to have been changed last. The zero Time means 1970-01-01, which
	// is what makes two builds equal.
	Created time.Time
}

// Build makes the image. The files are read while it is built; who writes the
// image need not keep them.
func Build(s Spec) (v1.Image, error) {
	platform, err := v1.ParsePlatform(s.Platform)
	if err != nil {
		return nil, fmt.Errorf("platform %q: %w", s.Platform, err)
	}
	if platform.OS == "" || platform.Architecture == "" {
		return nil, fmt.Errorf("platform %q: want operating system and architecture, as linux/amd64", s.Platform)
	}
	if len(s.Files) == 0 {
		return nil, errors.New("an image without a file can do nothing")
	}
	if s.Created.IsZero() {
		s.Created = time.Unix(0, 0)
	}
	s.Created = s.Created.UTC()
	layer, err := layer(s.Files, s.Created)
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(base, mutate.Addendum{
		Layer:     layer,
		MediaType: types.OCILayer,
		History:   v1.History{Created: v1.Time{Time: s.Created}, CreatedBy: "selvage deploy/image"},
	})
	if err != nil {
		return nil, fmt.Errorf("add the layer: %w", err)
	}
	return configure(img, s, platform)
}

// configure gives the image its configuration. That of the empty image has only
// the layer by now.
func configure(img v1.Image, s Spec, platform *v1.Platform) (v1.Image, error) {
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Variant = platform.OS, platform.Architecture, platform.Variant
	file.Created = v1.Time{Time: s.Created}
	file.Config = v1.Config{
		Entrypoint: s.Entrypoint, Cmd: s.Cmd, Env: s.Env, User: s.User, WorkingDir: s.WorkingDir, Labels: s.Labels,
	}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		return nil, fmt.Errorf("set the configuration: %w", err)
	}
	return img, nil
}

// layer packs the files. It is compressed once and kept so: digests, archive
// and layout all ask for it.
func layer(files map[string]File, at time.Time) (v1.Layer, error) {
	entries, err := list(files)
	if err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() { w.CloseWithError(pack(w, entries, at)) }()
		return r, nil
	}
	l, err := tarball.LayerFromOpener(open, tarball.WithCompressedCaching, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("pack the files: %w", err)
	}
	return l, nil
}
