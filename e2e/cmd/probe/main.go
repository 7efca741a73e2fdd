// Command probe is the program in the pods of the cluster's tests; see package
// e2e/cluster/probe.
//
//	probe serve    serves and obeys its control server until it is told to end
//	probe check    tries one of probe's own TCP ports, for an exec probe
//	probe finish   ends with success after a while, for a Job
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("serve, check or finish?")
	}
	flags := flag.NewFlagSet("probe "+args[0], flag.ContinueOnError)
	flags.SetOutput(out)
	switch args[0] {
	case "serve":
		s := newServe(flags)
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return s.run(ctx)
	case "check":
		address := flags.String("address", "127.0.0.1:80", "the server to try")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return check(ctx, *address)
	case "finish":
		after := flags.Duration("after", 0, "how long to live")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		select {
		case <-time.After(*after):
		case <-ctx.Done():
		}
		return nil
	}
	return fmt.Errorf("no such command: %s", args[0])
}

func check(ctx context.Context, address string) error {
	var d net.Dialer
	t := probe.Try{Kind: probe.TCP, To: address, Token: "check", Timeout: time.Second}
	if r := probe.Run(ctx, d.DialContext, []probe.Try{t})[0]; r.Outcome != probe.Answered {
		return fmt.Errorf("%s: %s: %s", address, r.Outcome, r.Error)
	}
	return nil
}
