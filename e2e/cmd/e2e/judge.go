package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/e2e/artifacts"
	"github.com/selvage-net/selvage/e2e/lab"
	"github.com/selvage-net/selvage/e2e/report"
)

// run is one run, while it goes on.
type run struct {
	o    options
	say  *narrator
	set  *artifacts.Set
	lab  *lab.Client
	info lab.Info

	mu      sync.Mutex
	figures []report.Figure
}

func (r *run) figure(name, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.figures = append(r.figures, report.Figure{Name: name, Value: fmt.Sprintf(format, args...)})
}

func (r *run) timed(suite string, took time.Duration) {
	r.figure("suite "+suite, "%.0f s", took.Seconds())
}

func (r *run) labDir() string { return filepath.Join(r.o.state, "lab") }

// judge does everything. What it returns holds whatever was found out, also if
// there is an error. The table of results is written if all of it was run.
func judge(ctx context.Context, o options, say *narrator) (section report.Section, err error) {
	if err := os.MkdirAll(o.state, 0o755); err != nil {
		return section, err
	}
	r := &run{o: o, say: say}
	r.set, err = artifacts.Build(ctx, artifacts.Options{Repo: o.repo, Progress: func(s string) { say.printf("%s", s) }})
	if err != nil {
		return section, err
	}
	down, err := r.up(ctx)
	if err != nil {
		return section, err
	}
	defer func() { err = errors.Join(err, down()) }()
	if err := r.deploy(ctx); err != nil {
		return section, errors.Join(err, r.save(context.WithoutCancel(ctx)))
	}
	specs, err := r.suites(ctx)
	section = report.Section{Name: o.backend, About: r.about(), Figures: r.figures, Specs: report.Merge(specs)}
	if err == nil && o.focus == "" && len(o.suites) == len(all()) {
		err = section.Write(o.out)
	}
	say.printf("logs and reports are in %s", o.state)
	if o.keep && ctx.Err() == nil {
		say.printf("the cluster is kept until Ctrl-C: bin/lab --dir %s kubectl -- get pods -A", r.labDir())
		<-ctx.Done()
	}
	return section, err
}

// up brings the cluster up, and returns what takes it down again.
func (r *run) up(ctx context.Context) (down func() error, err error) {
	began := time.Now()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), besides("lab"), "run", "--dir", r.labDir(), "--backend", r.o.backend, "--die-with-parent")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	// It is told when to end, and not by Ctrl-C: the suites end first.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the lab: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	down = func() error {
		r.say.printf("the cluster goes down")
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		if err := <-ended; err != nil {
			return fmt.Errorf("the lab: %w", err)
		}
		return nil
	}
	if err := r.await(ctx, ended); err != nil {
		if ctx.Err() != nil {
			return nil, errors.Join(err, down())
		}
		return nil, err
	}
	r.figure("cluster up: three nodes ready, DNS available", "%.1f s", time.Since(began).Seconds())
	return down, nil
}

// await waits until the lab is ready.
func (r *run) await(ctx context.Context, ended <-chan error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return errors.Join(errors.New("the lab ended before it was ready"), err)
		case <-tick.C:
		}
		client, err := lab.Connect(r.labDir())
		if err != nil {
			continue
		}
		if info, err := client.Info(ctx); err == nil && info.Ready {
			r.lab, r.info = client, info
			return nil
		}
	}
}

// deploy loads the image and applies the manifests as they are, and waits for
// all agents.
func (r *run) deploy(ctx context.Context) error {
	for _, image := range []string{"selvage", "probe"} {
		if err := r.lab.LoadImage(ctx, r.set.Image(image)); err != nil {
			return fmt.Errorf("load the image %s: %w", image, err)
		}
	}
	began := time.Now()
	if err := r.kubectl(ctx, "apply", "-k", filepath.Join(r.o.repo, "deploy", "overlays", "flannel")); err != nil {
		return err
	}
	if err := r.kubectl(ctx, "-n", "selvage-system", "rollout", "status", "daemonset/selvage", "--timeout=2m"); err != nil {
		return err
	}
	took := time.Since(began)
	r.say.printf("selvage is ready on all nodes, %.1f s after apply", took.Seconds())
	r.figure("from `kubectl apply -k` to ready on three nodes", "%.1f s", took.Seconds())
	return nil
}

func (r *run) kubectl(ctx context.Context, args ...string) error {
	cmd := r.lab.NetCommand(ctx, "fabric", append([]string{r.set.Binary("kubectl"), "--kubeconfig", r.info.Kubeconfig}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// suites runs them: upstream's and ours at once, then those that need the
// cluster for themselves; when all rounds are over those that leave it in a bad
// state: without an API server for some minutes, and without Selvage.
func (r *run) suites(ctx context.Context) ([]report.Spec, error) {
	following, stop := context.WithCancel(ctx)
	defer stop()
	u := follow(following, r.nodes())
	chosen := r.suitesOf(r.o)
	var specs []report.Spec
	together := func(round int, names ...string) error {
		found := make([][]report.Spec, len(names))
		group, ctx := errgroup.WithContext(ctx)
		for i, name := range names {
			if s, ok := chosen[name]; ok {
				group.Go(func() (err error) {
					found[i], err = r.play(ctx, s, round)
					return err
				})
			}
		}
		err := group.Wait()
		specs = append(specs, slices.Concat(found...)...)
		return err
	}
	for round := 1; round <= r.o.repeat; round++ {
		if err := together(round, upstream, parallel); err != nil {
			return specs, err
		}
		if err := together(round, serial); err != nil {
			return specs, err
		}
	}
	if err := together(1, outage); err != nil {
		return specs, err
	}
	for _, f := range u.figures() {
		r.figure(f.Name, "%s", f.Value)
	}
	if err := r.save(ctx); err != nil {
		return specs, err
	}
	return specs, together(1, uninstall)
}

func (r *run) nodes() []lab.Machine {
	var nodes []lab.Machine
	for _, m := range r.info.Machines {
		if m.Node {
			nodes = append(nodes, m)
		}
	}
	return nodes
}

// save keeps what the agents have said, and how the pods are.
func (r *run) save(ctx context.Context) error {
	for file, args := range map[string][]string{
		"agents.log": {"-n", "selvage-system", "logs", "-l", "app.kubernetes.io/name=selvage", "--tail=-1", "--prefix"},
		"pods.txt":   {"get", "pods", "-A", "-o", "wide"},
		"events.txt": {"get", "events", "-A", "--sort-by=.lastTimestamp"},
	} {
		cmd := r.lab.NetCommand(ctx, "fabric", append([]string{r.set.Binary("kubectl"), "--kubeconfig", r.info.Kubeconfig}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			out = append(out, err.Error()...)
		}
		if err := os.WriteFile(filepath.Join(r.o.state, file), out, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// about says what was run, and where.
func (r *run) about() string {
	var uname unix.Utsname
	kernel := "unknown"
	if err := unix.Uname(&uname); err == nil {
		kernel = unix.ByteSliceToString(uname.Release[:])
	}
	commit := "unknown"
	if out, err := exec.Command("git", "-C", r.o.repo, "describe", "--always", "--dirty", "--exclude=*").Output(); err == nil {
		commit = strings.TrimSpace(string(out))
	}
	return fmt.Sprintf("`make e2e BACKEND=%s`, %s, commit %s; Kubernetes %s, three nodes, kernel %s, %d cores; upstream's suite with %d processes, %s.",
		r.o.backend, time.Now().UTC().Format("2006-01-02 15:04 UTC"), commit, artifacts.KubernetesVersion, kernel, runtime.NumCPU(), r.o.procs, times(r.o.repeat))
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times in a row", n)
}
