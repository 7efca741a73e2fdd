package main

import (
	"fmt"
	"strings"

	"github.com/guptarohit/asciigraph"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/selvage-net/selvage/shaping"
)

// act prints what an act has shown, and counts its checks.
func (r *report) act(res *result) {
	r.results = append(r.results, res)
	if len(res.Flows) > 0 {
		r.printf("%s\n\n", indent(flowTable(res.Flows)))
	}
	if res.Transfer != nil {
		r.printf("%s\n\n", indent(res.Transfer.graph(r.colour)))
	}
	if len(res.Sources) > 0 {
		r.printf("%s\n\n", indent(sourceTable(res.Sources)))
	}
	if res.Output != "" {
		r.printf("%s\n", indent(res.Output))
	}
	r.checks(res)
}

// flowTable has a row for each flow.
func flowTable(flows []flowResult) string {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"limit", "direction", "Mbit/s", "of the limit", "first 0.5 s", "round trip p50", "p95"})
	right := make([]table.ColumnConfig, 0, 5)
	for n := 3; n <= 7; n++ {
		right = append(right, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(right)
	for i, f := range flows {
		if i > 0 && f.Limit != flows[i-1].Limit {
			t.AppendSeparator()
		}
		part, first := "", ""
		if f.Limit > 0 {
			part, first = fmt.Sprintf("%.1f %%", 100*f.Goodput/float64(f.Limit)), fmt.Sprintf("%.2f times", f.First/float64(f.Limit))
		}
		t.AppendRow(table.Row{
			f.Limit.String(), f.way(), fmt.Sprintf("%.1f", f.Goodput/1e6), part, first, fmt.Sprintf("%.2f ms", f.P50), fmt.Sprintf("%.2f ms", f.P95),
		})
	}
	return t.Render()
}

// The size of the graph. Its top is above all limits.
const (
	graphHeight = 12
	graphTop    = 60 // Mbit/s
)

// graph draws the rate over time. What is beyond its top, after the limit is gone,
// is drawn at the top.
func (t *transfer) graph(colour bool) string {
	rates := make([]float64, 0, len(t.Rates))
	for _, rate := range t.Rates {
		rates = append(rates, min(rate/1e6, graphTop))
	}
	if len(rates) == 0 {
		return "nothing arrived"
	}
	options := []asciigraph.Option{
		asciigraph.Height(graphHeight), asciigraph.LowerBound(0), asciigraph.UpperBound(graphTop), asciigraph.Precision(0),
		asciigraph.XAxisRange(0, float64(len(rates))*graphBin.Seconds()), asciigraph.XAxisTickCount(len(t.Changes)*2 + 1),
		asciigraph.XAxisValueFormatter(func(v float64) string { return fmt.Sprintf("%.1f s", v) }),
	}
	if colour {
		options = append(options, asciigraph.SeriesColors(asciigraph.Green))
	}
	lines := []string{"Mbit/s that arrive at " + shaped + ":", "", asciigraph.Plot(rates, options...), ""}
	for _, c := range t.Changes {
		lines = append(lines, fmt.Sprintf("%5.2f s: %s", c.After.Seconds(), describeLimit(c.Limit)))
	}
	return strings.Join(lines, "\n")
}

func describeLimit(rate shaping.Rate) string {
	if rate == 0 {
		return "the annotations are gone: no limit, and off the scale"
	}
	return fmt.Sprintf("%s: %s", shaping.Ingress.BandwidthAnnotation(), rate)
}

// indent moves a text to where the checks are.
func indent(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if strings.TrimSpace(line) != "" {
			b.WriteString("  ")
		}
		b.WriteString(line)
	}
	return b.String()
}
