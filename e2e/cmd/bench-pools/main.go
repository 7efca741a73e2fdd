// Command bench-pools measures what IP pools cost, in network namespaces of its own:
// connections that leave them and that stay inside, beside one plain rule and beside
// flannel's, and a pool that comes and goes. It says which of the product's bars hold.
// See e2e/bench/pools/README.md for what is measured and how to read it.
//
// It needs root, nft and iptables-nft.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/bench/pools"
	"github.com/selvage-net/selvage/e2e/bench/verdict"
	"github.com/selvage-net/selvage/policy"
)

// sections are the parts of the benchmark, in the order in which they run.
var sections = []string{"changes", "packets"}

func main() {
	o, err := parseOptions(os.Args[1:])
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(0)
		}
		os.Exit(2) // the flag set has said why
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	held, err := run(ctx, o, os.Stdout)
	if err == nil && o.strict && !held {
		err = errors.New("not all bars held")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-pools:", err)
		os.Exit(1)
	}
}

// options are the command line's.
type options struct {
	quick    bool
	strict   bool
	json     bool
	only     []string
	families []policy.Family
	replicas int
	length   time.Duration
	extra    map[string]string
}

func parseOptions(args []string) (options, error) {
	o := options{extra: map[string]string{}, families: policy.Families[:]}
	fs := flag.NewFlagSet("bench-pools", flag.ContinueOnError)
	fs.BoolVar(&o.quick, "quick", false, "take a minute: fewer and shorter runs")
	fs.BoolVar(&o.strict, "strict", false, "exit with code 1 if a bar does not hold")
	output := fs.String("o", "table", "table, or json with all figures")
	only := fs.String("only", strings.Join(sections, ","), "sections to run")
	fs.IntVar(&o.replicas, "replicas", 0, "worlds of each variant (default 4; 2 with -quick)")
	fs.DurationVar(&o.length, "length", 0, "how long each load runs over all worlds (default 12s; 2s with -quick)")
	fs.Func("nft", "name=file: one more ruleset to compare, in nft's syntax, over IPv4 alone; may be repeated", func(v string) error {
		name, file, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("want name=file")
		}
		text, err := os.ReadFile(file)
		o.extra[name] = string(text)
		o.families = []policy.Family{policy.IPv4}
		return err
	})
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	o.only = strings.Split(*only, ",")
	for _, s := range o.only {
		if !slices.Contains(sections, s) {
			return o, complain(fs, "there is no section %q; there are %s", s, strings.Join(sections, ", "))
		}
	}
	if o.json = *output == "json"; !o.json && *output != "table" {
		return o, complain(fs, "the output is %q, neither table nor json", *output)
	}
	if fs.NArg() > 0 {
		return o, complain(fs, "unexpected argument %q", fs.Arg(0))
	}
	if o.replicas <= 0 {
		o.replicas = pick(o.quick, 2, 4)
	}
	if o.length <= 0 {
		o.length = pick(o.quick, 2*time.Second, 12*time.Second)
	}
	return o, nil
}

func complain(fs *flag.FlagSet, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	fmt.Fprintln(fs.Output(), "bench-pools:", err)
	return err
}

func pick[T any](quick bool, yes, no T) T {
	if quick {
		return yes
	}
	return no
}

// run measures, reports to w, and tells whether all bars held.
func run(ctx context.Context, o options, w io.Writer) (bool, error) {
	if os.Geteuid() != 0 {
		return false, errors.New("network namespaces need root")
	}
	rep := report{Start: time.Now().UTC(), Machine: verdict.Describe(), Quick: o.quick}
	text := w
	if o.json {
		text = os.Stderr
	}
	say := func(format string, args ...any) { fmt.Fprintf(text, "... "+format+"\n", args...) }
	for _, section := range sections {
		if !slices.Contains(o.only, section) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return false, fmt.Errorf("interrupted: %w", err)
		}
		if err := rep.measure(section, o, say); err != nil {
			return false, fmt.Errorf("%s: %w", section, err)
		}
	}
	rep.Seconds = time.Since(rep.Start).Seconds()
	rep.judge()
	held := verdict.Held(rep.Bars) == len(rep.Bars)
	if o.json {
		return held, rep.writeJSON(w)
	}
	rep.writeTable(w)
	return held, nil
}

func (r *report) measure(section string, o options, say func(string, ...any)) (err error) {
	switch section {
	case "changes":
		for _, c := range []pools.Cluster{{Pools: 10, Nodes: 100}, {Pools: 1000, Nodes: 100}, {Pools: 1000, Nodes: 5000}} {
			say("changing a pool in a cluster of %s", c)
			res, err := pools.Changes(c, pick(o.quick, 50, 500))
			if err != nil {
				return err
			}
			r.Changes = append(r.Changes, res)
		}
	case "packets":
		r.Clusters = []pools.Cluster{{Pools: 1, Nodes: 1}, {Pools: 1000, Nodes: 1}, {Pools: 1, Nodes: 5000}}
		r.Costs, err = pools.Costs(pools.CostOptions{
			Families: o.families, Clusters: r.Clusters, Extra: o.extra, Replicas: o.replicas, Length: o.length, Progress: say,
			Loads: []bench.Load{bench.UDPConnect, bench.TCPConnect, bench.UDPEstablished, bench.TCPEstablished},
		})
	}
	return err
}
