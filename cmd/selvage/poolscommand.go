package main

import (
	"context"
	"errors"
	"io"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
)

// poolsOptions are what `selvage pools` can be told.
type poolsOptions struct {
	kube              kubeFlags
	manifests, output string
	services          []netip.Prefix
}

func newPoolsCommand() *cobra.Command {
	o := poolsOptions{output: "table"}
	cmd := &cobra.Command{
		Use:   "pools",
		Short: "show the pools of addresses, their use, and what is wrong; needs no privileges",
		Long: `Show which pools of addresses are in force, how many of their addresses pods have,
how full the nodes' podCIDRs are, which pods have an address in no pool, and what is
wrong. The objects are those of the cluster that --kubeconfig leads to or, without it,
of the one that this runs in, or else of the one that kubectl would use. Reading them
takes the rights of the ClusterRole of the agent.

The exit code is 0 if the objects could be read, whatever is wrong with the pools: a
check for a pipeline looks at .problems of -o json.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			s, err := o.read(cmd.Context())
			if err != nil && o.manifests == "" {
				return err
			}
			return errors.Join(o.write(cmd.OutOrStdout(), newPoolReport(s, o.services)), err)
		},
	}
	f := cmd.Flags()
	o.kube.add(f)
	f.StringVar(&o.manifests, "manifests", "", "directory of YAML or JSON manifests to read in place of the Kubernetes API")
	f.StringVarP(&o.output, "output", "o", o.output, "table, json or yaml")
	addServiceCIDRs(f, &o.services)
	return cmd
}

func (o poolsOptions) validate() error {
	var errs []error
	if o.manifests != "" && o.kube.given() {
		errs = append(errs, errors.New("--manifests and --kubeconfig exclude each other"))
	}
	return errors.Join(append(errs, checkOutput(o.output, "table"), checkManifests(o.manifests))...)
}

// read reads the objects. Of manifests it returns what can be understood, even if there
// is an error.
func (o poolsOptions) read(ctx context.Context) (policy.Snapshot, error) {
	if o.manifests != "" {
		return informer.Load(o.manifests)
	}
	config, err := o.kube.config()
	if err != nil {
		return policy.Snapshot{}, noSource(err)
	}
	return fetch(ctx, config, informer.Nodes, informer.Pods, informer.IPPools, informer.CalicoPools, informer.ServiceCIDRs)
}

// write writes a report in the format that is wanted.
func (o poolsOptions) write(w io.Writer, r poolReport) error {
	return writeReport(w, o.output, r, r.writeTable)
}
