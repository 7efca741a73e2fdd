// Command bench-shaping measures how well pods are held to their bandwidth, and what
// it costs, in network namespaces of its own: by the product, beside what the CNI's
// bandwidth plugin makes of the same rate, and says which of the product's bars
// hold. See e2e/bench/shape/README.md for what is measured and how to read it.
//
// It needs root.
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

	"github.com/selvage-net/selvage/e2e/bench/shape"
	"github.com/selvage-net/selvage/e2e/bench/verdict"
	"github.com/selvage-net/selvage/shaping"
)

// sections are the parts of the benchmark, in the order in which they run.
var sections = []string{"program", "cost", "rate"}

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
		fmt.Fprintln(os.Stderr, "bench-shaping:", err)
		os.Exit(1)
	}
}

// options are the command line's.
type options struct {
	quick      bool
	strict     bool
	json       bool
	only       []string
	rates      []shaping.Rate
	congestion string
	repeat     int
	length     time.Duration
}

func parseOptions(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench-shaping", flag.ContinueOnError)
	fs.BoolVar(&o.quick, "quick", false, "take a minute and a half: fewer and shorter runs")
	fs.BoolVar(&o.strict, "strict", false, "exit with code 1 if a bar does not hold")
	output := fs.String("o", "table", "table, or json with every run")
	only := fs.String("only", strings.Join(sections, ","), "sections to run")
	rates := fs.String("rates", "1M,10M,100M,1G,5G", "rates to hold the pod to, as in an annotation")
	fs.StringVar(&o.congestion, "congestion", "cubic", "the senders' algorithm, see tcp(7)")
	fs.IntVar(&o.repeat, "repeat", 0, "how often each rate is measured (default 5; 1 with -quick)")
	fs.DurationVar(&o.length, "length", 0, "how long each run takes (default 3s; 2s with -quick)")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	o.only = strings.Split(*only, ",")
	for _, s := range o.only {
		if !slices.Contains(sections, s) {
			return o, complain(fs, "there is no section %q; there are %s", s, strings.Join(sections, ", "))
		}
	}
	for text := range strings.SplitSeq(*rates, ",") {
		r, err := shaping.ParseRate(text)
		if err != nil {
			return o, complain(fs, "rate: %w", err)
		}
		o.rates = append(o.rates, r)
	}
	if o.json = *output == "json"; !o.json && *output != "table" {
		return o, complain(fs, "the output is %q, neither table nor json", *output)
	}
	if fs.NArg() > 0 {
		return o, complain(fs, "unexpected argument %q", fs.Arg(0))
	}
	if o.repeat <= 0 {
		o.repeat = pick(o.quick, 1, 5)
	}
	if o.length <= 0 {
		o.length = pick(o.quick, 2*time.Second, 3*time.Second)
	}
	if o.length < time.Second {
		return o, complain(fs, "a run of %v says nothing: a second at least", o.length)
	}
	return o, nil
}

func complain(fs *flag.FlagSet, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	fmt.Fprintln(fs.Output(), "bench-shaping:", err)
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
	rep := report{Start: time.Now().UTC(), Machine: verdict.Describe(), Quick: o.quick, Congestion: o.congestion}
	text := w
	if o.json {
		text = os.Stderr
	}
	say := func(format string, args ...any) { fmt.Fprintf(text, "... "+format+"\n", args...) }
	var err error
	if rep.FQCodel, err = shape.HasFQCodel(); err != nil {
		return false, err
	}
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
	held := verdict.Held(rep.Bars) == len(rep.Bars)
	if o.json {
		return held, rep.writeJSON(w)
	}
	rep.writeTable(w)
	return held, nil
}

// programmed is how many pods are shaped where one more comes.
const programmed = 250

func (r *report) measure(ctx context.Context, section string, o options, say func(string, ...any)) error {
	switch section {
	case "program":
		say("shaping %d pods, and then one more", programmed)
		p, err := shape.Program(programmed, pick(o.quick, 20, 100))
		r.Program = &p
		return err
	case "cost":
		var err error
		r.Costs, err = shape.Costs(shape.CostOptions{
			Replicas: pick(o.quick, 2, 4), Length: pick(o.quick, 3*time.Second, 15*time.Second), Progress: say,
		})
		return err
	default:
		var err error
		r.Runs, err = shape.Rates(ctx, shape.RateOptions{
			Rates: o.rates, Length: o.length, Repeat: o.repeat, Congestion: o.congestion, Progress: say,
		})
		r.Rates = shape.Summarize(r.Runs)
		return err
	}
}
