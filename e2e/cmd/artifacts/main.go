// Command artifacts builds what a cluster consists of, ahead of time or to be
// looked at; see package e2e/artifacts.
//
//	artifacts build [NAME...]    builds what is named, or everything
//	artifacts path NAME          builds it if it must, and prints where it is
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/selvage-net/selvage/e2e/artifacts"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "artifacts:", err)
		return 1
	}
	return 0
}

func newCommand() *cobra.Command {
	o := artifacts.Options{Progress: func(line string) { fmt.Fprintln(os.Stderr, line) }}
	root := &cobra.Command{
		Use: "artifacts", Short: "build what a cluster consists of",
		SilenceUsage: true, SilenceErrors: true,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&o.Repo, "repo", ".", "the root of the repository")
	flags.StringVar(&o.Cache, "cache", "", "where to keep what is built (default $SELVAGE_CACHE, or selvage in the user's cache directory)")
	root.AddCommand(&cobra.Command{
		Use: "build [NAME...]", Short: "build what is named, or everything",
		RunE: func(cmd *cobra.Command, names []string) error {
			o.Only = names
			_, err := artifacts.Build(cmd.Context(), o)
			return err
		},
	}, &cobra.Command{
		Use: "path NAME", Short: "print the path of a program, of an image's archive, or of the directory of the CNI plugins (cni)",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			o.Only = names
			set, err := artifacts.Build(cmd.Context(), o)
			if err != nil {
				return err
			}
			return printPath(cmd, set, names[0])
		},
	})
	return root
}

func printPath(cmd *cobra.Command, set *artifacts.Set, name string) error {
	for _, path := range []string{set.Binary(name), set.Image(name)} {
		if path != "" {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), path)
			return err
		}
	}
	if name != "cni" {
		return fmt.Errorf("%s has more than one file: name one of them", name)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), set.CNI())
	return err
}
