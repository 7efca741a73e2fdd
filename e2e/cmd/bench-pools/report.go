package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/bench/pools"
	"github.com/selvage-net/selvage/e2e/bench/verdict"
)

// report is all that was measured.
type report struct {
	Start   time.Time       `json:"start"`
	Seconds float64         `json:"seconds"`
	Machine verdict.Machine `json:"machine"`
	Quick   bool            `json:"quick"`
	Bars    []verdict.Bar   `json:"bars"`

	// Clusters are the variants among Costs that are the product's.
	Clusters []pools.Cluster      `json:"clusters,omitempty"`
	Costs    []pools.CostResult   `json:"costs,omitempty"`
	Changes  []pools.ChangeResult `json:"changes,omitempty"`
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
	for i := range r.Costs {
		writeCost(w, &r.Costs[i])
	}
	r.writeChanges(w)
	fmt.Fprintln(w)
	verdict.WriteBars(w, "bench-pools", r.Bars)
}

func writeCost(w io.Writer, c *pools.CostResult) {
	base := c.Figures[0]
	fmt.Fprintf(w, "\n%s, %s, %s: ns per operation (%d worlds each, %d rounds); identical worlds differ by up to %.1f%%\n",
		c.Way, c.Family, c.Load, base.Replicas, base.Rounds, 100*c.Noise())
	t := verdict.NewTable(w)
	t.Row("variant", "p5", "over the first", "ratio p5", "median", "over the first", "ratio", "to flannel", "spread")
	for _, f := range c.Figures {
		t.Row(f.Variant, f.P5, f.P5-base.P5, ratio(f.RatioP5), f.Median, f.Median-base.Median, ratio(f.Ratio),
			ratio(c.ToFlannel[f.Variant]), fmt.Sprintf("%.1f%%", 100*f.Spread))
	}
	t.Flush()
}

func ratio(f float64) string { return fmt.Sprintf("%.3f", f) }

func (r *report) writeChanges(w io.Writer) {
	if len(r.Changes) == 0 {
		return
	}
	fmt.Fprintln(w, "\na pool with a block of each family: µs to compile, and to encode and commit")
	t := verdict.NewTable(w)
	t.Row("cluster, change", "elements before", "its own", "changed", "others", "messages", "transactions", "compile p50", "p99", "commit p50", "p99")
	for _, c := range r.Changes {
		for _, s := range c.Steps {
			t.Row(fmt.Sprintf("%s, %s", c.Cluster, s.Name), c.Elements, s.Own, s.Elements, s.Others, s.Messages, s.Batches,
				bench.Median(s.Compile), bench.Quantile(s.Compile, 0.99), bench.Median(s.Commit), bench.Quantile(s.Commit, 0.99))
		}
	}
	t.Flush()
}
