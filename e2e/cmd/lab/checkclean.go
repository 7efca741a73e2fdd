package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/selvage-net/selvage/e2e/lab"
)

func (f *flags) checkCleanCommand() *cobra.Command {
	var ignore []string
	cmd := &cobra.Command{
		Use: "check-clean", Short: "start and end the cluster in good and bad ways, and compare the host before and after", Args: cobra.NoArgs,
		Long: `check-clean brings clusters up and ends them by lab down, by Ctrl-C in the middle
of the start, and by killing the supervisor. Each time it compares the host with
what it was before: links, routes, rules, nftables, settings of the kernel, mounts,
network namespaces, cgroups, processes. Nothing else may change the host meanwhile,
unless --ignore names it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.checkClean(cmd.Context(), ignore, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringSliceVar(&ignore, "ignore", nil, "`text` in the lines about what others make meanwhile, e.g. /run/netns/selvage- for the tests of this repository")
	return cmd
}

// host is what a look at it found, by kind; each kind as a set of lines.
type host map[string][]string

// look reads all that a cluster could change. mark is in the command line of all
// processes of the cluster.
func look(ctx context.Context, mark string) (host, error) {
	h := host{}
	for kind, argv := range map[string][]string{
		"links":    {"ip", "-o", "link"},
		"routes":   {"ip", "route", "show", "table", "all"},
		"routes 6": {"ip", "-6", "route", "show", "table", "all"},
		"rules":    {"ip", "rule"},
		"nftables": {"nft", "list", "ruleset"},
		"sysctls":  {"sysctl", "-a", "--ignore"},
	} {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env = []string{"PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"}
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
		}
		h[kind] = lines(string(out))
	}
	h["sysctls"] = slices.DeleteFunc(h["sysctls"], moving)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	h["mounts"] = lines(string(mounts))
	names, err := filepath.Glob("/run/netns/*")
	if err != nil {
		return nil, err
	}
	h["named network namespaces"] = names
	if h["cgroups"], err = cgroups(); err != nil {
		return nil, err
	}
	h["processes"], err = processes(mark)
	return h, err
}

func lines(text string) []string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	slices.Sort(all)
	return all
}

// moving tells whether a setting is none: it shows what goes on, in the whole
// machine.
func moving(sysctl string) bool {
	for _, name := range []string{
		"fs.dentry-state", "fs.file-nr", "fs.inode-nr", "fs.inode-state", "fs.aio-nr", "fs.quota.", "kernel.ns_last_pid",
		"kernel.pty.nr", "kernel.random.", "kernel.perf_event_max_sample_rate", "net.netfilter.nf_conntrack_count",
		"net.netfilter.nf_conntrack_buckets",
	} {
		if strings.HasPrefix(sysctl, name) {
			return true
		}
	}
	return false
}

// cgroups returns those that a lab has made.
func cgroups() ([]string, error) {
	var found []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went away meanwhile
		}
		if err == nil && d.IsDir() && strings.Contains(d.Name(), "selvage-lab-") {
			found = append(found, path)
			return fs.SkipDir
		}
		return err
	})
	return found, err
}

// processes returns those with mark in their command line, without this one and
// those above it.
func processes(mark string) ([]string, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	above := map[string]bool{}
	for pid := os.Getpid(); pid > 1; {
		above[fmt.Sprintf("/proc/%d", pid)] = true
		if pid, err = parent(pid); err != nil {
			return nil, err
		}
	}
	var found []string
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil && !above[dir] && strings.Contains(string(cmdline), mark) {
			found = append(found, dir+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found, nil
}

// parent returns a process's parent.
func parent(pid int) (int, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name may have spaces and parentheses.
	rest := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
	var state string
	var ppid int
	_, err = fmt.Sscan(rest, &state, &ppid)
	return ppid, err
}

// compare returns what there is more and less than before.
func compare(before, after host) []string {
	var diff []string
	for _, kind := range slices.Sorted(maps.Keys(after)) {
		for _, line := range after[kind] {
			if !slices.Contains(before[kind], line) {
				diff = append(diff, fmt.Sprintf("%s: + %s", kind, line))
			}
		}
		for _, line := range before[kind] {
			if !slices.Contains(after[kind], line) {
				diff = append(diff, fmt.Sprintf("%s: - %s", kind, line))
			}
		}
	}
	return diff
}

// ending is a way in which clusters begin and end.
type ending struct {
	name string
	run  func(ctx context.Context) error
	// cgroups says that their directories stay, until lab down.
	cgroups bool
}

func (f *flags) checkClean(ctx context.Context, ignore []string, out io.Writer) error {
	if _, err := lab.Connect(f.dir); err == nil {
		return fmt.Errorf("%w in %s", lab.ErrUp, f.dir)
	}
	if err := f.down(ctx, out); err != nil {
		return err
	}
	before, err := look(ctx, f.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range []ending{
		{name: "up and down", run: f.upAndDown},
		{name: "Ctrl-C half-way up", run: f.interrupted},
		{name: "the supervisor is killed half-way up", run: f.killedEarly, cgroups: true},
		{name: "the supervisor is killed", run: f.killed, cgroups: true},
	} {
		began := time.Now()
		if err := e.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		diff, err := f.compareWith(ctx, before, e.cgroups, ignore)
		if err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		if len(diff) == 0 {
			fmt.Fprintf(out, "%s (%.1f s): the host is as it was\n", e.name, time.Since(began).Seconds())
			continue
		}
		errs = append(errs, fmt.Errorf("%s: the host has changed:\n%s", e.name, strings.Join(diff, "\n")))
	}
	return errors.Join(errs...)
}

// compareWith compares the host with what it was, as soon as all processes of
// the cluster have ended.
func (f *flags) compareWith(ctx context.Context, before host, cgroupsStay bool, ignore []string) ([]string, error) {
	deadline := time.Now().Add(5 * time.Second)
	for {
		left, err := processes(f.dir)
		if err != nil {
			return nil, err
		}
		if len(left) == 0 || time.Now().After(deadline) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if cgroupsStay {
		// With the cluster's own eyes, so that what it did not write down shows.
		if _, err := lab.Clean(f.dir); err != nil {
			return nil, err
		}
	}
	after, err := look(ctx, f.dir)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(compare(before, after), func(line string) bool {
		return slices.ContainsFunc(ignore, func(text string) bool { return strings.Contains(line, text) })
	}), nil
}

func (f *flags) upAndDown(ctx context.Context) error {
	if err := f.up(ctx, options{Options: lab.Options{Nodes: 3}}, io.Discard); err != nil {
		return err
	}
	return f.down(ctx, io.Discard)
}

// started starts `lab up` and returns when its cluster is ready, or has machines
// at least.
func (f *flags) started(ctx context.Context, ready bool) (*exec.Cmd, lab.Info, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "--dir", f.dir, "--repo", f.repo, "up")
	if err := cmd.Start(); err != nil {
		return nil, lab.Info{}, err
	}
	for {
		select {
		case <-ctx.Done():
			return cmd, lab.Info{}, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		c, err := lab.Connect(f.dir)
		if err != nil {
			continue
		}
		info, err := c.Info(ctx)
		if err != nil {
			return cmd, info, err
		}
		// Half-way is when the API server is about to serve.
		n1 := info.Machines[1].Processes
		if info.Ready || !ready && len(n1) > 2 {
			return cmd, info, nil
		}
	}
}

func (f *flags) interrupted(ctx context.Context) error {
	cmd, _, err := f.started(ctx, false)
	if err != nil {
		return err
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	if err := cmd.Wait(); err == nil {
		return errors.New("lab up succeeded though it was interrupted")
	}
	return nil
}

func (f *flags) killedEarly(ctx context.Context) error { return f.kill(ctx, false) }

func (f *flags) killed(ctx context.Context) error { return f.kill(ctx, true) }

func (f *flags) kill(ctx context.Context, ready bool) error {
	cmd, info, err := f.started(ctx, ready)
	if err != nil {
		return err
	}
	if err := syscall.Kill(info.Supervisor, syscall.SIGKILL); err != nil {
		return err
	}
	_ = cmd.Wait() // it may have been up in time
	return nil
}
