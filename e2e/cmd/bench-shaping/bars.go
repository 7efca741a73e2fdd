package main

import (
	"fmt"
	"slices"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/bench/shape"
	"github.com/selvage-net/selvage/e2e/bench/verdict"
	"github.com/selvage-net/selvage/shaping"
)

// judge works out the bars of all that was measured.
func (r *report) judge() {
	for _, f := range r.Rates {
		if f.Variant == shape.Selvage {
			r.judgeRate(f)
		}
	}
	for _, c := range r.Costs {
		most := map[string]float64{"ingress": 1.2, "egress": 1.5}[c.Direction]
		for _, f := range c.Figures {
			if f.Variant == shape.Selvage {
				r.Bars = append(r.Bars, verdict.Bar{Name: "packet that never waits, " + wayOf(c.Direction), Value: f.Ratio, Most: most, Unit: "x"})
			}
		}
	}
	if p := r.Program; p != nil {
		r.Bars = append(r.Bars,
			verdict.Bar{Name: fmt.Sprintf("one pod more than %d shaped", p.Pods), Value: bench.Median(p.New), Most: 2, Unit: "ms"},
			verdict.Bar{Name: "a new rate", Value: bench.Median(p.Change), Most: 100, Unit: "µs"})
	}
}

// judgeRate has a bar for what the flow gets, one for its beginning, and one for how
// long others wait.
func (r *report) judgeRate(f shape.RateFigure) {
	where := fmt.Sprintf("%s %s", f.Rate, wayOf(f.Direction))
	nominal, least, most := float64(f.Rate), 95.0, 100*(1+f.Allowance())
	name := "goodput, " + where
	if f.Direction == "egress" && f.Rate >= 1_000_000_000 {
		least = 90
	}
	if u := r.unshaped(f.Direction); u < nominal {
		nominal = u
		name += " (of unshaped)"
	}
	r.Bars = append(r.Bars,
		verdict.Bar{Name: name, Value: 100 * f.Goodput / nominal, Least: least, Most: most, Unit: "%"},
		verdict.Bar{Name: "first half second, " + where, Value: f.First / float64(f.Rate), Most: 1.15, Unit: "x"})
	if f.Rate >= 10_000_000 {
		longest := pick(r.FQCodel, 10.0, 30)
		wait := f.P95
		if wait < 0 { // lost
			wait = 1000
		}
		r.Bars = append(r.Bars, verdict.Bar{Name: "round trip under load, p95, " + where, Value: wait, Most: longest, Unit: "ms"})
	}
}

// unshaped is what the machine does by itself, in bits per second.
func (r *report) unshaped(direction string) float64 {
	i := slices.IndexFunc(r.Rates, func(f shape.RateFigure) bool { return f.Variant == shape.Unshaped && f.Direction == direction })
	if i < 0 {
		return float64(shaping.MaxRate)
	}
	return r.Rates[i].Goodput
}

// wayOf says a direction in words.
func wayOf(direction string) string {
	if direction == shaping.Egress.String() {
		return "from the pod"
	}
	return "to the pod"
}
