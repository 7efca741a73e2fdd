package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/client-go/rest"

	"github.com/selvage-net/selvage/informer"
)

// statusOptions are what `selvage status` can be told.
type statusOptions struct {
	agents            agentFlags
	namespace, output string
}

func newStatusCommand(plugin bool) *cobra.Command {
	o := statusOptions{output: "table"}
	cmd := answers(&cobra.Command{
		Use:   "status",
		Short: "show whether what the policies say is in force, and what is to be put right",
		Long: `Show of each node whether all that is desired is in its kernel, and since when; of
each policy how many pods it selects, on how many of the nodes that have such pods its
last change is in force, and how often it let a connection through and denied a packet;
and what is to be put right. Policies that select no pod, and those that have never
matched, are marked.

Without --all it is this node, by its agent at ` + defaultAgent + `, if there is one, and
else all nodes, whose agents are asked through the API server. That takes the rights to
list pods and networkpolicies and to get pods/proxy, and agents that listen at their
node's address.

The exit code is 0 if all that is desired is in force on all nodes, 1 if it is not, and 2
if that cannot be told, since a node does not answer for example.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	})
	f := cmd.Flags()
	o.agents.add(f)
	o.agents.addAll(f, plugin)
	f.StringVarP(&o.namespace, "namespace", "n", "", "show the policies of this namespace only")
	f.StringVarP(&o.output, "output", "o", o.output, "table, json or yaml")
	return cmd
}

func (o *statusOptions) run(ctx context.Context, stdout, stderr io.Writer) error {
	if err := errors.Join(checkOutput(o.output, "table"), o.agents.validate()); err != nil {
		return err
	}
	one, cluster, err := o.agents.choose(ctx)
	if err != nil {
		return err
	}
	var desired desiredPolicies
	var found agents = one
	if one == nil {
		if found, err = newClusterAgents(cluster, o.agents.namespace); err != nil {
			return err
		}
		if desired, err = fetchPolicies(ctx, cluster); err != nil {
			fmt.Fprintf(stderr, "selvage: policies are shown as the agents know them: %v\n", err)
		}
	}
	all, err := found.find(ctx)
	if err != nil {
		return err
	}
	r := askStatus(ctx, all, desired, o.namespace)
	return errors.Join(writeReport(stdout, o.output, r, r.writeTable), r.exit())
}

// fetchPolicies returns which policies there are.
func fetchPolicies(ctx context.Context, config *rest.Config) (desiredPolicies, error) {
	s, err := fetch(ctx, config, informer.NetworkPolicies)
	if err != nil {
		return nil, err
	}
	desired := make(desiredPolicies, len(s.Policies))
	for _, np := range s.Policies {
		desired[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}] = np.ResourceVersion
	}
	return desired, nil
}

// writeTable writes a report for people.
func (r *statusReport) writeTable(to io.Writer) error {
	w := bufio.NewWriter(to)
	t := newTable(w, "NODE", "SYNC", "SINCE", "POLICIES", "PODS", "SHAPED", "PROBLEMS")
	for i := range r.Nodes {
		t.row(r.Nodes[i].cells()...)
	}
	t.end()
	if len(r.Policies) > 0 {
		fmt.Fprintln(w)
		t = newTable(w, "NAMESPACE", "POLICY", "PODS", "NODES", "CHANGED", "ALLOWED", "DENIED", "REMARK")
		for i := range r.Policies {
			t.row(r.Policies[i].cells()...)
		}
		t.end()
	}
	if len(r.Problems) > 0 {
		fmt.Fprintln(w, "\nProblems:")
	}
	for _, p := range r.Problems {
		about := cmp.Or(someOf(p.Nodes), "?")
		if p.About != "" {
			about = p.About + " (" + about + ")"
		}
		fmt.Fprintf(w, "  %s: %s\n", printable(about), printable(p.Message))
	}
	return w.Flush() // tells of the first error of all
}

func (n *nodeReport) cells() []string {
	const unknown = "?"
	name := cmp.Or(printable(n.Node), unknown)
	s := n.Status
	if s == nil {
		return []string{name, unknown, unknown, unknown, unknown, unknown, strconv.Itoa(n.Problems)}
	}
	sync, shaped := "no", "off"
	if s.InSync {
		sync = "yes"
	}
	if s.Bandwidth.Enabled {
		shaped = strconv.Itoa(s.Bandwidth.Shaped)
	}
	selecting := 0
	for i := range s.Policies {
		if s.Policies[i].Pods > 0 {
			selecting++
		}
	}
	return []string{name, sync, ageText(s.Time.Sub(s.Since)), strconv.Itoa(selecting), strconv.Itoa(s.Objects.LocalPods), shaped, strconv.Itoa(n.Problems)}
}

func (p *policyReport) cells() []string {
	nodes, age, remark := none, none, ""
	if needed := len(p.InForce) + len(p.Behind); needed > 0 {
		nodes = fmt.Sprintf("%d/%d", len(p.InForce), needed)
	}
	if p.Age != nil {
		age = ageText(time.Duration(*p.Age * float64(time.Second)))
	}
	switch p.Remark {
	case remarkNoPod:
		remark = "selects no pod"
	case remarkNoMatch:
		remark = "never matched"
	}
	return []string{
		printable(p.Namespace), printable(p.Name), strconv.Itoa(p.Pods), nodes, age,
		strconv.FormatUint(p.AllowedConnections.sum(), 10), strconv.FormatUint(p.DeniedPackets.sum(), 10), remark,
	}
}

// ageText writes how long something has been so, as kubectl does.
func ageText(d time.Duration) string { return duration.HumanDuration(max(0, d)) }
