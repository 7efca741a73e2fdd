package main

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nft"
	"github.com/selvage-net/selvage/shaping/tc"
)

// pluginName is the name under which kubectl finds the program as its plugin.
const pluginName = "kubectl-selvage"

// newRoot returns all commands or, for kubectl's plugin, those that are not about the
// machine on which they run.
func newRoot(plugin bool, stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:           "selvage",
		Short:         "NetworkPolicy and bandwidth in the kernel, for clusters with a simple network",
		SilenceUsage:  true,
		SilenceErrors: true, // run prints them
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	called := root.Use
	if plugin {
		called = "kubectl selvage"
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: called}
	} else {
		root.AddCommand(newAgentCommand(), newCleanupCommand())
	}
	root.AddCommand(newStatusCommand(plugin), newExplainCommand(called), newDropsCommand(plugin), newPoolsCommand(), newCompileCommand(), newVersionCommand())
	return root
}

func newAgentCommand() *cobra.Command {
	c := defaultConfig()
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "enforce the cluster's NetworkPolicies, the pods' bandwidth and what IPPools say on this node",
		Long: `Enforce the cluster's NetworkPolicies for the pods of this node, by the nftables
tables "ip selvage" and "ip6 selvage", and hold the pods to their bandwidth, by
queueing disciplines at their interfaces. What leaves a pool that says natOutgoing is
masqueraded by the same tables. All of it stays in force when the agent ends; the next
one takes it over as it is. It needs root, or CAP_NET_ADMIN.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.validate(); err != nil {
				return err
			}
			return runAgent(cmd.Context(), c, newLogger(c, cmd.ErrOrStderr()))
		},
	}
	c.addPolicyFlags(cmd.Flags())
	c.addAgentFlags(cmd.Flags())
	return cmd
}

func newCompileCommand() *cobra.Command {
	c := defaultConfig()
	cmd := &cobra.Command{
		Use:   "compile",
		Short: "print the rules that manifests mean for a node; needs no privileges",
		Long: `Print the rules that the manifests mean for a node, as nft would write them.
Whatever is wrong with the manifests, or the policies and pools in them, is said, one
per line, and makes the exit code 1: a check for a pipeline.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.manifests == "" {
				return errors.New("--manifests must say what to compile")
			}
			if err := c.validatePolicy(); err != nil {
				return err
			}
			return compile(c, cmd.OutOrStdout())
		},
	}
	c.addPolicyFlags(cmd.Flags())
	return cmd
}

func compile(c config, w io.Writer) error {
	snapshot, err := informer.Load(c.manifests)
	errs := []error{err}
	ruleset, problems := policy.Compile(c.policy, snapshot)
	for _, p := range problems {
		if err == nil || !strings.Contains(err.Error(), p.Err.Error()) { // or it is said already, with its file
			errs = append(errs, fmt.Errorf("NetworkPolicy %s/%s: %w", p.Namespace, p.Name, p.Err))
		}
	}
	for _, p := range resolve(snapshot, c.policy.ServiceCIDRs).Problems {
		if err == nil || !strings.Contains(err.Error(), p.Err.Error()) {
			errs = append(errs, fmt.Errorf("IPPool %s: %w", p.Pool.Name, p.Err))
		}
	}
	if _, err := io.WriteString(w, ruleset.String()); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func newCleanupCommand() *cobra.Command {
	wait := false
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "remove everything that the agent has put into the kernel of this node",
		Long: `Remove the tables "ip selvage" and "ip6 selvage", and what shapes the bandwidth of
pods: from then on nothing is enforced. What shapes a pod within its own namespace
goes with the pod. The agent must not be running. The switches nf_call_iptables and
nf_call_ip6tables of the pods' bridge stay on: others may rely on them by now.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			removed, err := cleanup()
			if err != nil {
				return err
			}
			say := "there was nothing to remove"
			if len(removed) > 0 {
				say = "removed " + strings.Join(removed, " and ")
			}
			if _, err = fmt.Fprintln(cmd.OutOrStdout(), say); err != nil || !wait {
				return err
			}
			<-cmd.Context().Done()
			return nil
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "do not end before a signal comes: for a DaemonSet, which starts anew what ends")
	return cmd
}

// cleanup removes everything and says what that was.
func cleanup() (removed []string, err error) {
	release, err := lock()
	if err != nil {
		return nil, err
	}
	defer release()
	tables, err := cleanupTables()
	if tables {
		removed = append(removed, "the tables ip selvage and ip6 selvage")
	}
	queues, terr := cleanupQueues()
	if queues > 0 {
		removed = append(removed, fmt.Sprintf("%d queues, redirections and IFBs of pods", queues))
	}
	return removed, errors.Join(err, terr)
}

func cleanupTables() (bool, error) {
	conn, err := nft.Open(nft.Options{})
	if err != nil {
		return false, err
	}
	removed, err := conn.Cleanup()
	return removed, errors.Join(err, conn.Close())
}

func cleanupQueues() (int, error) {
	conn, err := tc.Open()
	if err != nil {
		return 0, err
	}
	n, err := conn.Cleanup()
	return n, errors.Join(err, conn.Close())
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "selvage %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
