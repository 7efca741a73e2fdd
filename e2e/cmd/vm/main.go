// Command vm runs tests, or any program, on the kernels of distributions, in
// virtual machines; see package e2e/vm:
//
//	vm test PACKAGE... [-- FLAGS]    runs the packages' tests, with these flags
//	                                 such as -test.run=Name
//	vm exec -- PROGRAM [ARGUMENTS]   runs a program of the host there
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/selvage-net/selvage/e2e/vm"
)

func main() {
	// The machines' first processes are this program, too.
	if vm.InGuest() {
		vm.Guest()
	}
	os.Exit(run())
}

func run() int {
	// A terminal that closes ends it like Ctrl-C does.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := newCommand().ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "vm: interrupted; nothing is left of the machine")
		return 130
	case !errors.Is(err, errFailed):
		fmt.Fprintln(os.Stderr, "vm:", err)
	}
	return 1
}

// errFailed says that something has failed which was told already.
var errFailed = errors.New("failed")

// flags are those that all commands have.
type flags struct {
	repo, cache string
	kernels     []string
	accel       string
	timeout     time.Duration
	verbose     bool
}

func newCommand() *cobra.Command {
	f := &flags{}
	root := &cobra.Command{
		Use: "vm", Short: "run tests on the kernels of distributions",
		SilenceUsage: true, SilenceErrors: true,
	}
	set := root.PersistentFlags()
	set.StringVar(&f.repo, "repo", ".", "the `root` of the repository")
	set.StringVar(&f.cache, "cache", "", "the `directory` that keeps the kernels (default $SELVAGE_CACHE, or selvage in the user's cache directory)")
	set.StringSliceVar(&f.kernels, "kernel", []string{"6.1", "6.12"}, "the `series` of kernels, each with a machine of its own")
	set.StringVar(&f.accel, "accel", string(vm.Auto), "kvm, tcg for emulated processors, or auto: kvm if it works")
	set.DurationVar(&f.timeout, "timeout", 20*time.Minute, "how long a program, or the tests of a package, may take")
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return f.check() }
	test := &cobra.Command{
		Use: "test PACKAGE... [-- FLAGS]", Short: "run the tests of packages, which are directories below the root of the repository",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || cmd.ArgsLenAtDash() == 0 {
				return errors.New("no package is named")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			packages, more := args, []string(nil)
			if n := cmd.ArgsLenAtDash(); n > 0 {
				packages, more = args[:n], args[n:]
			}
			return f.test(cmd.Context(), packages, more, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	test.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "show everything that the tests write, and not only of packages that fail")
	root.AddCommand(test, &cobra.Command{
		Use: "exec -- PROGRAM [ARGUMENTS]", Short: "run a program in the root of the repository", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.exec(cmd.Context(), args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	})
	return root
}

// check checks the flags and completes them.
func (f *flags) check() error {
	switch {
	case runtime.GOARCH != "amd64":
		return fmt.Errorf("the machines are amd64, and this one is %s", runtime.GOARCH)
	case len(f.kernels) == 0:
		return errors.New("--kernel: no kernel is named")
	case f.timeout <= 0:
		return fmt.Errorf("--timeout: %v is not a time to do anything in", f.timeout)
	case !slices.Contains([]vm.Accelerator{vm.Auto, vm.KVM, vm.TCG}, vm.Accelerator(f.accel)):
		return fmt.Errorf("--accel: %q is none of kvm, tcg and auto", f.accel)
	}
	series := regexp.MustCompile(`^[0-9]+\.[0-9]+$`)
	for _, k := range f.kernels {
		if !series.MatchString(k) {
			return fmt.Errorf("--kernel: %q is no series such as 6.12", k)
		}
	}
	var err error
	if f.repo, err = filepath.Abs(f.repo); err != nil {
		return err
	}
	// modprobe, depmod, tc and nft are not in everybody's PATH.
	return os.Setenv("PATH", strings.Join([]string{os.Getenv("PATH"), "/usr/local/sbin", "/usr/sbin", "/sbin"}, ":"))
}
