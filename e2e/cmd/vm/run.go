package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/selvage-net/selvage/e2e/vm"
)

// boot runs the programs on a kernel.
func (f *flags) boot(ctx context.Context, series string, programs []vm.Program, o vm.Options, log io.Writer) error {
	kernels := vm.Kernels{Cache: f.cache, Progress: func(line string) { fmt.Fprintln(log, line) }}
	kernel, err := kernels.Get(ctx, series)
	if err != nil {
		return err
	}
	defer kernel.Close()
	if o.Init, err = os.Executable(); err != nil {
		return err
	}
	o.Repo, o.Limit, o.Accelerator = f.repo, f.timeout, vm.Accelerator(f.accel)
	began := time.Now()
	o.Slow = func(why error) {
		fmt.Fprintf(log, "there is no KVM that works (%v): emulating the processors, which is slow\n", why)
		// It will be no better with the next kernel.
		f.accel = string(vm.TCG)
	}
	o.Up = func() {
		fmt.Fprintf(log, "kernel %s: %s, version %s, is up after %s\n", series, kernel.Release, kernel.Version, since(began))
	}
	return vm.Run(ctx, kernel, programs, o)
}

// exec runs one program on all kernels.
func (f *flags) exec(ctx context.Context, argv []string, out, log io.Writer) error {
	failed := false
	for _, series := range f.kernels {
		err := f.boot(ctx, series, []vm.Program{{Argv: argv}}, vm.Options{
			Begin:  func(int) {},
			Output: func(_ int, text string) { fmt.Fprint(out, text) },
			Exited: func(_ int, err error) {
				if err != nil {
					failed = true
					fmt.Fprintf(log, "kernel %s: %s: %v\n", series, argv[0], err)
				}
			},
		}, log)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			failed = true
			fmt.Fprintf(log, "kernel %s: %v\n", series, err)
		}
	}
	if failed {
		return errFailed
	}
	return nil
}

// test builds the tests of the packages once, and runs them on all kernels.
func (f *flags) test(ctx context.Context, packages, args []string, out, log io.Writer) error {
	dir, err := os.MkdirTemp("", "selvage-vm-tests-")
	if err != nil {
		return err
	}
	err = f.testIn(ctx, dir, packages, args, out, log)
	return errors.Join(err, os.RemoveAll(dir))
}

func (f *flags) testIn(ctx context.Context, dir string, packages, args []string, out, log io.Writer) error {
	var programs []vm.Program
	var names []string
	for _, pkg := range packages {
		fmt.Fprintf(log, "building the tests of %s\n", pkg)
		program, err := vm.Build(ctx, f.repo, pkg, dir, f.timeout, args)
		if err != nil {
			return err
		}
		programs, names = append(programs, program), append(names, program.Dir)
	}
	passed, failed := 0, 0
	for _, series := range f.kernels {
		r := newRound(series, names, f.verbose, out)
		began := time.Now()
		err := f.boot(ctx, series, programs, vm.Options{Begin: r.begin, Output: r.output, Exited: r.exited}, log)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.close(err)
		fmt.Fprintf(out, "kernel %s: %d passed, %d failed in %s\n", series, r.passed, r.failed, since(began))
		passed, failed = passed+r.passed, failed+r.failed
	}
	fmt.Fprintf(out, "test-vm: %d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		return errFailed
	}
	return nil
}

// since is the time that has passed, as people read it.
func since(t time.Time) time.Duration { return time.Since(t).Round(100 * time.Millisecond) }
