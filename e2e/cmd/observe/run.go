package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/selvage-net/selvage/e2e/artifacts"
	"github.com/selvage-net/selvage/e2e/lab"
	"github.com/selvage-net/selvage/e2e/lab/machine"
	"github.com/selvage-net/selvage/e2e/observe"
)

//go:embed world.yaml
var world []byte

const (
	// every is the time between two scrapes, and evaluations of the alerts.
	every = "1s"
	// wait is how long an alert waits here that waits for minutes elsewhere.
	wait = "2s"
	// agents is where the agents are.
	agents = "selvage-system"
)

// run is one run, while it goes on.
type run struct {
	o       options
	checks  *observe.Checks
	began   time.Time
	set     *artifacts.Set
	lab     *lab.Client
	info    lab.Info
	kube    kubernetes.Interface
	prom    *observe.Client
	boards  []observe.Board
	answers map[string]bool // the queries that have had data, by name
	// units is what is wrong with the alerts by their unit tests.
	units error
}

// say says what happens, with the time since the start.
func (r *run) say(format string, args ...any) {
	t := time.Since(r.began).Round(time.Second)
	fmt.Fprintf(os.Stderr, "%02d:%02d  %s\n", int(t.Minutes()), int(t.Seconds())%60, fmt.Sprintf(format, args...))
}

// judge does everything. An error is what kept something from being judged.
func judge(ctx context.Context, o options, checks *observe.Checks) (err error) {
	r := &run{o: o, checks: checks, began: time.Now(), answers: make(map[string]bool)}
	if err := os.MkdirAll(o.state, 0o755); err != nil {
		return err
	}
	cache, err := artifacts.CacheDir("")
	if err != nil {
		return err
	}
	tools, err := observe.DebianTools(ctx, cache)
	if err != nil {
		return err
	}
	if r.boards, err = observe.Boards(o.repo); err != nil {
		return err
	}
	if err := r.promtool(ctx, tools); err != nil {
		return err
	}
	down, err := r.up(ctx)
	if err != nil {
		return err
	}
	defer func() {
		r.say("the cluster goes down")
		err = errors.Join(err, down())
	}()
	if err := r.deploy(ctx); err != nil {
		return errors.Join(err, r.save(context.WithoutCancel(ctx)))
	}
	stop, err := r.scrape(ctx, tools)
	if err != nil {
		return err
	}
	defer stop()
	err = errors.Join(r.observe(ctx, tools), r.save(context.WithoutCancel(ctx)))
	if o.keep && ctx.Err() == nil {
		r.say("the cluster is kept until Ctrl-C: bin/lab --dir %s kubectl -- get pods -A", r.labDir())
		<-ctx.Done()
	}
	return err
}

// promtool has it check the alerts, and run their unit tests.
func (r *run) promtool(ctx context.Context, tools observe.Tools) error {
	r.checks.Check("promtool check rules", tools.CheckRules(ctx, r.o.repo))
	files, err := observe.UnitTests(r.o.repo)
	if err != nil {
		return err
	}
	for _, f := range files {
		err := tools.TestRules(ctx, f)
		r.checks.Check("promtool test rules "+filepath.Base(f), err)
		r.units = errors.Join(r.units, err)
	}
	return nil
}

func (r *run) labDir() string { return filepath.Join(r.o.state, "lab") }

// up brings the cluster up, and returns what takes it down again.
func (r *run) up(ctx context.Context) (down func() error, err error) {
	progress := func(line string) { r.say("%s", line) }
	r.set, err = artifacts.Build(ctx, artifacts.Options{Repo: r.o.repo, Progress: progress, Only: []string{
		"kubernetes", "etcd", "containerd", "runc", "cni", "flanneld", "pause", "agnhost", "coredns", "selvage", "probe",
	}})
	if err != nil {
		return nil, err
	}
	cluster, err := lab.Start(ctx, lab.Options{
		Dir: r.labDir(), Artifacts: r.set, Progress: progress, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return nil, err
	}
	r.lab, err = lab.Connect(r.labDir())
	if err == nil {
		r.info, err = r.lab.Info(ctx)
	}
	if err == nil {
		r.kube, err = r.client(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, cluster.Close())
	}
	return cluster.Close, nil
}

func (r *run) client(ctx context.Context) (kubernetes.Interface, error) {
	config, err := r.lab.RESTConfig(ctx)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// deploy applies the manifests as they are, and makes the pods that talk.
func (r *run) deploy(ctx context.Context) error {
	for _, image := range []string{"selvage", "probe"} {
		if err := r.lab.LoadImage(ctx, r.set.Image(image)); err != nil {
			return fmt.Errorf("load the image %s: %w", image, err)
		}
	}
	overlay, err := r.overlay()
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"apply", "-k", overlay},
		{"-n", agents, "rollout", "status", "daemonset/selvage", "--timeout=2m"},
	} {
		if err := r.kubectl(ctx, nil, args...); err != nil {
			return err
		}
	}
	r.say("selvage is ready on all nodes")
	if err := r.kubectl(ctx, world, "apply", "-f", "-"); err != nil {
		return err
	}
	for _, namespace := range []string{"shop", "bank", "media"} {
		if err := r.kubectl(ctx, nil, "-n", namespace, "wait", "pod", "--all", "--for=condition=Ready", "--timeout=90s"); err != nil {
			return err
		}
	}
	return nil
}

// overlay returns a directory with what is deployed. The agents compare all that is in
// the kernel far more often than they would elsewhere, since only then do they find what
// others have changed in their tables, and other policy engines; and they write fewer
// lines about denied packets.
func (r *run) overlay() (string, error) {
	dir := filepath.Join(r.o.state, "deploy")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	base, err := filepath.Rel(dir, r.o.overlay)
	if err != nil {
		return "", err
	}
	text := `resources: ["` + base + `"]
patches:
  - target: {kind: DaemonSet, name: selvage}
    patch: |-
      - op: test
        path: /spec/template/spec/containers/0/args/8
        value: --resync-interval=5m
      - op: replace
        path: /spec/template/spec/containers/0/args/8
        value: --resync-interval=2s
      - op: add
        path: /spec/template/spec/containers/0/args/-
        value: --drop-log-rate=0.1
`
	return dir, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o644)
}

// kubectl runs it with something to read, or nothing.
func (r *run) kubectl(ctx context.Context, input []byte, args ...string) error {
	cmd := r.lab.NetCommand(ctx, lab.Fabric, append([]string{r.set.Binary("kubectl"), "--kubeconfig", r.info.Kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(string(input))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// scrape starts Prometheus beside the nodes, and returns what ends it.
func (r *run) scrape(ctx context.Context, tools observe.Tools) (stop func(), err error) {
	stop, err = tools.Start(ctx, observe.Options{
		Repo: r.o.repo, Kube: r.kube, Dir: filepath.Join(r.o.state, "prometheus"), Every: every, Wait: wait,
		Command: func(argv ...string) *exec.Cmd { return r.lab.NetCommand(ctx, lab.Fabric, argv...) },
	})
	if err != nil {
		return nil, err
	}
	transport := r.transport(lab.Fabric)
	if err := observe.Await(ctx, transport); err != nil {
		stop()
		return nil, err
	}
	r.prom, err = observe.NewClient("http://"+observe.Address, transport)
	return stop, err
}

// transport opens connections in the network of a machine.
func (r *run) transport(name string) *http.Transport {
	i := slices.IndexFunc(r.info.Machines, func(m lab.Machine) bool { return m.Name == name })
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return machine.Dial(ctx, r.info.Machines[i].PID, network, address)
	}}
}

// nodes are the machines with an agent.
func (r *run) nodes() []lab.Machine {
	return slices.DeleteFunc(slices.Clone(r.info.Machines), func(m lab.Machine) bool { return !m.Node })
}

// checkMetrics has promtool check what each agent shows.
func (r *run) checkMetrics(ctx context.Context, tools observe.Tools) {
	for _, n := range r.nodes() {
		text, err := r.get(ctx, n.Name, "/metrics")
		if err == nil {
			err = tools.CheckMetrics(ctx, text)
		}
		r.checks.Check("promtool check metrics, agent of "+n.Name, err)
	}
}

// get asks the agent of a node at the node's address.
func (r *run) get(ctx context.Context, node, path string) (string, error) {
	i := slices.IndexFunc(r.info.Machines, func(m lab.Machine) bool { return m.Name == node })
	client := &http.Client{Transport: r.transport(lab.Fabric), Timeout: 10 * time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(r.info.Machines[i].IP.String(), "9470")+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s of %s: %s", path, node, resp.Status)
	}
	return string(text), err
}

// save keeps what the agents have said, as long as there are any, and how the pods are.
func (r *run) save(ctx context.Context) error {
	var said bytes.Buffer
	for _, n := range r.nodes() {
		// The files are there without an API server, too, but not without agents.
		out, err := r.lab.Exec(ctx, n.Name, "sh", "-c", "cat /var/log/pods/"+agents+"_*/agent/*.log")
		if err == nil {
			fmt.Fprintf(&said, "==> %s\n%s", n.Name, out)
		}
	}
	files := map[string][]byte{"agents.log": said.Bytes()}
	for file, args := range map[string][]string{
		"pods.txt":   {"get", "pods", "-A", "-o", "wide"},
		"events.txt": {"get", "events", "-A", "--sort-by=.lastTimestamp"},
	} {
		cmd := r.lab.NetCommand(ctx, lab.Fabric, append([]string{r.set.Binary("kubectl"), "--kubeconfig", r.info.Kubeconfig}, args...)...)
		files[file], _ = cmd.Output() // it is only for whoever looks for a cause
	}
	for file, text := range files {
		if len(text) == 0 {
			continue // what was there says more
		}
		if err := os.WriteFile(filepath.Join(r.o.state, file), text, 0o644); err != nil {
			return err
		}
	}
	r.say("logs, pictures and the page are in %s", r.o.state)
	return nil
}
