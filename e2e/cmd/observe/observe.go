package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
	"github.com/selvage-net/selvage/e2e/observe"
)

// window is how much of the past the dashboards show.
const window = 2 * time.Minute

// variables are what the dashboards' are set to: to all, but for the node of the
// dashboard that shows one.
func variables() map[string]observe.Variables {
	return map[string]observe.Variables{
		"": {
			"node": ".*", "namespace": ".*", "policy": ".*", "pool": ".*",
			"__rate_interval": "15s", "__range": fmt.Sprintf("%.0fs", window.Seconds()), "datasource": "prometheus",
		},
		"node": {"node": "n2"},
	}
}

// observe looks at a cluster in which all is well, and then at one in which much is not.
func (r *run) observe(ctx context.Context, tools observe.Tools) error {
	load, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := r.load(load); err != nil {
		return err
	}
	// Rates need some time.
	if err := sleep(ctx, 30*time.Second); err != nil {
		return err
	}
	r.checkMetrics(ctx, tools)
	r.checks.Check("no alert fires while all is well", r.quiet(ctx))
	if err := r.ask(ctx); err != nil {
		return err
	}
	if err := r.look(ctx); err != nil {
		return err
	}
	if err := r.provokeAll(ctx); err != nil {
		return err
	}
	r.conclude()
	return ctx.Err()
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// load has player get and send as much as it may, until ctx ends.
func (r *run) load(ctx context.Context) error {
	player, err := r.probe(ctx, "media", "player")
	if err != nil {
		return err
	}
	disk, err := r.probe(ctx, "media", "disk")
	if err != nil {
		return err
	}
	port, err := disk.Bulk(ctx)
	if err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	ip, _, err := r.pod(ctx, "media", "disk")
	if err != nil {
		return err
	}
	for _, down := range []bool{true, false} {
		go func() {
			for ctx.Err() == nil {
				// Whether it goes through is for the graphs to show.
				_, _ = player.Transfer(ctx, probe.Transfer{To: fmt.Sprintf("%s:%d", ip, port), Down: down, Length: 5 * time.Second})
			}
		}()
	}
	return nil
}

// pod returns a pod's address and node.
func (r *run) pod(ctx context.Context, namespace, name string) (ip, node string, err error) {
	p, err := r.kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", "", err
	}
	return p.Status.PodIP, p.Spec.NodeName, nil
}

// probe returns the client of a pod's probe. It asks from the pod's own node, which no
// policy forbids.
func (r *run) probe(ctx context.Context, namespace, name string) (*probe.Client, error) {
	ip, node, err := r.pod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return &probe.Client{HTTP: &http.Client{Transport: r.transport(node)}, URL: "http://" + ip + ":9100"}, nil
}

// quiet returns an error if an alert fires.
func (r *run) quiet(ctx context.Context) error {
	firing, err := r.prom.Firing(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, a := range firing {
		names = append(names, fmt.Sprintf("%s: %s", a.Name, a.Annotations["description"]))
	}
	if len(names) > 0 {
		return errors.New(strings.Join(names, "; "))
	}
	return nil
}

// look asks all queries, and remembers which of them have had data.
func (r *run) look(ctx context.Context) error {
	now := time.Now()
	w := observe.Window{From: now.Add(-window), To: now, Step: time.Second}
	for _, b := range r.boards {
		vars := variables()[""].With(variables()[b.File])
		for _, q := range b.Queries() {
			a, err := r.prom.Ask(ctx, q, vars, w)
			if err != nil {
				return err
			}
			r.answers[q.String()] = r.answers[q.String()] || !a.Empty()
		}
	}
	return nil
}

// conclude checks that each query has had data at some time.
func (r *run) conclude() {
	for _, name := range slices.Sorted(maps.Keys(r.answers)) {
		var err error
		if !r.answers[name] {
			err = errors.New("it never had data")
		}
		r.checks.Check("query "+name, err)
	}
}

// draw writes the dashboards as they are now, and makes pictures of them.
func (r *run) draw(ctx context.Context) error {
	now := time.Now()
	w := observe.Window{From: now.Add(-window), To: now, Step: time.Second}
	page, err := r.prom.Draw(ctx, r.boards, variables(), w, "as they were at "+now.UTC().Format(time.RFC3339))
	if err != nil {
		return err
	}
	name := filepath.Join(r.o.state, "dashboards.html")
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := errors.Join(page.Write(file), file.Close()); err != nil {
		return err
	}
	_, err = page.Shoot(ctx, name)
	return err
}
