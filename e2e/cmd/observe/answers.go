package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/selvage-net/selvage/e2e/lab"
)

// question is a command of an operator's, who is on no node, and what it should answer.
type question struct {
	argv []string
	code int
	// says are words that must be in the answer.
	says []string
}

// questions are about the world as it is while all is well.
func questions() []question {
	return []question{
		{[]string{"selvage", "status", "--all"}, 0, []string{"n1", "n2", "n3", "teller-to-shop", "web-from-clients"}},
		{[]string{"selvage", "explain", "shop/client", "svc/shop/web", "80"}, 0, []string{"allowed", "web-from-clients", "n2"}},
		{[]string{"selvage", "explain", "shop/stranger", "svc/shop/web", "80/UDP"}, 1, []string{"denied", "default-deny", "n2"}},
		{[]string{"selvage", "explain", "shop/nobody", "svc/shop/web", "80"}, 2, []string{"no pod nobody in shop"}},
		{[]string{"selvage", "drops", "--all", "-n", "shop", "-o", "json"}, 0, []string{`"stranger"`, `"default-deny"`}},
		{[]string{"selvage", "pools"}, 0, []string{"n1", "n2", "n3"}},
		// As a plugin.
		{[]string{"kubectl", "selvage", "status"}, 0, []string{"n1", "n2", "n3", "web-from-clients"}},
		{[]string{"kubectl", "selvage", "explain", "bank/teller", "shop/web", "80"}, 0, []string{"allowed", "teller-to-shop"}},
	}
}

// ask asks all questions, of all agents, through the API server.
func (r *run) ask(ctx context.Context) error {
	// kubectl finds its plugins by their names in the PATH.
	dir := filepath.Join(r.o.state, "bin")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	binary := filepath.Join(r.o.repo, "bin", "selvage") // of `make build`
	for name, to := range map[string]string{"selvage": binary, "kubectl-selvage": binary, "kubectl": r.set.Binary("kubectl")} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, q := range questions() {
		r.checks.Check(strings.Join(q.argv, " "), r.askOne(ctx, dir, q))
	}
	return nil
}

func (r *run) askOne(ctx context.Context, dir string, q question) error {
	cmd := r.lab.NetCommand(ctx, lab.Fabric, append([]string{filepath.Join(dir, q.argv[0])}, q.argv[1:]...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+r.info.Kubeconfig, "PATH="+dir+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		err = nil
	}
	if err != nil {
		return err
	}
	if code := cmd.ProcessState.ExitCode(); code != q.code {
		return fmt.Errorf("exit code %d, want %d:\n%s", code, q.code, out)
	}
	for _, word := range q.says {
		if !strings.Contains(string(out), word) {
			return fmt.Errorf("%q is not in its answer:\n%s", word, out)
		}
	}
	return nil
}
