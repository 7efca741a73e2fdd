package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// WriteArchive writes img as a docker-archive, which `ctr images import`,
// `docker load` and their like read. ref, as "ghcr.io/selvage-net/selvage:v0.1.0",
// is the name that it gets there. The file appears as a whole or not at all.
func WriteArchive(path, ref string, img v1.Image) error {
	tag, err := name.NewTag(ref, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("name of the image: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temp := path + ".new"
	if err := tarball.WriteToFile(temp, tag, img); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", temp, err), os.Remove(temp))
	}
	return os.Rename(temp, path)
}

// Index returns the index over the images of several platforms, in their order.
func Index(imgs ...v1.Image) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	seen := make(map[string]bool)
	for _, img := range imgs {
		file, err := img.ConfigFile()
		if err != nil {
			return nil, fmt.Errorf("read the configuration: %w", err)
		}
		platform := file.Platform()
		if seen[platform.String()] {
			return nil, fmt.Errorf("two images for the platform %s", platform)
		}
		seen[platform.String()] = true
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	return index, nil
}

// WriteLayout writes an OCI layout whose one entry is the index over the images,
// with the annotations that tell its name to those who read layouts: containerd
// the whole of it, others the tag. dir is replaced if it is a layout, and else
// must not be there.
func WriteLayout(dir, ref string, imgs ...v1.Image) error {
	tag, err := name.NewTag(ref, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("name of the image: %w", err)
	}
	index, err := Index(imgs...)
	if err != nil {
		return err
	}
	root := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{
		Add: index,
		Descriptor: v1.Descriptor{Annotations: map[string]string{
			"io.containerd.image.name":          tag.String(),
			"org.opencontainers.image.ref.name": tag.TagStr(),
		}},
	})
	if err := replaceable(dir); err != nil {
		return err
	}
	temp := filepath.Clean(dir) + ".new"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if _, err := layout.Write(temp, root); err != nil {
		return fmt.Errorf("write the layout %s: %w", temp, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(temp, dir)
}

// replaceable fails if dir is something that nobody wants to lose.
func replaceable(dir string) error {
	_, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err != nil {
		return fmt.Errorf("%s is there already and is no OCI layout: remove it, or choose another place", dir)
	}
	return nil
}
