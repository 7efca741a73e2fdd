package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/e2e/artifacts"
	"github.com/selvage-net/selvage/e2e/lab"
)

// options are those of a cluster.
type options struct {
	lab.Options
	dieWithParent bool
	// toPipe says that file descriptor 3 gets the progress, and then upLine.
	toPipe bool
}

// upLine ends the progress of a supervisor whose cluster is up.
const upLine = "up"

func (o *options) addTo(cmd *cobra.Command) {
	f := cmd.Flags()
	f.IntVar(&o.Nodes, "nodes", 3, "how many nodes")
	f.StringVar(&o.Backend, "backend", lab.BackendVXLAN, "flannel's `backend`: vxlan or host-gw")
	f.StringVar(&o.Options.ProxyMode, "proxy-mode", lab.ProxyNFTables, "kube-proxy's `mode`: nftables or iptables")
	f.BoolVar(&o.NoDNS, "no-dns", false, "leave CoreDNS out")
}

func (f *flags) runCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use: "run", Short: "hold a cluster up in the foreground, until SIGTERM or Ctrl-C", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.supervise(cmd.Context(), o, cmd.OutOrStdout()) },
	}
	o.addTo(cmd)
	cmd.Flags().BoolVar(&o.dieWithParent, "die-with-parent", false, "end when the program that started this one does")
	cmd.Flags().BoolVar(&o.toPipe, "progress-pipe", false, "tell file descriptor 3 of the progress")
	if err := cmd.Flags().MarkHidden("progress-pipe"); err != nil {
		panic(err) // the flag is one line above
	}
	return cmd
}

// supervise holds a cluster up until ctx ends, or the parent if so desired.
func (f *flags) supervise(ctx context.Context, o options, out io.Writer) error {
	if o.dieWithParent {
		var err error
		if ctx, err = withParent(ctx); err != nil {
			return err
		}
	}
	o.Progress = func(line string) { fmt.Fprintln(out, line) }
	if o.toPipe {
		syscall.CloseOnExec(3)
		pipe := os.NewFile(3, "progress")
		defer pipe.Close()
		// Whoever reads may be gone; the cluster does not depend on it.
		o.Progress = func(line string) {
			fmt.Fprintln(out, line)
			fmt.Fprintln(pipe, line)
		}
	}
	err := f.hold(ctx, o)
	if err != nil && o.toPipe {
		o.Progress(err.Error())
	}
	return err
}

func (f *flags) hold(ctx context.Context, o options) error {
	set, err := artifacts.Build(ctx, artifacts.Options{
		Repo: f.repo, Progress: o.Progress, Only: []string{"kubernetes", "etcd", "containerd", "runc", "cni", "flanneld", "pause", "agnhost", "coredns"},
	})
	if err != nil {
		return err
	}
	o.Dir, o.Artifacts = f.dir, set
	o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	c, err := lab.Start(ctx, o.Options)
	if err != nil {
		return err
	}
	if o.toPipe {
		o.Progress(upLine)
	}
	<-ctx.Done()
	began := time.Now()
	err = c.Close()
	o.Progress(fmt.Sprintf("down after %.1f s", time.Since(began).Seconds()))
	return err
}

// withParent returns a context that ends when the parent process does. The
// kernel's signal for that would come when a thread of the parent ends.
func withParent(ctx context.Context) (context.Context, error) {
	parent := os.Getppid()
	fd, err := unix.PidfdOpen(parent, 0)
	if err != nil || os.Getppid() != parent {
		return nil, errors.Join(errors.New("the parent is gone already"), err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		_ = awaitEnd(fd, -1)
		cancel(errors.New("the parent ended"))
	}()
	return ctx, nil
}

// awaitEnd waits until the process of a pidfd has ended. A negative timeout is
// none.
func awaitEnd(fd int, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		ms := -1
		if timeout >= 0 {
			ms = int(max(0, time.Until(deadline).Milliseconds()))
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, ms)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("it has not ended within %v", timeout)
		}
		return nil
	}
}

func (f *flags) upCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use: "up", Short: "start a cluster in the background, and return when it is up", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.up(cmd.Context(), o, cmd.OutOrStdout()) },
	}
	o.addTo(cmd)
	return cmd
}

// up starts a supervisor and follows its progress. If ctx ends before the
// cluster is up, the supervisor is told to end.
func (f *flags) up(ctx context.Context, o options, out io.Writer) error {
	if _, err := lab.Connect(f.dir); err == nil {
		return fmt.Errorf("%w in %s", lab.ErrUp, f.dir)
	}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(f.dir, "supervisor.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	progress, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer progress.Close()
	cmd := exec.Command("/proc/self/exe", "--dir", f.dir, "--repo", f.repo, "run", "--progress-pipe",
		"--nodes", fmt.Sprint(o.Nodes), "--backend", o.Backend, "--proxy-mode", o.Options.ProxyMode, fmt.Sprintf("--no-dns=%v", o.NoDNS))
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	lines := bufio.NewScanner(progress)
	for lines.Scan() {
		if lines.Text() == upLine && stop() {
			fmt.Fprintf(out, "export KUBECONFIG=%s, or: bin/lab kubectl -- get nodes\n", filepath.Join(f.dir, "kubeconfig"))
			return nil
		}
		fmt.Fprintln(out, lines.Text())
	}
	// It closed the pipe: it ended, or is about to.
	_ = cmd.Wait() // it has said why
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("the cluster is not up; the logs are in %s", filepath.Join(f.dir, "logs"))
}

func (f *flags) downCommand() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "end the cluster, and remove what one that was killed left", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.down(cmd.Context(), cmd.OutOrStdout()) },
	}
}

// downWithin is how long a cluster may take to go down.
const downWithin = time.Minute

func (f *flags) down(ctx context.Context, out io.Writer) error {
	c, err := lab.Connect(f.dir)
	if err != nil {
		left, err := lab.Clean(f.dir)
		switch {
		case err != nil:
			return err
		case left == "":
			fmt.Fprintln(out, "no cluster is up in", f.dir)
		default:
			fmt.Fprintln(out, "removed what a cluster left:", left)
		}
		return nil
	}
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(info.Supervisor, 0)
	if err != nil {
		return fmt.Errorf("supervisor %d: %w", info.Supervisor, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return fmt.Errorf("end supervisor %d: %w", info.Supervisor, err)
	}
	if err := awaitEnd(fd, downWithin); err != nil {
		return fmt.Errorf("supervisor %d: %w", info.Supervisor, err)
	}
	fmt.Fprintln(out, "the cluster is down")
	return nil
}

func (f *flags) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "tell what is up", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := lab.Connect(f.dir)
			if err != nil {
				return err
			}
			info, err := c.Info(cmd.Context())
			if err != nil {
				return err
			}
			printStatus(cmd.OutOrStdout(), info)
			return nil
		},
	}
}

func printStatus(out io.Writer, info lab.Info) {
	state := "up"
	if !info.Ready {
		state = "starting"
	}
	fmt.Fprintf(out, "%s: API server %s, flannel %s, supervisor %d\n", state, info.APIServer, info.Backend, info.Supervisor)
	for _, m := range info.Machines {
		fmt.Fprintf(out, "%-8s %-14s pid %-8d %s\n", m.Name, m.IP, m.PID, m.ProxyMode)
		for _, p := range m.Processes {
			how := fmt.Sprintf("pid %d", p.PID)
			if p.PID == 0 {
				how = "does not run"
			}
			if p.Exits > 0 {
				how += fmt.Sprintf(", ended %d times", p.Exits)
			}
			fmt.Fprintln(out, strings.TrimRight(fmt.Sprintf("  %-24s %-24s %s", p.Name, how, p.Log), " "))
		}
	}
}
