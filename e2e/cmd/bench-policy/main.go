// Command bench-policy measures the policy data plane beside its baselines, in
// network namespaces of its own, and says which of its bars hold. See
// e2e/bench/README.md for what is measured and how to read it.
//
// It needs root, nft, and the selvage binary for the agent's memory.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/bench/verdict"
)

// sections are the parts of the benchmark, in the order in which they run.
var sections = []string{"events", "scratch", "commit", "memory", "packets"}

// serverCommand is the first argument of the process that stands in for the
// API server; see serve.
const serverCommand = "serve-cluster"

func main() {
	if len(os.Args) == 3 && os.Args[1] == serverCommand {
		os.Exit(exitCode(serve(os.Args[2], os.Stdin, os.Stdout)))
	}
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
	os.Exit(exitCode(err))
}

func exitCode(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-policy:", err)
		return 1
	}
	return 0
}

// options are the command line's.
type options struct {
	quick    bool
	strict   bool
	json     bool
	only     []string
	agent    string
	replicas int
	length   time.Duration
	extra    map[string]string
}

func parseOptions(args []string) (options, error) {
	o := options{extra: map[string]string{}}
	fs := flag.NewFlagSet("bench-policy", flag.ContinueOnError)
	fs.BoolVar(&o.quick, "quick", false, "take less than a minute: fewer and shorter runs, smaller clusters where that does not change the question")
	fs.BoolVar(&o.strict, "strict", false, "exit with code 1 if a bar does not hold")
	output := fs.String("o", "table", "table, or json with the raw figures")
	only := fs.String("only", strings.Join(sections, ","), "sections to run")
	fs.StringVar(&o.agent, "agent", beside("selvage"), "the selvage binary, for its memory")
	fs.IntVar(&o.replicas, "replicas", 0, "worlds of each variant (default 4; 2 with -quick)")
	fs.DurationVar(&o.length, "length", 0, "how long each load runs over all worlds (default 25s; 3s with -quick)")
	fs.Func("nft", "name=file: one more ruleset to compare, in nft's syntax; may be repeated", func(v string) error {
		name, file, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("want name=file")
		}
		text, err := os.ReadFile(file)
		o.extra[name] = string(text)
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
		o.length = pick(o.quick, 3*time.Second, 25*time.Second)
	}
	return o, nil
}

func complain(fs *flag.FlagSet, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	fmt.Fprintln(fs.Output(), "bench-policy:", err)
	return err
}

func pick[T any](quick bool, yes, no T) T {
	if quick {
		return yes
	}
	return no
}

// beside is the path of a program in the directory of this one.
func beside(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
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
		if err := rep.measure(ctx, section, o, say); err != nil {
			return false, fmt.Errorf("%s: %w", section, err)
		}
	}
	rep.Seconds = time.Since(rep.Start).Seconds()
	rep.judge()
	if o.json {
		return verdict.Held(rep.Bars) == len(rep.Bars), rep.writeJSON(w)
	}
	rep.writeTable(w)
	return verdict.Held(rep.Bars) == len(rep.Bars), nil
}

// The clusters that the bars speak of.
var (
	// remotePool is how many remote pods the clusters have whose number of
	// policies or of policies per pod is varied: their groups are shared.
	remotePool = 30_000
	barShape   = bench.Shape{LocalPods: 250, RemotePods: remotePool, Policies: 1000, PerPod: 20, Peers: 100}
	// bigShape has 1000 policies with 100 peers of their own each.
	bigShape = bench.Shape{LocalPods: 250, RemotePods: 100_000, Policies: 1000, PerPod: 20, Peers: 100}
	// sharedShape has as many pods, and each is a peer of five signatures.
	sharedShape = bench.Shape{LocalPods: 250, RemotePods: 100_000, Policies: 5000, PerPod: 20, Peers: 100}
	eventShape  = bench.Shape{LocalPods: 250, RemotePods: 29_750, Policies: 30_000, PerPod: 20, Peers: 100}
	memoryShape = bench.Shape{LocalPods: 110, RemotePods: 14_890, Policies: 1000, PerPod: 20, Peers: 100}
)

// flatShapes vary one thing each, around barShape: which is the third.
func flatShapes(quick bool) []bench.Shape {
	vary := func(pods, policies, perPod int) bench.Shape {
		s := barShape
		s.LocalPods, s.Policies, s.PerPod = pods, policies, perPod
		return s
	}
	if quick {
		return []bench.Shape{vary(10, 10, 2), barShape, vary(250, 1000, 100)}
	}
	return []bench.Shape{
		vary(10, 10, 2), vary(250, 1000, 2), barShape, vary(250, 1000, 100), vary(250, 10_000, 20),
	}
}

func (r *report) measure(ctx context.Context, section string, o options, say func(string, ...any)) (err error) {
	switch section {
	case "events":
		say("compiling events in a cluster of %s", eventShape)
		r.EventShape = eventShape
		r.Events, err = bench.Events(eventShape, pick(o.quick, 300, 3000))
	case "scratch":
		shapes := []bench.Shape{bigShape}
		if !o.quick {
			dual := bigShape
			dual.DualStack = true
			shapes = append(shapes, dual, sharedShape)
		}
		for _, s := range shapes {
			say("programming %s from nothing", s)
			var res bench.ScratchResult
			if res, err = bench.Scratch(s, pick(o.quick, 3, 9)); err != nil {
				return err
			}
			r.Scratch = append(r.Scratch, res)
		}
	case "commit":
		for _, s := range pick(o.quick, []bench.Shape{bigShape}, []bench.Shape{bigShape, sharedShape}) {
			say("adding a remote pod to %s", s)
			var res bench.CommitResult
			if res, err = bench.Commit(s, pick(o.quick, 200, 1000)); err != nil {
				return err
			}
			r.Commit = append(r.Commit, res)
		}
	case "memory":
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		for _, local := range pick(o.quick, []int{110}, []int{110, 250}) {
			s := memoryShape
			s.RemotePods += s.LocalPods - local
			s.LocalPods = local
			say("running the agent in a cluster of %s", s)
			var res bench.MemoryResult
			if res, err = bench.MeasureMemory(ctx, bench.MemoryOptions{
				Shape: s, Agent: o.agent, Server: []string{self, serverCommand},
				Churn: pick(o.quick, 5*time.Second, 30*time.Second), Rate: 100, Settle: 5 * time.Second,
			}); err != nil {
				return err
			}
			r.Memory = append(r.Memory, res)
		}
	case "packets":
		both := bench.Shape{LocalPods: 250, RemotePods: 3000, Policies: 1000, PerPod: 20, Peers: 100, Egress: true}
		r.Packets, err = bench.Packets(bench.PacketOptions{
			Shapes: append(flatShapes(o.quick), both), Plain: barShape, Loads: bench.Loads[:],
			Replicas: o.replicas, Length: o.length, Extra: o.extra, Progress: say,
		})
	}
	return err
}
