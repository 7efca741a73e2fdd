package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// maxDropLine is how long a line of an agent may be, in bytes.
const maxDropLine = 1 << 20

// dropsOptions are what `selvage drops` can be told.
type dropsOptions struct {
	agents agentFlags
	filter dropFilter
	follow bool
	output string
}

// newDropsCommand returns the command; plugin is for that of kubectl's plugin.
func newDropsCommand(plugin bool) *cobra.Command {
	o := dropsOptions{output: "table"}
	cmd := &cobra.Command{
		Use:   "drops",
		Short: "show which packets policy denied, from where to where, and which policies isolate the pod",
		Long: `Show the last packets that policy denied, oldest first: the connection, and the
policies that isolate the pod, of which none allows it. They are samples: of each pod
two packets a second at most. The first of a kind is a line, and those that repeat it
are one line a minute, with their count. Where <unknown pod> stands for the policies, an
address is one of the node's pods that no pod is known to have.

Without --all it is this node, by its agent at ` + defaultAgent + `, if there is one, and
else all nodes, whose agents are asked through the API server. That takes the rights to
list pods and to get pods/proxy, and agents that listen at their node's address.

The exit code is 0, or 2 if no agent answers.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			return o.run(cmd.Context(), &o.agents, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	o.agents.add(f)
	o.agents.addAll(f, plugin)
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with those that come")
	f.StringVarP(&o.filter.namespace, "namespace", "n", "", "only those from or to pods of this namespace")
	f.StringVar(&o.filter.pod, "pod", "", "only those from or to pods of this name")
	f.StringVar(&o.filter.direction, "direction", "", "only those of ingress or of egress, from the view of the pod that is isolated")
	f.StringVarP(&o.output, "output", "o", o.output, "table, or json: an object on each line")
	return answers(cmd)
}

func (o *dropsOptions) validate() error {
	errs := []error{o.agents.validate()}
	if err := o.filter.validate(); err != nil {
		errs = append(errs, fmt.Errorf("--%w", err))
	}
	if o.output != "table" && o.output != "json" {
		errs = append(errs, fmt.Errorf("--output: %q is neither table nor json", o.output))
	}
	return errors.Join(errs...)
}

// dropsAnswer is a line of an agent, or why there is none, or none any more.
type dropsAnswer struct {
	from *agentAt
	drop
	dropsLeftOut
	err  error
	mute bool // with err: the agent has said nothing that makes sense
}

// run asks all agents and writes what they say: by time or, if they are followed, as it
// comes. That some do not answer is said, but is an error only if none does.
func (o *dropsOptions) run(ctx context.Context, from agents, stdout, stderr io.Writer) error {
	all, err := from.find(ctx)
	if err != nil {
		return err
	}
	if !o.follow {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, askTimeout)
		defer cancel()
	}
	p := o.printer(stdout, len(all) > 1)
	var found []drop
	failed, mute := 0, 0
	for a := range o.stream(ctx, all) {
		switch {
		case o.follow && ctx.Err() != nil: // it was ended, and all that fails now fails for that
		case a.err != nil:
			fmt.Fprintf(stderr, "selvage: %s%s\n", atNode(a.from), printable(a.err.Error()))
			if failed++; a.mute {
				mute++
			}
		case a.LeftOut > 0:
			fmt.Fprintf(stderr, "selvage: %s%d drops were left out: they came too fast\n", atNode(a.from), a.LeftOut)
		case o.follow:
			p.print([]drop{a.drop})
		default:
			found = append(found, a.drop)
		}
	}
	slices.SortStableFunc(found, func(a, b drop) int { return a.Time.Compare(b.Time) })
	p.print(found)
	switch err := p.end(); {
	case err != nil:
		return err
	case mute == len(all):
		return &exitError{code: exitUnknown}
	case len(found)+failed == 0 && !o.follow && o.output == "table":
		fmt.Fprintln(stderr, "No drops were seen lately.")
	}
	return nil
}

func atNode(a *agentAt) string {
	if a.node == "" {
		return ""
	}
	return "node " + printable(a.node) + ": "
}

// stream asks all agents at once, and returns their lines as they come, until all have
// ended. An agent's end is a line only if it is an error.
func (o *dropsOptions) stream(ctx context.Context, all []agentAt) <-chan dropsAnswer {
	lines := make(chan dropsAnswer, askAtOnce)
	go func() {
		defer close(lines)
		var group errgroup.Group
		if !o.follow { // those who are followed do not end
			group.SetLimit(askAtOnce)
		}
		for i := range all {
			group.Go(func() error {
				if heard, err := o.read(ctx, &all[i], lines); err != nil {
					lines <- dropsAnswer{from: &all[i], err: err, mute: !heard}
				}
				return nil
			})
		}
		_ = group.Wait() // what went wrong is among the lines
	}()
	return lines
}

// read reads what one agent says, to its end. heard tells whether that was anything, if
// only that there is nothing.
func (o *dropsOptions) read(ctx context.Context, a *agentAt, lines chan<- dropsAnswer) (heard bool, err error) {
	q := o.filter.query()
	if o.follow {
		q.Set("follow", "1")
	}
	body, err := a.open(ctx, "drops", q)
	if err != nil {
		return false, err
	}
	defer body.Close()
	in := bufio.NewScanner(body)
	in.Buffer(nil, maxDropLine)
	for in.Scan() {
		if len(in.Bytes()) == 0 {
			continue
		}
		line := dropsAnswer{from: a}
		if err := json.Unmarshal(in.Bytes(), &line); err != nil {
			return heard, fmt.Errorf("what it says of /drops cannot be understood: %w: see that it is an agent of Selvage, of this version", err)
		}
		line.clean()
		lines <- line
		heard = true
	}
	switch err := in.Err(); {
	case errors.Is(err, context.DeadlineExceeded):
		return heard, fmt.Errorf("its agent has not answered for %v", askTimeout)
	case err != nil:
		return heard, fmt.Errorf("its agent is not heard any more: %w", err)
	case o.follow:
		return true, errors.New("its agent has ended: there is nothing more to follow")
	}
	return true, nil
}

// clean makes what came from elsewhere fit for a terminal.
func (n *drop) clean() {
	for _, s := range []*string{
		&n.Node, &n.Direction, (*string)(&n.Reason), &n.Protocol, &n.Interface,
		&n.Source.Namespace, &n.Source.Pod, &n.Destination.Namespace, &n.Destination.Pod,
	} {
		*s = printable(*s)
	}
	for i := range n.Policies {
		n.Policies[i] = dropPolicy{printable(n.Policies[i].Namespace), printable(n.Policies[i].Name)}
	}
}
