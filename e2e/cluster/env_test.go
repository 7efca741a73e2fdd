package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
	"github.com/selvage-net/selvage/e2e/lab"
	"github.com/selvage-net/selvage/e2e/lab/machine"
)

// The nodes. The API server runs on n1.
const (
	n1 = "n1"
	n2 = "n2"
	n3 = "n3"
)

// env is the cluster that the specs run against. Its fields are set before the
// first spec.
type env struct {
	lab  *lab.Client
	kube kubernetes.Interface
	rest *rest.Config

	// http reaches what listens on a machine or in its pods, from the machine's
	// network namespace; by machine.
	http map[string]*http.Client
	// cast are the shared pods, by node.
	cast map[string]*pod

	mu   sync.Mutex
	info lab.Info
}

func nodes() []string { return []string{n1, n2, n3} }

// connect finds the cluster that SELVAGE_LAB names.
func (e *env) connect(ctx context.Context) {
	var err error
	e.lab, err = lab.Connect(os.Getenv("SELVAGE_LAB"))
	Expect(err).NotTo(HaveOccurred())
	e.refresh(ctx)
	e.rest, err = e.lab.RESTConfig(ctx)
	Expect(err).NotTo(HaveOccurred())
	e.kube, err = kubernetes.NewForConfig(e.rest)
	Expect(err).NotTo(HaveOccurred())
	e.http = map[string]*http.Client{}
	for _, name := range append(nodes(), lab.Fabric) {
		e.http[name] = &http.Client{
			Timeout:   2 * time.Minute,
			Transport: &http.Transport{DialContext: e.dialFrom(name), IdleConnTimeout: 5 * time.Second},
		}
	}
}

// refresh asks anew what is up. The first process of a machine is another one
// after a reboot.
func (e *env) refresh(ctx context.Context) {
	info, err := e.lab.Info(ctx)
	Expect(err).NotTo(HaveOccurred())
	e.mu.Lock()
	defer e.mu.Unlock()
	e.info = info
}

func (e *env) machine(name string) lab.Machine {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.IndexFunc(e.info.Machines, func(m lab.Machine) bool { return m.Name == name })
	if i < 0 {
		Fail("the lab has no machine " + name)
	}
	return e.info.Machines[i]
}

// dialFrom opens connections in a machine's network namespace.
func (e *env) dialFrom(name string) probe.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return machine.Dial(ctx, e.machine(name).PID, network, address)
	}
}

// get asks the agent of a node, by its HTTP server. An answer other than 200 is
// no error.
func (e *env) get(ctx context.Context, node, path string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:9470"+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := e.http[node].Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// readiness returns an error unless the agent of a node is ready.
func (e *env) readiness(ctx context.Context, node string) error {
	status, body, err := e.get(ctx, node, "/readyz")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("agent of %s: %d: %s", node, status, strings.TrimSpace(body))
	}
	return err
}

// awaitAgents waits until the agents of some nodes (of all, if none is named)
// are ready.
func (e *env) awaitAgents(ctx context.Context, within time.Duration, on ...string) {
	GinkgoHelper()
	if len(on) == 0 {
		on = nodes()
	}
	for _, node := range on {
		Eventually(ctx, func() error { return e.readiness(ctx, node) }).
			WithTimeout(within).WithPolling(100 * time.Millisecond).Should(Succeed())
	}
}

// sh runs a line of shell on a machine.
func (e *env) sh(ctx context.Context, machine, line string) string {
	GinkgoHelper()
	out, err := e.lab.Exec(ctx, machine, "sh", "-c", line)
	Expect(err).NotTo(HaveOccurred())
	return strings.TrimSpace(string(out))
}

// findAgent prints the process of a node's agent, as the node counts processes:
// the selvage that lives in the node's own network namespace.
const findAgent = `for d in /proc/[0-9]*; do
	[ "$(cat $d/comm 2>/dev/null)" = selvage ] || continue
	[ "$(readlink $d/ns/net)" = "$(readlink /proc/1/ns/net)" ] && echo ${d#/proc/}
done; true`

// agentProcess returns the process of a node's agent, or "".
func (e *env) agentProcess(ctx context.Context, node string) string {
	GinkgoHelper()
	return e.sh(ctx, node, findAgent)
}

// killAgent kills a node's agent with SIGKILL, without asking the API server.
func (e *env) killAgent(ctx context.Context, node string) {
	GinkgoHelper()
	pid := e.agentProcess(ctx, node)
	Expect(strings.Fields(pid)).To(HaveLen(1), "agents on "+node)
	e.sh(ctx, node, "kill -KILL "+pid)
}

// castJSON and its inverse carry the cast from the process that made it to the
// others.
func (e *env) castJSON() []byte {
	data, err := json.Marshal(e.cast)
	Expect(err).NotTo(HaveOccurred())
	return data
}

func (e *env) adoptCast(data []byte) {
	Expect(json.Unmarshal(data, &e.cast)).To(Succeed())
	for _, p := range e.cast {
		e.attach(p)
	}
}
