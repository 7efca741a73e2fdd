package main

import (
	"context"
	"net/url"
	"slices"
	"strconv"
	"sync"

	"github.com/selvage-net/selvage/policy"
)

// askKernels asks the agents of the nodes in question what their kernels make of the
// connections.
func (r *explainReport) askKernels(ctx context.Context, found agents) {
	var all []agentAt
	var why error
	for i := range r.Explanations {
		if len(r.Explanations[i].Nodes) > 0 {
			all, why = found.find(ctx)
			break
		}
	}
	var wg sync.WaitGroup
	for i := range r.Explanations {
		e := &r.Explanations[i]
		e.Kernels = make([]kernelReport, len(e.Nodes))
		for j, n := range e.Nodes {
			k := &e.Kernels[j]
			k.Node, k.Should = n.Node, n.Outcome
			if why != nil {
				k.Error = why.Error()
				continue
			}
			wg.Go(func() { k.ask(ctx, all, e.Flow) })
		}
	}
	wg.Wait()
	for i := range r.Explanations {
		for _, k := range r.Explanations[i].Kernels {
			r.Certain = r.Certain && k.Agrees
		}
	}
}

// ask asks the agent of the node.
func (k *kernelReport) ask(ctx context.Context, all []agentAt, f policy.Flow) {
	i := slices.IndexFunc(all, func(a agentAt) bool { return a.node == k.Node || a.node == "" })
	if i < 0 {
		k.Error = "no agent was found on this node: nothing is enforced there but what one before has left"
		return
	}
	var answer kernelAnswer
	query := url.Values{
		"from": {f.From.Addr.String()}, "to": {f.To.Addr.String()},
		"protocol": {strconv.Itoa(int(f.Protocol))}, "port": {strconv.Itoa(int(f.Port))},
	}
	switch err := all[i].get(ctx, "explain", query, &answer); {
	case err != nil:
		k.Error = err.Error()
	case answer.Node != k.Node:
		k.Error = "--agent leads to the agent of " + answer.Node
	default:
		k.Answer, k.Agrees = &answer, answer.Allowed == (k.Should == policy.OutcomeAllowed)
	}
}
