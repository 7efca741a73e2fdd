package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/selvage-net/selvage/e2e/answers"
	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
)

// cell is one field of the matrix: for each family what the story claims, what
// the oracle says and what was seen.
type cell struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Claim  string `json:"claim"`
	Oracle string `json:"oracle"`
	Seen   string `json:"seen"`
	err    error
}

func (c *cell) passed() bool { return c.Claim == c.Oracle && c.Claim == c.Seen && c.err == nil }

// check is something besides the matrix that must hold.
type check struct {
	Text   string `json:"text"`
	Passed bool   `json:"passed"`
	Detail string `json:"detail,omitempty"`
}

// result is what a step brought.
type result struct {
	Title  string  `json:"title"`
	Cells  []*cell `json:"cells"`
	Checks []check `json:"checks,omitempty"`
	// Flows and Transfer are of the acts about bandwidth.
	Flows    []flowResult `json:"flows,omitempty"`
	Transfer *transfer    `json:"transfer,omitempty"`
	// Sources and Output are of the acts about pools.
	Sources []sourceRow `json:"sources,omitempty"`
	Output  string      `json:"output,omitempty"`
}

// walk does a step, which has a number, and reports it.
func (c *cluster) walk(ctx context.Context, r *report, i int, s *step) error {
	r.heading(i, s.title, s.about)
	r.manifests(s)
	res := &result{Title: s.title}
	if s.act == cutLive {
		if err := c.openLive(ctx); err != nil {
			return err
		}
	}
	before, err := c.kernelState(ctx)
	if err != nil {
		return err
	}
	if err := c.change(ctx, s); err != nil {
		return err
	}
	if res.Cells, err = c.matrix(ctx, s); err != nil {
		return err
	}
	if res.Checks, err = c.checkLive(ctx); err != nil {
		return err
	}
	if s.act == killAgents || s.act == restartAgents {
		after, err := c.kernelState(ctx)
		if err != nil {
			return err
		}
		res.Checks = append(res.Checks, compareKernels(before, after)...)
	}
	r.step(s, res)
	return nil
}

// change does what the step does and waits until the kernel enforces it.
func (c *cluster) change(ctx context.Context, s *step) error {
	switch s.act {
	case killAgents:
		for _, a := range c.agents {
			if err := a.Kill(); err != nil {
				return err
			}
		}
		return nil
	case restartAgents:
		return c.startAgents(ctx)
	}
	if len(s.add)+len(s.remove) == 0 {
		return nil
	}
	return c.await(ctx, len(s.add)+len(s.remove), func() error {
		return errors.Join(c.write(s.add...), c.remove(s.remove...))
	})
}

// await does something that means some events, and waits until all agents have them
// enforced.
func (c *cluster) await(ctx context.Context, events int, do func() error) error {
	want := make([]int, len(c.nodes))
	for i, n := range c.nodes {
		before, err := answers.Programmed(ctx, n)
		if err != nil {
			return err
		}
		want[i] = before + events
	}
	if err := do(); err != nil {
		return err
	}
	for i, n := range c.nodes {
		if err := answers.WaitProgrammed(ctx, n, want[i]); err != nil {
			return err
		}
	}
	return nil
}

// matrix tries every cell of the step over both families, all at once.
func (c *cluster) matrix(ctx context.Context, s *step) ([]*cell, error) {
	snapshot, err := informer.Load(c.dir)
	if err != nil {
		return nil, err
	}
	var cells []*cell
	var probes []world.Probe
	var of []*cell // the cell of each probe
	for _, row := range s.claims {
		for i, column := range s.columns {
			claim := claims[row.claims[i]]
			if claim == "" {
				continue
			}
			ce := &cell{From: row.from, To: column, Claim: claim}
			cells = append(cells, ce)
			to, err := c.target(column)
			if err != nil {
				return nil, err
			}
			expected := c.expected(snapshot, row.from, to)
			ce.Oracle = word(expected)
			for f := range policy.Families {
				probes = append(probes, world.Probe{
					From: c.places[row.from].Namespace, To: to.to[f], Protocol: policy.TCP, Want: expected[f],
				})
				of = append(of, ce)
			}
		}
	}
	results := c.world.Probe(ctx, probes...)
	for i := 0; i < len(results); i += len(policy.Families) {
		pair := [2]world.Outcome{results[i].Outcome, results[i+1].Outcome}
		of[i].Seen = word(pair)
		for _, res := range results[i : i+2] {
			if res.Err != nil {
				of[i].err = res.Err
			}
		}
	}
	return cells, ctx.Err()
}

// expected asks the oracle.
func (c *cluster) expected(s policy.Snapshot, from string, to target) [2]world.Outcome {
	var out [2]world.Outcome
	src := withPort(c.places[from].addrs, 0)
	for f := range policy.Families {
		p := oracle.Packet{Src: src[f].Addr(), Dst: to.ends[f].Addr(), Protocol: policy.TCP, Port: to.ends[f].Port()}
		out[f] = c.world.Expect(s, p)
	}
	return out
}

// claims are the words for the letters of a row.
var claims = map[byte]string{'o': "open", 'x': "drop", '6': "v6 only"}

// word names what becomes of connections over IPv4 and IPv6.
func word(o [2]world.Outcome) string {
	switch o {
	case [2]world.Outcome{world.Allowed, world.Allowed}:
		return "open"
	case [2]world.Outcome{world.Dropped, world.Dropped}:
		return "drop"
	case [2]world.Outcome{world.Allowed, world.Dropped}:
		return "v4 only"
	case [2]world.Outcome{world.Dropped, world.Allowed}:
		return "v6 only"
	}
	return fmt.Sprintf("%s/%s", o[0], o[1])
}

// checkLive talks over all connections that are held.
func (c *cluster) checkLive(ctx context.Context) ([]check, error) {
	checks := make([]check, len(c.live))
	errs := make(chan error, len(c.live))
	for i, l := range c.live {
		go func() {
			alive, err := l.talk(ctx, l.survives)
			verb := map[bool]string{true: "lives on", false: "is cut"}[l.survives]
			checks[i] = check{Text: fmt.Sprintf("the connection of %s %s", l.name, verb), Passed: alive == l.survives && err == nil}
			if err != nil {
				checks[i].Detail = err.Error()
			}
			errs <- ctx.Err()
		}()
	}
	for range c.live {
		if err := <-errs; err != nil {
			return nil, err
		}
	}
	return checks, nil
}

// kernel is what a node's kernel has been told.
type kernel struct {
	node       string
	generation uint32
	ruleset    string
}

func (c *cluster) kernelState(ctx context.Context) ([]kernel, error) {
	var all []kernel
	for _, n := range c.nodes {
		generation, err := n.RulesetGeneration()
		if err != nil {
			return nil, err
		}
		ruleset, err := n.Run(ctx, "nft", "-s", "list", "ruleset")
		if err != nil {
			return nil, err
		}
		all = append(all, kernel{n.Name, generation, ruleset})
	}
	return all, nil
}

func compareKernels(before, after []kernel) []check {
	var checks []check
	for i, b := range before {
		a := after[i]
		checks = append(checks,
			check{
				Text:   fmt.Sprintf("%s: the ruleset's generation in the kernel is still %d", b.node, b.generation),
				Passed: a.generation == b.generation,
				Detail: fmt.Sprintf("now %d", a.generation),
			},
			check{
				Text:   fmt.Sprintf("%s: all %d lines of its ruleset are the same", b.node, strings.Count(b.ruleset, "\n")),
				Passed: a.ruleset == b.ruleset,
				Detail: "they differ",
			})
	}
	return checks
}
