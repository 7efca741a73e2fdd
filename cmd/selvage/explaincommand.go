package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
)

// explainOptions are what `selvage explain` can be told.
type explainOptions struct {
	agents            agentFlags
	manifests, output string
	noKernel          bool
	policy            policy.Config
	question          policy.Question
}

// newExplainCommand returns the command; called is what people type to run the program.
func newExplainCommand(called string) *cobra.Command {
	o := explainOptions{output: "text", policy: policy.DefaultConfig("")}
	cmd := answers(&cobra.Command{
		Use:   "explain FROM TO PORT[/PROTOCOL]",
		Short: "say whether a connection is allowed, by which policies, and whether the kernels agree",
		Long: `Say whether a connection from FROM to TO is allowed, by which rule, or why none
allows it. FROM and TO are a pod (shop/web-0), a Service (svc/shop/web; its pods are
meant), a node (node/worker-1) or an address; PORT is a number or the name of one, with
/UDP or /SCTP if it is not TCP's, or ICMP.

It is worked out from the objects of the cluster, which takes the rights of the
ClusterRole of the agent, and, for Services, to list these. Then the agents of the nodes
in question are asked what the rules in their kernels, read back now, make of it; see
` + "`selvage status --help`" + ` for what that takes. With --manifests no agent is asked but the one
that --agent names.

The exit code is 0 if it is allowed, 1 if it is denied, and 2 if that cannot be told: a
name is unknown or that of several, a node does not answer, or its kernel disagrees.`,
		Example: strings.ReplaceAll(`  selvage explain shop/web-0 shop/db-0 5432
  selvage explain shop/web-0 svc/kube-system/kube-dns 53/UDP
  selvage explain 192.0.2.7 svc/shop/web https`, "selvage", called),
		Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.question.From, o.question.To, o.question.Port = args[0], args[1], args[2]
			return o.run(cmd.Context(), cmd.OutOrStdout())
		},
	})
	f := cmd.Flags()
	o.agents.add(f)
	f.StringVarP(&o.question.Namespace, "namespace", "n", "", "namespace of names that are given without one (default: all are searched)")
	f.StringVar(&o.manifests, "manifests", "", "directory of YAML or JSON manifests to read in place of the Kubernetes API")
	f.BoolVar(&o.noKernel, "no-kernel", false, "do not ask what the nodes' kernels make of it")
	f.Var((*text[policy.PodToNode])(&o.policy.PodToNode), "pod-to-node", "as the agents have it: what applies to traffic from a pod to its own node, allow or policy")
	addServiceCIDRs(f, &o.policy.ServiceCIDRs)
	f.StringVarP(&o.output, "output", "o", o.output, "text, json or yaml")
	return cmd
}

func (o *explainOptions) validate() error {
	errs := []error{checkOutput(o.output, "text"), o.agents.validate(), checkManifests(o.manifests)}
	if o.manifests != "" && o.agents.kube.given() {
		errs = append(errs, errors.New("--manifests and --kubeconfig exclude each other"))
	}
	if o.noKernel && o.agents.address != "" {
		errs = append(errs, errors.New("--no-kernel and --agent exclude each other"))
	}
	o.policy.NodeName = "any" // that of no node matters here
	return errors.Join(append(errs, o.policy.Validate())...)
}

func (o *explainOptions) run(ctx context.Context, w io.Writer) error {
	if err := o.validate(); err != nil {
		return err
	}
	found, snapshot, services, err := o.read(ctx)
	if err != nil {
		return err
	}
	explained, err := policy.NewExplainer(o.policy, snapshot, services).Ask(o.question)
	if err != nil {
		return err
	}
	r := newExplainReport(explained)
	if found != nil {
		r.askKernels(ctx, found)
	}
	return errors.Join(writeReport(w, o.output, r, r.writeText), r.exit())
}

// read reads the objects, and returns whom to ask of kernels; nil if nobody.
func (o *explainOptions) read(ctx context.Context) (agents, policy.Snapshot, []*policy.Service, error) {
	var found agents
	if o.agents.address != "" {
		one, err := newOneAgent(o.agents.address)
		if err != nil {
			return nil, policy.Snapshot{}, nil, err
		}
		found = one
	}
	if o.manifests != "" {
		s, err := informer.Load(o.manifests)
		if err != nil {
			return nil, s, nil, err
		}
		services, err := loadServices(o.manifests)
		return found, s, services, err
	}
	config, err := o.agents.kube.config()
	if err != nil {
		return nil, policy.Snapshot{}, nil, noSource(err)
	}
	s, err := fetch(ctx, config)
	if err != nil {
		return nil, s, nil, err
	}
	var services []*policy.Service
	if isService(o.question.From) || isService(o.question.To) {
		if services, err = fetchServices(ctx, config); err != nil {
			return nil, s, nil, err
		}
	}
	if found == nil && !o.noKernel {
		found, err = newClusterAgents(config, o.agents.namespace)
	}
	return found, s, services, err
}

// isService tells whether Services must be known for a name, or an address that may be
// one's.
func isService(end string) bool {
	kind, _, named := strings.Cut(strings.ToLower(strings.TrimSpace(end)), "/")
	if _, err := netip.ParseAddr(kind); err == nil {
		return true
	}
	return named && (kind == "svc" || kind == "service" || kind == "services")
}

// explainReport is what `selvage explain` shows. Its JSON is for programs: what is there
// keeps its name and meaning.
type explainReport struct {
	// Outcome is that of all together: allowed, denied or unclear. Kernels that disagree
	// or do not answer do not change it; see Certain.
	Outcome policy.Outcome `json:"outcome"`
	// Certain is that all kernels in question have agreed, or were not to be asked.
	Certain bool `json:"certain"`
	// Explanations are one of each distinct result, those denied first.
	Explanations []explained `json:"explanations"`
}

// explained is an explanation, and what the kernels say of it.
type explained struct {
	policy.Explanation
	Kernels []kernelReport `json:"kernels,omitempty"`
}

// kernelReport is what the kernel of a node says.
type kernelReport struct {
	Node string `json:"node"`
	// Agrees is that it does what it should.
	Agrees bool `json:"agrees"`
	// Should is what it should do, allowed or denied.
	Should policy.Outcome `json:"should"`
	// Answer is missing if it could not be asked, for the reason that Error gives.
	Answer *kernelAnswer `json:"answer,omitempty"`
	Error  string        `json:"error,omitempty"`
}

func newExplainReport(all []policy.Explanation) *explainReport {
	r := &explainReport{Outcome: policy.OutcomeOf(all), Certain: true, Explanations: []explained{}}
	for _, e := range all {
		r.Explanations = append(r.Explanations, explained{Explanation: e})
	}
	return r
}

// exit is the exit code of a report.
func (r *explainReport) exit() error {
	switch {
	case !r.Certain || r.Outcome == policy.OutcomeUnclear:
		return &exitError{code: exitUnknown}
	case r.Outcome == policy.OutcomeDenied:
		return &exitError{code: exitNo}
	}
	return nil
}

// writeText writes a report for people.
func (r *explainReport) writeText(to io.Writer) error {
	w := bufio.NewWriter(to)
	for i := range r.Explanations {
		e := &r.Explanations[i]
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprint(w, e.String())
		for j := range e.Kernels {
			e.Kernels[j].write(w)
		}
	}
	return w.Flush() // tells of the first error of all
}

// write writes what a kernel says.
func (k *kernelReport) write(w io.Writer) {
	about := "kernel of node " + printable(k.Node) + ": "
	if k.Answer == nil {
		fmt.Fprintf(w, "%scannot be asked: %s\n", about, printable(k.Error))
		return
	}
	does := "allows"
	if !k.Answer.Allowed {
		does = "denies"
	}
	if k.Agrees {
		fmt.Fprintf(w, "%s%s, as it should\n", about, does)
		return
	}
	fmt.Fprintf(w, "%sdisagrees: it %s: %s\n", about, does,
		cmp.Or(k.Answer.Remark, "these rules matched; `selvage status` tells whether the node is in sync"))
	for _, s := range k.Answer.Path {
		fmt.Fprintf(w, "  %s: %s\n", printable(s.Chain), printable(s.Rule))
	}
}
