package observe

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"
)

// Address is where the Prometheus of Start listens, in the network that it runs in.
const Address = "127.0.0.1:9090"

// Options say what a Prometheus scrapes, and where.
type Options struct {
	// Repo has the scrape configuration and the alerts.
	Repo string
	// Kube is the API server that knows the agents.
	Kube kubernetes.Interface
	// Dir is for its data, its configuration and its log. What is in it is removed.
	Dir string
	// Every is the time between two scrapes and evaluations of rules, Wait how long
	// alerts wait that wait at all; both as Prometheus writes them.
	Every, Wait string
	// Command returns, not started, a program in the network of the cluster.
	Command func(argv ...string) *exec.Cmd
}

// Start starts a Prometheus and returns what ends it. It scrapes the agents and
// evaluates the alerts, as an operator's does.
func (t Tools) Start(ctx context.Context, o Options) (stop func(), err error) {
	if err := errors.Join(os.RemoveAll(o.Dir), os.MkdirAll(o.Dir, 0o755)); err != nil {
		return nil, err
	}
	d, err := o.configure()
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(o.Dir, "prometheus.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := o.Command(t.Prometheus, "--config.file="+filepath.Join(o.Dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(o.Dir, "data"), "--web.listen-address="+Address)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start Prometheus: %w", err)
	}
	following, end := context.WithCancel(ctx)
	go d.follow(following, o.Kube, filepath.Join(o.Dir, targetsFile))
	return func() {
		end()
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()                          // by that signal
	}, nil
}

// targetsFile has the agents.
const targetsFile = "targets.json"

// configure writes prometheus.yml and the alerts, which wait as long as the options say.
// It returns how the agents are to be found.
func (o Options) configure() (discovery, error) {
	rules, err := ReadRules(o.Repo)
	if err != nil {
		return discovery{}, err
	}
	text, err := yaml.Marshal(rules.Hastened(o.Wait))
	if err != nil {
		return discovery{}, err
	}
	if err := os.WriteFile(filepath.Join(o.Dir, "alerts.yml"), text, 0o644); err != nil {
		return discovery{}, err
	}
	scrape, err := os.ReadFile(filepath.Join(o.Repo, "deploy", "observe", "scrape.yaml"))
	if err != nil {
		return discovery{}, err
	}
	text, d, err := o.config(scrape)
	if err != nil {
		return discovery{}, err
	}
	return d, os.WriteFile(filepath.Join(o.Dir, "prometheus.yml"), text, 0o644)
}

// config makes a configuration of the part that operators get. Only where the agents are
// comes from elsewhere, see discovery.
func (o Options) config(scrape []byte) ([]byte, discovery, error) {
	var d discovery
	var c struct {
		Global  map[string]string `json:"global"`
		Rules   []string          `json:"rule_files"`
		Scrapes []map[string]any  `json:"scrape_configs"`
	}
	if err := yaml.UnmarshalStrict(scrape, &c); err != nil {
		return nil, d, fmt.Errorf("scrape.yaml: %w", err)
	}
	if len(c.Scrapes) != 1 {
		return nil, d, fmt.Errorf("scrape.yaml has %d jobs, not one", len(c.Scrapes))
	}
	job := c.Scrapes[0]
	text, err := yaml.Marshal(job["kubernetes_sd_configs"])
	if err != nil {
		return nil, d, err
	}
	var all []discovery
	if err := yaml.UnmarshalStrict(text, &all); err != nil {
		return nil, d, fmt.Errorf("scrape.yaml: kubernetes_sd_configs: %w", err)
	}
	if len(all) != 1 {
		return nil, d, fmt.Errorf("scrape.yaml has %d kubernetes_sd_configs, not one", len(all))
	}
	delete(job, "kubernetes_sd_configs")
	job["file_sd_configs"] = []any{map[string]any{"files": []string{targetsFile}}}
	c.Global = map[string]string{"scrape_interval": o.Every, "scrape_timeout": o.Every, "evaluation_interval": o.Every}
	c.Rules = []string{"alerts.yml"}
	text, err = yaml.Marshal(c)
	return text, all[0], errors.Join(err, all[0].validate())
}

// Await waits until the Prometheus is ready to answer.
func Await(ctx context.Context, transport http.RoundTripper) error {
	client := &http.Client{Transport: transport, Timeout: time.Second}
	return Poll(ctx, time.Minute, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+Address+"/-/ready", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("not ready: %s", resp.Status)
		}
		return nil
	})
}

// Poll calls f until it returns nil, and gives up with its last error.
func Poll(ctx context.Context, within time.Duration, f func(context.Context) error) error {
	deadline := time.Now().Add(within)
	for {
		err := f(ctx)
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %v: %w", within, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}
