package observe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Tools are Prometheus' programs, by their paths.
type Tools struct{ Prometheus, Promtool string }

func toolsIn(dir string) Tools {
	return Tools{filepath.Join(dir, "usr", "bin", "prometheus"), filepath.Join(dir, "usr", "bin", "promtool")}
}

// DebianTools returns those of Debian's package, which it downloads into the cache if it
// is not there. The package is only unpacked: nothing is installed, and no service
// started.
func DebianTools(ctx context.Context, cache string) (Tools, error) {
	dir := filepath.Join(cache, "prometheus-debian")
	if _, err := os.Stat(toolsIn(dir).Promtool); err == nil {
		return toolsIn(dir), nil
	}
	temp, err := os.MkdirTemp(cache, "new-prometheus-")
	if err != nil {
		return Tools{}, err
	}
	defer os.RemoveAll(temp)
	if err := unpack(ctx, temp, "prometheus"); err != nil {
		return Tools{}, fmt.Errorf("debian's prometheus: %w", err)
	}
	err = os.Rename(filepath.Join(temp, "tree"), dir)
	if errors.Is(err, os.ErrExist) { // somebody else was faster
		err = nil
	}
	return toolsIn(dir), err
}

// unpack downloads a package into dir and unpacks it into its directory tree. The lists
// that apt reads for that are its own.
func unpack(ctx context.Context, dir, name string) error {
	lists := filepath.Join(dir, "lists")
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
		return err
	}
	apt := []string{"-q", "-o", "Dir::State::Lists=" + lists, "-o", "Dir::Cache=" + filepath.Join(dir, "cache"), "-o", "APT::Sandbox::User=root"}
	for _, args := range [][]string{{"update"}, {"download", name}} {
		if err := runIn(ctx, dir, "apt-get", append(apt, args...)...); err != nil {
			return err
		}
	}
	found, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("apt-get download left %d files (%s), not one", len(found), strings.Join(found, " "))
	}
	return runIn(ctx, dir, "dpkg-deb", "-x", found[0], filepath.Join(dir, "tree"))
}

// runIn runs a program. An error has what the program said.
func runIn(ctx context.Context, dir, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

// CheckRules has promtool check the alerts of a repository.
func (t Tools) CheckRules(ctx context.Context, repo string) error {
	return runIn(ctx, repo, t.Promtool, "check", "rules", RulesFile(repo))
}

// UnitTests are the files with the unit tests of a repository's alerts.
func UnitTests(repo string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(filepath.Dir(RulesFile(repo)), "testdata", "*.yaml"))
	if err == nil && len(files) == 0 {
		err = errors.New("the alerts have no unit tests")
	}
	return files, err
}

// TestRules has promtool run one of these files.
func (t Tools) TestRules(ctx context.Context, file string) error {
	return runIn(ctx, filepath.Dir(file), t.Promtool, "test", "rules", file)
}

// CheckMetrics has promtool check what an agent shows at /metrics.
func (t Tools) CheckMetrics(ctx context.Context, metrics string) error {
	cmd := exec.CommandContext(ctx, t.Promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(metrics)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("promtool check metrics: %w\n%s", err, out)
	}
	return nil
}
