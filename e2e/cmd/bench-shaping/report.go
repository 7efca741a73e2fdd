package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/bench/shape"
	"github.com/selvage-net/selvage/e2e/bench/verdict"
	"github.com/selvage-net/selvage/shaping"
)

// report is all that was measured.
type report struct {
	Start      time.Time       `json:"start"`
	Seconds    float64         `json:"seconds"`
	Machine    verdict.Machine `json:"machine"`
	FQCodel    bool            `json:"fqCodel"`
	Congestion string          `json:"congestion"`
	Quick      bool            `json:"quick"`
	Bars       []verdict.Bar   `json:"bars"`

	Rates   []shape.RateFigure   `json:"rates,omitempty"`
	Costs   []shape.CostResult   `json:"costs,omitempty"`
	Program *shape.ProgramResult `json:"program,omitempty"`
	Runs    []shape.RateRun      `json:"runs,omitempty"`
}

func (r *report) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("write the figures: %w", err)
	}
	return nil
}

func (r *report) writeTable(w io.Writer) {
	fmt.Fprintf(w, "\n%s, kernel %s, %d x %s, load %s before, %s, took %.0f s\n",
		r.Start.Format(time.DateTime+" UTC"), r.Machine.Kernel, r.Machine.CPUs, r.Machine.CPU, r.Machine.Load, r.Machine.Go, r.Seconds)
	fmt.Fprintln(w, "The baseline is the CNI's bandwidth plugin with its own parameters: tbf with a latency of 25 ms and")
	fmt.Fprintln(w, "the burst that containerd passes, 4294967295 bits; from the pod by ingress, u32, mirred, IFB.")
	leaf := map[bool]string{true: "has", false: "has not"}[r.FQCodel]
	fmt.Fprintf(w, "This kernel %s fq_codel.\n", leaf)
	for _, d := range shaping.Directions() {
		r.writeRates(w, d.String())
	}
	r.writeCosts(w)
	r.writeProgram(w)
	fmt.Fprintln(w)
	verdict.WriteBars(w, "bench-shaping", r.Bars)
}

func (r *report) writeRates(w io.Writer, direction string) {
	if len(r.Rates) == 0 {
		return
	}
	fmt.Fprintf(w, "\none TCP flow (%s) %s, medians of %d runs: Mbit/s of whole frames, round trips in ms\n",
		r.Congestion, wayOf(direction), r.Rates[0].Runs)
	t := verdict.NewTable(w)
	t.Row("rate, variant", "goodput", "over rate", "first 0.5 s", "over rate", "rtt p50", "p95", "lost", "retransmits")
	for _, f := range r.Rates {
		if f.Direction != direction {
			continue
		}
		over := func(bits float64) any {
			if f.Rate == 0 {
				return "-"
			}
			return fmt.Sprintf("%.3fx", bits/float64(f.Rate))
		}
		name := f.Variant
		if f.Rate != 0 {
			name = f.Rate.String() + ", " + name
		}
		t.Row(name, f.Goodput/1e6, over(f.Goodput), f.First/1e6, over(f.First), wait(f.P50), wait(f.P95),
			fmt.Sprintf("%d/%d", f.Lost, f.Sent), f.Retransmits)
	}
	t.Flush()
	unshaped := r.unshaped(direction)
	for _, f := range r.Rates {
		if f.Variant == shape.Selvage && f.Direction == direction && float64(f.Rate) > unshaped {
			fmt.Fprintf(w, "This machine does %s Mbit/s without any shaping: %s is judged by that.\n", verdict.Number(unshaped/1e6), f.Rate)
		}
	}
}

func wait(ms float64) string {
	if ms < 0 {
		return "lost"
	}
	return verdict.Number(ms)
}

func (r *report) writeCosts(w io.Writer) {
	for _, c := range r.Costs {
		base := c.Figures[0]
		fmt.Fprintf(w, "\none small packet that never waits, %s: ns (%d worlds each, %d rounds); identical worlds differ by %.1f%%\n",
			wayOf(c.Direction), base.Replicas, base.Rounds, 100*base.Spread)
		t := verdict.NewTable(w)
		t.Row("variant", "p5", "over unshaped", "ratio p5", "median", "over unshaped", "ratio")
		for _, f := range c.Figures {
			t.Row(f.Variant, f.P5, f.P5-base.P5, fmt.Sprintf("%.3f", f.RatioP5), f.Median, f.Median-base.Median, fmt.Sprintf("%.3f", f.Ratio))
		}
		t.Flush()
	}
}

func (r *report) writeProgram(w io.Writer) {
	p := r.Program
	if p == nil {
		return
	}
	fmt.Fprintf(w, "\nprogramming, with %d pods shaped in both directions\n", p.Pods)
	t := verdict.NewTable(w)
	t.Row("what", "p50", "p99", "times")
	t.Row(fmt.Sprintf("one pod more: %d steps, ms", p.Steps), bench.Median(p.New), bench.Quantile(p.New, 0.99), len(p.New))
	t.Row("a new rate: compare, one step, µs", bench.Median(p.Change), bench.Quantile(p.Change, 0.99), len(p.Change))
	t.Row("... the step alone, µs", bench.Median(p.Do), bench.Quantile(p.Do, 0.99), len(p.Do))
	t.Row("... to read what there is before, µs", bench.Median(p.Read), bench.Quantile(p.Read, 0.99), len(p.Read))
	t.Flush()
}
