// Command observe judges dashboards and alerts, see package e2e/observe: it checks them
// with promtool, brings up the lab's cluster, deploys Selvage so that it can be observed,
// has a real Prometheus scrape it, asks all queries of the dashboards, provokes the
// alerts, draws the dashboards, and takes everything away again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/selvage-net/selvage/e2e/lab/machine"
	"github.com/selvage-net/selvage/e2e/observe"
)

// options are what a run can be told.
type options struct {
	repo  string
	state string
	// overlay is what is deployed, of deploy/.
	overlay string
	keep    bool
}

func main() { os.Exit(start()) }

func start() int {
	// The lab's machines begin with this program.
	if len(os.Args) > 1 && os.Args[1] == "machine" {
		if err := machine.Main(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "machine:", err)
			return 1
		}
		return 0
	}
	o, err := parse()
	if err != nil {
		fmt.Fprintln(os.Stderr, "observe:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	checks := observe.NewChecks(os.Stdout)
	err = judge(ctx, o, checks)
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "observe: interrupted; the cluster is removed")
		return 130
	}
	passed, failed := checks.Counts()
	if err != nil {
		fmt.Fprintln(os.Stderr, "observe:", err)
		failed++ // what could not be judged has not passed
	}
	fmt.Printf("observe: %d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		return 1
	}
	return 0
}

// parse reads the command line.
func parse() (options, error) {
	var o options
	flag.StringVar(&o.repo, "repo", ".", "root `directory` of the repository")
	flag.StringVar(&o.state, "state", ".cache/observe", "`directory` for the cluster's state, Prometheus' data, logs and pictures")
	flag.StringVar(&o.overlay, "overlay", "deploy/overlays/observe", "`directory` of what is deployed, from the root of the repository")
	flag.BoolVar(&o.keep, "keep", false, "keep the cluster until Ctrl-C")
	flag.Parse()
	if flag.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if os.Geteuid() != 0 {
		return o, errors.New("a cluster of namespaces needs root: run it with sudo")
	}
	for _, p := range []*string{&o.repo, &o.state} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return o, err
		}
		*p = abs
	}
	if !filepath.IsAbs(o.overlay) {
		o.overlay = filepath.Join(o.repo, o.overlay)
	}
	// nft, tc and apt-get's helpers are not in everybody's PATH.
	return o, os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
}
