package deploy_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// objects of a node with one pod, on the bridge that TestPrivileges makes.
const world = `
{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}}
---
{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
---
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db", "namespace": "shop", "uid": "1"}, "spec": {"nodeName": "worker"},
 "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.2"}]}}
---
{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny", "namespace": "shop"}, "spec": {"podSelector": {}}}
`

// TestPrivileges runs the program as user 0 with the capabilities that the
// manifests add and no others, in a network namespace of its own: it must put
// everything in force with them, and must not without.
func TestPrivileges(t *testing.T) {
	if os.Geteuid() != 0 {
		const why = "making network namespaces needs root"
		if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
			t.Fatal("SELVAGE_REQUIRE_PRIVILEGED=1, but " + why)
		}
		t.Skip("SKIPPED, THE PRIVILEGES WERE NOT TESTED: " + why)
	}
	program := buildProgram(t)
	bounding := "-all"
	for _, c := range daemonSet(t, kustomize(t, "base"), "selvage").Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add {
		bounding += ",+" + strings.ToLower(string(c))
	}
	log, err := runAgent(t, program, bounding, "everything is in force", "packets between pods on the bridge meet the rules")
	if err != nil {
		t.Errorf("with the capabilities %s: %v\n%s", bounding, err, log)
	}
	if log, err = runAgent(t, program, "-all"); err == nil || !strings.Contains(log, "needs CAP_NET_ADMIN") {
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
	const script = `ip link set lo up; ip link add cni0 type bridge; ip address add 10.244.1.1/24 dev cni0; ip link set cni0 up
		exec setpriv --bounding-set="$1" --inh-caps=-all --no-new-privs "$2" agent --node-name=worker --manifests="$3" 2>&1`
	cmd := exec.CommandContext(ctx, "unshare", "--net", "--kill-child", "--fork", "sh", "-ec", script, "sh", bounding, program, manifests)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	lines := bufio.NewScanner(io.TeeReader(out, &log))
	missing := len(want)
	for lines.Scan() {
		for _, w := range want {
			if strings.Contains(lines.Text(), w) {
				missing--
			}
		}
		if missing == 0 && len(want) > 0 {
			cancel()
			_ = cmd.Wait() // it was killed
			return log.String(), nil
		}
	}
	if err = cmd.Wait(); err == nil {
		err = errors.New("it ended, and should not have")
	}
	return log.String(), err
}
