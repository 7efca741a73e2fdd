// Command lab runs a real Kubernetes cluster on this machine, see package
// e2e/lab, and works with it:
//
//	lab up                  starts it in the background, and returns when it is up
//	lab run                 holds it up in the foreground, until SIGTERM or Ctrl-C
//	lab down                ends it, and removes what one that was killed left
//	lab status              tells what is up
//	lab kubectl -- ...      runs kubectl
//	lab exec MACHINE -- ... runs a program on a machine
//	lab reboot MACHINE      takes a node's power away and gives it back
//	lab load IMAGE.tar      loads a docker-archive into all nodes
//	lab check-clean         starts and ends it in good and bad ways, and compares
//	                        the host before and after
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/selvage-net/selvage/e2e/lab"
	"github.com/selvage-net/selvage/e2e/lab/machine"
)

func main() { os.Exit(run()) }

func run() int {
	// The machines' first processes are this program, too.
	if len(os.Args) > 1 && os.Args[1] == "machine" {
		if err := machine.Main(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "machine:", err)
			return 1
		}
		return 0
	}
	// A terminal that closes ends it like Ctrl-C does.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := newCommand().ExecuteContext(ctx)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "lab: interrupted")
		return 130
	}
	fmt.Fprintln(os.Stderr, "lab:", err)
	return 1
}

// flags are those that all commands have.
type flags struct {
	dir  string
	repo string
}

func newCommand() *cobra.Command {
	f := &flags{}
	root := &cobra.Command{
		Use: "lab", Short: "run a real Kubernetes cluster on this machine",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&f.repo, "repo", repository(), "the `root` of the repository")
	root.PersistentFlags().StringVar(&f.dir, "dir", "", "the state `directory` of the cluster (default .cache/lab of the repository)")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if f.dir == "" {
			f.dir = filepath.Join(f.repo, ".cache", "lab")
		}
		var err error
		f.dir, err = filepath.Abs(f.dir)
		return err
	}
	root.AddCommand(f.upCommand(), f.runCommand(), f.downCommand(), f.statusCommand(),
		f.kubectlCommand(), f.execCommand(), f.rebootCommand(), f.loadCommand(), f.checkCleanCommand())
	return root
}

// repository is where this program is bin/lab, or else the working directory.
func repository() string {
	if self, err := os.Executable(); err == nil {
		root := filepath.Dir(filepath.Dir(self))
		if _, err := os.Stat(filepath.Join(root, "e2e", "go.mod")); err == nil {
			return root
		}
	}
	return "."
}

func (f *flags) kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use: "kubectl -- ARGUMENTS", Short: "run kubectl", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := lab.Connect(f.dir)
			if err != nil {
				return err
			}
			kubectl := filepath.Join(f.dir, "bin", "kubectl")
			return attach(c.NetCommand(cmd.Context(), lab.Fabric, append([]string{kubectl}, args...)...))
		},
	}
}

func (f *flags) execCommand() *cobra.Command {
	return &cobra.Command{
		Use: "exec MACHINE -- PROGRAM [ARGUMENTS]", Short: "run a program on a machine", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := lab.Connect(f.dir)
			if err != nil {
				return err
			}
			return attach(c.Command(cmd.Context(), args[0], args[1:]...))
		},
	}
}

// exitCode is that of a program which ran in this one's place, and said why.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// attach runs a program in this one's place.
func attach(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// In a process group of its own it could not read from the terminal; in this
	// one it gets its own Ctrl-C.
	cmd.SysProcAttr = nil
	cmd.Cancel = func() error { return os.ErrProcessDone }
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exitCode(exit.ExitCode())
	}
	return err
}

func (f *flags) rebootCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reboot MACHINE", Short: "take a node's power away and give it back", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := lab.Connect(f.dir)
			if err != nil {
				return err
			}
			return c.Reboot(cmd.Context(), args[0])
		},
	}
}

func (f *flags) loadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "load IMAGE.tar", Short: "load a docker-archive into all nodes", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := lab.Connect(f.dir)
			if err != nil {
				return err
			}
			return c.LoadImage(cmd.Context(), args[0])
		},
	}
}
