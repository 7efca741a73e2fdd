// Command image builds the image of Selvage from the sources that it stands in,
// without a container engine: for each platform a docker-archive, and an OCI
// layout with all of them. It can push the latter to a registry.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "image: %v\n", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func newCommand() *cobra.Command {
	o := options{Progress: os.Stderr}
	cmd := &cobra.Command{
		Use:           "image",
		Short:         "build the image of Selvage without a container engine",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true, // main prints them
		RunE: func(cmd *cobra.Command, _ []string) error {
			return build(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Repo, "repo", "..", "the root of the repository")
	f.StringVar(&o.Out, "out", "../bin/image", "directory for the archives selvage-ARCH.tar and the layout oci")
	f.StringVar(&o.Ref, "ref", "ghcr.io/selvage-net/selvage:v0.1.0", "name and tag of the image, as the manifests carry it")
	f.StringVar(&o.Version, "version", "unknown", "what `selvage version` prints")
	f.StringVar(&o.Revision, "revision", "", "the commit that is built, for the label org.opencontainers.image.revision")
	f.StringSliceVar(&o.Platforms, "platform", []string{"linux/amd64", "linux/arm64"}, "what to build for")
	f.StringVar(&o.Push, "push", "", "push the image of all platforms there as well, as registry.example/selvage:v0.1.0; credentials are those of docker login")
	return cmd
}
