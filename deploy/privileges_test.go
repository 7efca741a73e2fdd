package deploy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// objects of a node with two pods, in the network that runAgent makes.
const world = `
{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}}
---
{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "annotations": {"kubernetes.io/ingress-bandwidth": "10M"}}}
---
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db", "namespace": "shop", "uid": "1"}, "spec": {"nodeName": "worker"},
 "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.2"}]}}
---
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "cache", "namespace": "shop", "uid": "2"}, "spec": {"nodeName": "worker"},
 "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.3"}]}}
---
{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny", "namespace": "shop"}, "spec": {"podSelector": {}}}
`

// network is that of a node with a bridge, the pod db on it, and the pod cache with
// a macvlan device.
const network = `
	mount -t tmpfs none /run
	ip link set lo up; ip link add cni0 type bridge; ip address add 10.244.1.1/24 dev cni0; ip link set cni0 up
	ip netns add db; ip link add veth0 type veth peer name eth0 netns db; ip link set veth0 master cni0 up
	ip -n db address add 10.244.1.2/24 dev eth0; ip -n db link set eth0 up
	ip link add uplink type veth peer name wire; ip link set wire up; ip link set uplink up
	ip netns add cache; ip link add macvlan0 link uplink type macvlan mode bridge; ip link set macvlan0 netns cache name eth0
	ip -n cache address add 10.244.1.3/24 dev eth0; ip -n cache link set eth0 up
`

// TestPrivileges runs the program as user 0 with the capabilities that the
// manifests add and no others, in a network namespace of its own: it must put
// everything in force with them, and must not without. To find the interface of a
// pod takes no more than NET_ADMIN, but to shape the pod in its own namespace does.
func TestPrivileges(t *testing.T) {
	if os.Geteuid() != 0 {
		const why = "making network namespaces needs root"
		if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
			t.Fatal("SELVAGE_REQUIRE_PRIVILEGED=1, but " + why)
		}
		t.Skip("SKIPPED, THE PRIVILEGES WERE NOT TESTED: " + why)
	}
	program := buildProgram(t)
	always := []string{
		"everything is in force", "packets between pods on the bridge meet the rules",
		`msg="shaping changed" pod=shop/db interface=veth0 step="set queue: new`,
	}
	for from, also := range map[string]string{
		"base":                    "give the agent the capability SYS_ADMIN",
		"overlays/pod-namespaces": `msg="shaping changed" pod=shop/cache interface=eth0 step="set queue selvi-`,
	} {
		bounding := "-all"
		for _, c := range daemonSet(t, kustomize(t, from), "selvage").Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add {
			bounding += ",+" + strings.ToLower(string(c))
		}
		if log, err := runAgent(t, program, bounding, append(always, also)...); err != nil {
			t.Errorf("%s, with the capabilities %s: %v\n%s", from, bounding, err, log)
		}
	}
	if log, err := runAgent(t, program, "-all"); err == nil || !strings.Contains(log, "needs CAP_NET_ADMIN") {
		t.Errorf("without capabilities: %v\n%s", err, log)
	}
}

// buildProgram builds selvage as the Makefile does and returns where it is.
func buildProgram(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "selvage")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", program, "./cmd/selvage")
	cmd.Dir, cmd.Env = "..", append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// runAgent runs the agent with a bounding set of capabilities, as setpriv(1)
// has it, until its log has all of the lines wanted, or it ends. It returns the
// log, and an error if the lines did not come.
func runAgent(t *testing.T, program, bounding string, want ...string) (string, error) {
	t.Helper()
	manifests := t.TempDir()
	if err := os.WriteFile(filepath.Join(manifests, "world.yaml"), []byte(world), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const script = "exec 2>&1" + network + `
		exec setpriv --bounding-set="$1" --inh-caps=-all --no-new-privs \
			"$2" agent --node-name=worker --manifests="$3" --netns-dir=/run/netns --log-level=debug`
	cmd := exec.CommandContext(ctx, "unshare", "--net", "--mount", "--kill-child", "--fork", "sh", "-ec", script, "sh", bounding, program, manifests)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	lines := bufio.NewScanner(io.TeeReader(out, &log))
	missing := slices.Clone(want)
	for lines.Scan() {
		missing = slices.DeleteFunc(missing, func(w string) bool { return strings.Contains(lines.Text(), w) })
		if len(missing) == 0 && len(want) > 0 {
			cancel()
			_ = cmd.Wait() // it was killed
			return log.String(), nil
		}
	}
	if err = cmd.Wait(); err == nil {
		err = errors.New("it ended, and should not have")
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("nothing was said of %q: %w", missing, err)
	}
	return log.String(), err
}
