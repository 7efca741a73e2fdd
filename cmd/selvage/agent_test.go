package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/selvage-net/selvage/informer/link/isolate"
)

// asProgram, if it is set, makes the test binary behave as selvage does.
const asProgram = "SELVAGE_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run("selvage", os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// selvage is a command line of the program in a process of its own.
func selvage(binary string, args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	cmd.Env = []string{asProgram + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// fails runs a command line that must end with exit code 1 and one line on
// stderr, and returns that line.
func fails(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("%v: %v, want exit code 1\n%s", cmd.Args[1:], err, stderr.String())
	}
	line := stderr.String()
	if !strings.HasPrefix(line, "selvage: ") || strings.Count(line, "\n") != 1 {
		t.Errorf("%v: said %q, want one line", cmd.Args[1:], line)
	}
	return line
}

// running is an agent that runs.
type running struct {
	cmd  *exec.Cmd
	log  *bytes.Buffer
	done chan error
}

const address = "127.0.0.1:9470"

func startAgent(t *testing.T, manifests string) *running {
	t.Helper()
	return startAgentWith(t, "agent", "--node-name=worker", "--manifests="+manifests, "--log-level=debug")
}

func startAgentWith(t *testing.T, args ...string) *running {
	t.Helper()
	return startCommand(t, selvage(os.Args[0], args...))
}

// startCommand runs a command line that becomes an agent.
func startCommand(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	r := &running{cmd: cmd, log: new(bytes.Buffer), done: make(chan error, 1)}
	if len(cmd.Env) == 0 {
		cmd.Env = append(os.Environ(), asProgram+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	r.cmd.Stderr = r.log
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { r.done <- r.cmd.Wait() }()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill() // it may have ended
		if t.Failed() {
			t.Logf("the agent said:\n%s", r.log)
		}
	})
	return r
}

// end sends a signal and returns how the agent ended.
func (r *running) end(t *testing.T, s os.Signal) error {
	t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	return <-r.done
}

func get(path string) (int, string, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address + path)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// eventually waits until what is so, and gives up after long.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			_, why, err := get("/readyz")
			t.Fatalf("never %s; /readyz: %s%v", what, why, err)
		}
	}
}

func isReady() bool {
	code, _, err := get("/readyz")
	return err == nil && code == http.StatusOK
}

// metric returns the value of a series, or -1.
func metric(t *testing.T, series string) float64 {
	t.Helper()
	_, body, err := get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	return -1
}

func expectMetrics(t *testing.T, want map[string]float64) {
	t.Helper()
	for series, v := range want {
		if got := metric(t, series); got != v {
			t.Errorf("%s is %v, want %v", series, got, v)
		}
	}
}

// ruleset is all that nftables has, with the handles of the rules: a table that
// was written anew has others.
func ruleset(t *testing.T) string {
	t.Helper()
	return isolate.Sh(t, "nft -a -s list ruleset")
}

const cluster = `
apiVersion: v1
kind: Node
metadata: {name: worker}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {kubernetes.io/metadata.name: shop}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: worker, containers: [{name: web, image: web}]}
status: {phase: Running, podIP: 10.244.1.2, podIPs: [{ip: 10.244.1.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: worker, containers: [{name: db, image: db}]}
status: {phase: Running, podIP: 10.244.1.3, podIPs: [{ip: 10.244.1.3}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]
`

const denyDB = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
`

const invalid = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: wrong, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]
`

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// world prepares a node: a bridge with an address in the node's pod CIDR, whose
// switches are off, and a table of somebody else. It returns the manifests.
func world(t *testing.T) (manifests string) {
	t.Helper()
	isolate.Sh(t, `echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables
		echo 0 > /proc/sys/net/bridge/bridge-nf-call-ip6tables
		ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0; ip link set cni0 up
		nft add table inet others; nft add chain inet others forward '{ type filter hook forward priority 0; }'`)
	manifests = t.TempDir()
	write(t, manifests, "cluster.yaml", cluster)
	return manifests
}

// TestAgent goes through an agent's life, from the first start to the removal
// of all that it left.
func TestAgent(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	manifests := world(t)
	others := ruleset(t)
	first := startAgent(t, manifests)
	eventually(t, "ready", isReady)
	expectMetrics(t, map[string]float64{
		"selvage_in_sync":                                                           1,
		"selvage_same_bridge_uncovered":                                             0,
		`selvage_bridge_covered{bridge="cni0"}`:                                     1,
		`selvage_objects{kind="pods"}`:                                              2,
		`selvage_objects{kind="networkpolicies"}`:                                   1,
		`selvage_source_connected{kind="pods"}`:                                     1,
		"selvage_invalid_policies":                                                  0,
		"selvage_generation_changes_total":                                          0,
		`selvage_policy_programming_duration_seconds_count{kind="networkpolicies"}`: 0,
	})
	rules := ruleset(t)
	if !strings.Contains(rules, "table ip selvage") || !strings.Contains(rules, "table ip6 selvage") || !strings.Contains(rules, "10.244.1.2 ") {
		t.Fatalf("not enforced:\n%s", rules)
	}

	// A policy that tightens comes, and goes.
	generation := metric(t, "selvage_generation")
	write(t, manifests, "db.yaml", denyDB)
	eventually(t, "tightened", func() bool { return metric(t, "selvage_generation_changes_total") == 1 })
	if got := metric(t, "selvage_generation"); got == generation {
		t.Errorf("generation %v as before", got)
	}
	if got := metric(t, `selvage_policy_programming_duration_seconds_count{kind="networkpolicies"}`); got < 1 {
		t.Errorf("%v events measured", got)
	}
	if !isReady() || ruleset(t) == rules {
		t.Error("the policy is not in force")
	}

	// What cannot be read changes nothing; what cannot be compiled is told.
	rules = ruleset(t)
	write(t, manifests, "garbage.yaml", "kind: NetworkPolicy\n\tx: [")
	eventually(t, "refused", func() bool { return metric(t, `selvage_manifest_errors_total{reason="syntax"}`) == 1 })
	if !isReady() || ruleset(t) != rules {
		t.Error("a file that cannot be read changed something")
	}
	write(t, manifests, "wrong.yaml", invalid)
	eventually(t, "found invalid", func() bool { return metric(t, "selvage_invalid_policies") == 1 })
	if err := os.Remove(filepath.Join(manifests, "wrong.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "valid again", func() bool { return metric(t, "selvage_invalid_policies") == 0 })
	eventually(t, "ready", isReady)

	// There is one agent.
	rules = ruleset(t)
	line := fails(t, selvage(os.Args[0], "agent", "--node-name=worker", "--manifests="+manifests, "--http-address="))
	if want := fmt.Sprintf("an agent runs already on this node (process %d): there can be one only", first.cmd.Process.Pid); !strings.Contains(line, want) {
		t.Errorf("second agent: %s, want %q", line, want)
	}
	// One of another DaemonSet has a process namespace of its own.
	contained := selvage(os.Args[0], "agent", "--node-name=worker", "--manifests="+manifests, "--http-address=")
	contained.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	if line := fails(t, contained); !strings.Contains(line, "an agent runs already on this node (in another container): ") || !strings.Contains(line, "kubectl get pods -A") {
		t.Errorf("second agent in a container: %s", line)
	}
	if line := fails(t, selvage(os.Args[0], "cleanup")); !strings.Contains(line, "runs already") {
		t.Errorf("cleanup beside an agent: %s", line)
	}
	if ruleset(t) != rules {
		t.Error("the refused ones changed something")
	}

	// Its end changes nothing, and neither does the next one's start.
	if err := first.end(t, syscall.SIGTERM); err != nil {
		t.Errorf("ended with %v", err)
	}
	if got := ruleset(t); got != rules {
		t.Errorf("SIGTERM changed the rules:\n%s\nwere\n%s", got, rules)
	}
	if log := first.log.String(); strings.Count(log, "policy=shop/wrong") != 2 || strings.Count(log, "garbage.yaml") != 1 {
		t.Error("not every problem was told of once, and its end once")
	}
	second := startAgent(t, manifests)
	eventually(t, "ready", isReady)
	if got := ruleset(t); got != rules {
		t.Errorf("a new start changed the rules:\n%s\nwere\n%s", got, rules)
	}
	expectMetrics(t, map[string]float64{"selvage_sync_messages_total": 0, "selvage_sync_batches_total": 0})
	if err := second.end(t, syscall.SIGKILL); err == nil {
		t.Error("survived SIGKILL")
	}
	if got := ruleset(t); got != rules {
		t.Error("SIGKILL changed the rules")
	}

	for _, want := range []string{"removed the tables ip selvage and ip6 selvage\n", "there was nothing to remove\n"} {
		out, err := selvage(os.Args[0], "cleanup").CombinedOutput()
		if err != nil || string(out) != want {
			t.Errorf("cleanup: %q, %v; want %q", out, err, want)
		}
	}
	if got := ruleset(t); got != others {
		t.Errorf("after cleanup there is\n%s, before all there was\n%s", got, others)
	}
	testCleanupWait(t)
}

// testCleanupWait sees that it says when it is done, and ends by a signal, and
// that an agent can start meanwhile.
func testCleanupWait(t *testing.T) {
	t.Helper()
	cmd := selvage(os.Args[0], "cleanup", "--wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "there was nothing to remove\n" {
		t.Errorf("cleanup --wait: %q, %v", line, err)
	}
	release, err := lock()
	if err != nil {
		t.Errorf("while cleanup waits: %v", err)
	} else {
		release()
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("cleanup --wait ended by itself: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("cleanup --wait ended with %v", err)
	}
}

// TestNotReady has a name for the node that the source does not know.
func TestNotReady(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	manifests := world(t)
	write(t, manifests, "cluster.yaml", strings.ReplaceAll(cluster, "worker", "elsewhere"))
	a := startAgent(t, manifests)
	eventually(t, "not ready for the right reason", func() bool {
		code, body, err := get("/readyz")
		return err == nil && code == http.StatusServiceUnavailable && body == "the source has no Node named worker\n"
	})
	if code, body, err := get("/healthz"); err != nil || code != http.StatusOK {
		t.Errorf("/healthz: %d %s %v", code, body, err)
	}
	write(t, manifests, "cluster.yaml", cluster)
	eventually(t, "ready", isReady)
	// Its successor may be there a little early.
	b := startAgent(t, manifests)
	time.Sleep(200 * time.Millisecond)
	if err := a.end(t, os.Interrupt); err != nil {
		t.Errorf("ended with %v", err)
	}
	eventually(t, "ready", isReady)
	if err := b.end(t, os.Interrupt); err != nil {
		t.Errorf("the successor ended with %v", err)
	}
}

// TestRefused is everything that keeps an agent from starting: one line, exit
// code 1, nothing changed.
func TestRefused(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	manifests := world(t)
	before := ruleset(t)
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nobody := readable(t)
	agent := []string{"agent", "--node-name=worker", "--manifests=" + manifests}
	for _, test := range []struct {
		name string
		cmd  *exec.Cmd
		want string
	}{
		{"address in use", selvage(os.Args[0], agent...), "--http-address: listen tcp 127.0.0.1:9470: bind: address already in use"},
		{"no source", selvage(os.Args[0], agent[:2]...), "no source of objects: give --kubeconfig or --manifests"},
		{"no kubeconfig", selvage(os.Args[0], "agent", "--node-name=worker", "--kubeconfig=/nonexistent"), "--kubeconfig: "},
		{"unprivileged agent", nobody("agent", "--node-name=worker", "--manifests=/run/netns"), "needs CAP_NET_ADMIN: run as root"},
		{"unprivileged cleanup", nobody("cleanup"), "needs CAP_NET_ADMIN: run as root"},
	} {
		if line := fails(t, test.cmd); !strings.Contains(line, test.want) {
			t.Errorf("%s: %s, want %q", test.name, line, test.want)
		}
		if got := ruleset(t); got != before {
			t.Fatalf("%s: changed\n%s to\n%s", test.name, before, got)
		}
		if got := isolate.Sh(t, "ip -d link show cni0"); !strings.Contains(got, "nf_call_iptables 0") {
			t.Errorf("%s: the bridge was changed: %s", test.name, got)
		}
	}
}

// readable returns selvage for a user without privileges.
func readable(t *testing.T) func(args ...string) *exec.Cmd {
	t.Helper()
	const binary = "/run/netns/selvage" // /tmp is closed to others
	data, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return func(args ...string) *exec.Cmd {
		cmd := selvage(binary, args...)
		cmd.Dir = "/"
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		return cmd
	}
}

// TestCompile is the check for a pipeline.
func TestCompile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "cluster.yaml", cluster)
	var stdout, stderr bytes.Buffer
	if code := run("selvage", []string{"compile", "--node-name=worker", "--manifests=" + dir}, &stdout, &stderr); code != 0 || stderr.Len() > 0 {
		t.Fatalf("%d, %s", code, stderr.String())
	}
	if !strings.Contains(stdout.String(), "table ip selvage {") || !strings.Contains(stdout.String(), "10.244.1.2") {
		t.Errorf("compiled to\n%s", stdout.String())
	}
	good := stdout.String()
	write(t, dir, "garbage.yaml", "kind: NetworkPolicy\n\tx: [")
	write(t, dir, "wrong.yaml", invalid)
	stdout.Reset()
	if code := run("selvage", []string{"compile", "--node-name=worker", "--manifests=" + dir}, &stdout, &stderr); code != 1 {
		t.Errorf("%d for what is wrong", code)
	}
	for _, want := range []string{"garbage.yaml: document 1", "wrong.yaml: document 1", "NetworkPolicy shop/wrong", "10.0.0.0/33"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("%q is not in\n%s", want, stderr.String())
		}
	}
	if n := strings.Count(stderr.String(), "\n"); n != 2 {
		t.Errorf("%d lines for two mistakes:\n%s", n, stderr.String())
	}
	for line := range strings.Lines(stderr.String()) {
		if !strings.HasPrefix(line, "selvage: ") {
			t.Errorf("line %q", line)
		}
	}
	if stdout.String() == good {
		t.Error("the invalid policy does not isolate")
	}
}
