package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec" //nolint:depguard // it runs the compiler; nothing of this is in the image
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/selvage-net/selvage/deploy/image"
)

// options are what the program can be told.
type options struct {
	Repo, Out, Ref    string
	Version, Revision string
	Platforms         []string
	Push              string
	// Progress gets a line for each thing that was made, and what the
	// compiler says.
	Progress io.Writer
}

// build makes the program for each platform, and of these the archives and the
// layout.
func build(ctx context.Context, o options) error {
	created, err := created(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	if len(o.Platforms) == 0 {
		return errors.New("no platform to build for")
	}
	temp, err := os.MkdirTemp("", "selvage-image-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(temp) }()
	var imgs []v1.Image
	for _, platform := range o.Platforms {
		binary := filepath.Join(temp, strings.ReplaceAll(platform, "/", "-"))
		if err := o.compile(ctx, platform, binary); err != nil {
			return err
		}
		img, err := image.Build(o.spec(platform, binary, created))
		if err != nil {
			return fmt.Errorf("image for %s: %w", platform, err)
		}
		_, arch, _ := strings.Cut(platform, "/")
		archive := filepath.Join(o.Out, "selvage-"+strings.ReplaceAll(arch, "/", "-")+".tar")
		if err := image.WriteArchive(archive, o.Ref, img); err != nil {
			return err
		}
		if err := o.say(archive, img); err != nil {
			return err
		}
		imgs = append(imgs, img)
	}
	if err := o.writeIndex(imgs); err != nil {
		return err
	}
	return o.push(ctx, imgs)
}

// spec is what the image is: the program, its license, and nothing else.
// deploy/Dockerfile must say the same.
func (o options) spec(platform, binary string, created time.Time) image.Spec {
	labels := map[string]string{
		"org.opencontainers.image.title":       "selvage",
		"org.opencontainers.image.description": "NetworkPolicy and bandwidth in the kernel, for Kubernetes clusters with a simple network",
		"org.opencontainers.image.source":      "https://github.com/selvage-net/selvage",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     o.Version,
	}
	if o.Revision != "" {
		labels["org.opencontainers.image.revision"] = o.Revision
	}
	return image.Spec{
		Platform: platform,
		Files: map[string]image.File{
			"/selvage": {Path: binary, Mode: 0o755},
			"/LICENSE": {Path: filepath.Join(o.Repo, "LICENSE"), Mode: 0o644},
		},
		Entrypoint: []string{"/selvage"},
		User:       "0:0",
		WorkingDir: "/",
		Labels:     labels,
		Created:    created,
	}
}

// compile builds the program as the Makefile does, for platform, into out.
func (o options) compile(ctx context.Context, platform, out string) error {
	goos, arch, _ := strings.Cut(platform, "/")
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -X main.version="+o.Version, "-o", out, "./cmd/selvage")
	cmd.Dir = o.Repo
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=", "GOOS="+goos, "GOARCH="+arch)
	cmd.Stdout, cmd.Stderr = o.Progress, o.Progress
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build cmd/selvage for %s: %w", platform, err)
	}
	return nil
}

func (o options) say(what string, img interface{ Digest() (v1.Hash, error) }) error {
	digest, err := img.Digest()
	if err != nil {
		return fmt.Errorf("digest of %s: %w", what, err)
	}
	fmt.Fprintf(o.Progress, "%s %s\n", what, digest)
	return nil
}

func (o options) writeIndex(imgs []v1.Image) error {
	dir := filepath.Join(o.Out, "oci")
	if err := image.WriteLayout(dir, o.Ref, imgs...); err != nil {
		return err
	}
	index, err := image.Index(imgs...)
	if err != nil {
		return err
	}
	return o.say(dir, index)
}

// push sends the image of all platforms to a registry, if one is named.
func (o options) push(ctx context.Context, imgs []v1.Image) error {
	if o.Push == "" {
		return nil
	}
	ref, err := name.ParseReference(o.Push)
	if err != nil {
		return fmt.Errorf("--push: %w", err)
	}
	index, err := image.Index(imgs...)
	if err != nil {
		return err
	}
	if err := remote.WriteIndex(ref, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return o.say(ref.String(), index)
}

// created is the time that the image carries: what SOURCE_DATE_EPOCH says, in
// seconds, so that two builds of one commit are equal. See
// https://reproducible-builds.org/specs/source-date-epoch/.
func created(epoch string) (time.Time, error) {
	if epoch == "" {
		return time.Unix(0, 0), nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %q is no number of seconds", epoch)
	}
	return time.Unix(seconds, 0), nil
}
