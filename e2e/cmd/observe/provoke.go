package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/selvage-net/selvage/e2e/observe"
)

// provocation is what somebody does that alerts have to tell of.
type provocation struct {
	how    string
	alerts []string
	// do returns when it is done, or well under way, and undo makes it good. Those of one
	// stage are done at once.
	do, undo func(context.Context) error
}

// stage is what is wrong at one time.
type stage struct {
	name         string
	provocations []provocation
	// drawn has the dashboards drawn while it is so.
	drawn bool
}

// patience is how long alerts may take to fire. What is found by intervals alone takes
// half a minute.
const patience = 90 * time.Second

// unprovoked are the alerts that only promtool's unit tests have fire, and why.
func unprovoked() map[string]string {
	return map[string]string{
		"SelvageInvalidPolicies": "behind the API server's validation there is no such policy",
	}
}

// provokeAll goes through the stages, and checks that each alert fires.
func (r *run) provokeAll(ctx context.Context) error {
	for _, s := range r.stages() {
		r.say("%s", s.name)
		if err := r.provoke(ctx, s); err != nil {
			return err
		}
	}
	for name, why := range unprovoked() {
		r.checks.Check("alert "+name+": by promtool's unit tests alone: "+why, r.units)
	}
	return nil
}

// provoke goes through one stage. An error is that of a provocation that could not be
// made good, after which there is nothing to be learnt from others.
func (r *run) provoke(ctx context.Context, s stage) error {
	done := make([]error, len(s.provocations))
	var doing sync.WaitGroup
	var missing []string
	for i, p := range s.provocations {
		doing.Go(func() { done[i] = p.do(ctx) })
		missing = append(missing, p.alerts...)
	}
	doing.Wait()
	fired, err := r.fired(ctx, missing)
	if err != nil {
		return err
	}
	for i, p := range s.provocations {
		for _, name := range p.alerts {
			r.checks.Check(fmt.Sprintf("alert %s: %s", name, p.how), errors.Join(done[i], told(fired, name)))
		}
	}
	if err := r.look(ctx); err != nil {
		return err
	}
	if s.drawn {
		r.checks.Check("the dashboards are drawn", r.draw(ctx))
	}
	for i, p := range s.provocations {
		if p.undo == nil {
			continue
		}
		if uerr := p.undo(ctx); done[i] == nil { // else there may be nothing to undo
			err = errors.Join(err, uerr)
		}
	}
	return err
}

// fired waits until all alerts have fired, however short, and returns those that did, by
// name.
func (r *run) fired(ctx context.Context, names []string) (map[string]observe.Fired, error) {
	seen := make(map[string]observe.Fired)
	err := observe.Poll(ctx, patience, func(ctx context.Context) error {
		firing, err := r.prom.Firing(ctx)
		if err != nil {
			return err
		}
		for _, a := range firing {
			seen[a.Name] = a
		}
		missing := slices.DeleteFunc(slices.Clone(names), func(n string) bool { _, ok := seen[n]; return ok })
		if len(missing) > 0 {
			return fmt.Errorf("%v do not fire", missing)
		}
		return nil
	})
	if err != nil && len(seen) == 0 && ctx.Err() != nil {
		return nil, err
	}
	return seen, nil
}

// told returns an error unless an alert has fired, with words that make sense.
func told(fired map[string]observe.Fired, name string) error {
	a, ok := fired[name]
	if !ok {
		return fmt.Errorf("it does not fire; %v do", slices.Sorted(maps.Keys(fired)))
	}
	for key, text := range a.Annotations {
		if strings.Contains(text, "<no value>") || strings.Contains(text, "<error") || strings.Contains(text, "node  ") {
			return fmt.Errorf("its %s is %q", key, text)
		}
	}
	return nil
}

// sh runs a line of shell on a node, with the programs of this machine.
func (r *run) sh(ctx context.Context, node, line string) error {
	_, err := r.lab.Exec(ctx, node, "sh", "-ec", line)
	return err
}

// shell is a provocation by two lines of shell on a node.
func (r *run) shell(node, do, undo string) (func(context.Context) error, func(context.Context) error) {
	run := func(line string) func(context.Context) error {
		if line == "" {
			return nil
		}
		return func(ctx context.Context) error { return r.sh(ctx, node, line) }
	}
	return run(do), run(undo)
}
