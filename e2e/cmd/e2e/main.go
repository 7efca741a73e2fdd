// Command e2e judges Selvage on a real Kubernetes cluster: it brings one up,
// deploys Selvage from deploy/, runs upstream's NetworkPolicy suite and our own
// cluster specs, writes the table of results, and takes everything away again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/selvage-net/selvage/e2e/report"
)

// options are what a run can be told.
type options struct {
	repo    string
	state   string
	out     string
	backend string
	suites  []string
	focus   string
	procs   int
	repeat  int
	tries   int
	keep    bool
}

func (o options) has(suite string) bool { return slices.Contains(o.suites, suite) }

func main() { os.Exit(start()) }

func start() int {
	o, err := parse()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	say := newNarrator(os.Stderr)
	section, err := judge(ctx, o, say)
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "e2e: interrupted; the cluster is removed")
		return 130
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
	}
	return conclude(o, section, err)
}

// conclude prints what came out, and returns the exit code.
func conclude(o options, section report.Section, err error) int {
	passed, failed, leftOut := report.Count(section.Specs)
	for _, s := range section.Specs {
		switch {
		case s.Outcome == report.Failed:
			fmt.Printf("\nFAILED: %s: %s\n%s\n", s.Suite, s.Name, strings.Join(s.Failures, "\n\n"))
		case s.Tries > s.Runs:
			fmt.Printf("\nsecond try: %s: %s\n%s\n", s.Suite, s.Name, strings.Join(s.Failures, "\n\n"))
		}
	}
	for _, f := range section.Figures {
		fmt.Printf("%s: %s\n", f.Name, f.Value)
	}
	if leftOut > 0 {
		fmt.Printf("%d specs were left out, see %s\n", leftOut, o.out)
	}
	if err != nil {
		failed++ // what could not be judged has not passed
	}
	fmt.Printf("e2e: %d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		return 1
	}
	return 0
}

// parse reads the command line.
func parse() (options, error) {
	var o options
	var suites string
	flag.StringVar(&o.repo, "repo", ".", "root `directory` of the repository")
	flag.StringVar(&o.state, "state", ".cache/e2e", "`directory` for the cluster's state, logs and reports")
	flag.StringVar(&o.out, "results", "e2e/RESULTS.md", "`file` with the table of results")
	flag.StringVar(&o.backend, "backend", "vxlan", "flannel's backend: vxlan or host-gw")
	flag.StringVar(&suites, "suites", strings.Join(all(), ","), "which suites to run: upstream's, our specs that run beside others, those that need the cluster for themselves, the one that removes Selvage")
	flag.StringVar(&o.focus, "focus", "", "run only the specs whose names match this `expression`, and write no results")
	flag.IntVar(&o.procs, "procs", 6, "processes that run upstream's suite")
	flag.IntVar(&o.repeat, "repeat", 1, "how often to run the suites")
	flag.IntVar(&o.tries, "tries", 2, "how often a spec may be tried; each further try is listed")
	flag.BoolVar(&o.keep, "keep", false, "keep the cluster until Ctrl-C")
	flag.Parse()
	o.suites = strings.Split(suites, ",")
	switch {
	case flag.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case o.backend != "vxlan" && o.backend != "host-gw":
		return o, fmt.Errorf("--backend: %q is neither vxlan nor host-gw", o.backend)
	case o.procs < 1 || o.repeat < 1 || o.tries < 1:
		return o, errors.New("--procs, --repeat and --tries must be at least 1")
	}
	for _, s := range o.suites {
		if !slices.Contains(all(), s) {
			return o, fmt.Errorf("--suites: %q is none of %s", s, strings.Join(all(), ", "))
		}
	}
	if os.Geteuid() != 0 {
		return o, errors.New("a cluster of namespaces needs root: run it with sudo")
	}
	for _, p := range []*string{&o.repo, &o.state, &o.out} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return o, err
		}
		*p = abs
	}
	// iptables, modprobe and nft are not in everybody's PATH.
	return o, os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
}

// besides returns the path of a program in the directory of this one.
func besides(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
