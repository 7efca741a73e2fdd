package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/bench/shape"
	"github.com/selvage-net/selvage/shaping"
)

func figure(variant, direction string, rate shaping.Rate, goodput, first, p95 float64) shape.RateFigure {
	return shape.RateFigure{Runs: 1, RateRun: shape.RateRun{
		Variant: variant, Direction: direction, Rate: rate, Seconds: 3, Goodput: goodput, First: first, P95: p95,
	}}
}

func TestBars(t *testing.T) {
	r := report{
		Rates: []shape.RateFigure{
			figure(shape.Unshaped, "ingress", 0, 4e9, 4e9, 0),
			figure(shape.Plugin, "ingress", 1e6, 90e6, 90e6, 900),
			figure(shape.Selvage, "ingress", 1e6, 0.99e6, 1.2e6, 90),
			figure(shape.Selvage, "ingress", 10e6, 9.99e6, 10e6, -1),
			figure(shape.Selvage, "ingress", 5e9, 3.9e9, 3.9e9, 5),
			figure(shape.Unshaped, "egress", 0, 4e9, 4e9, 0),
			figure(shape.Selvage, "egress", 100e6, 94e6, 100e6, 29),
			figure(shape.Selvage, "egress", 1e9, 0.91e9, 1e9, 31),
		},
		Costs: []shape.CostResult{
			{Direction: "ingress", Figures: []bench.Figure{{Variant: shape.Unshaped, Ratio: 1}, {Variant: shape.Selvage, Ratio: 1.25}}},
			{Direction: "egress", Figures: []bench.Figure{{Variant: shape.Unshaped, Ratio: 1}, {Variant: shape.Selvage, Ratio: 1.25}}},
		},
		Program: &shape.ProgramResult{Pods: 250, New: []float64{1, 1.9, 9}, Change: []float64{99}, Do: []float64{98}, Read: []float64{500}},
	}
	r.judge()
	want := map[string]bool{
		"goodput, 1M to the pod":                        true,
		"first half second, 1M to the pod":              false,
		"goodput, 10M to the pod":                       true,
		"first half second, 10M to the pod":             true,
		"round trip under load, p95, 10M to the pod":    false, // lost
		"goodput, 5G to the pod (of unshaped)":          true,
		"first half second, 5G to the pod":              true,
		"round trip under load, p95, 5G to the pod":     true,
		"goodput, 100M from the pod":                    false,
		"first half second, 100M from the pod":          true,
		"round trip under load, p95, 100M from the pod": true,
		"goodput, 1G from the pod":                      true,
		"first half second, 1G from the pod":            true,
		"round trip under load, p95, 1G from the pod":   false,
		"packet that never waits, to the pod":           false,
		"packet that never waits, from the pod":         true,
		"one pod more than 250 shaped":                  true,
		"a new rate":                                    true,
	}
	for _, b := range r.Bars {
		holds, ok := want[b.Name]
		if !ok {
			t.Errorf("unexpected bar %q", b.Name)
		} else if b.Holds() != holds {
			t.Errorf("%s: %s of %s: %s", b.Name, b.Measured(), b.Bound(), b.Verdict())
		}
		delete(want, b.Name)
	}
	for name := range want {
		t.Errorf("there is no bar %q", name)
	}

	var text bytes.Buffer
	r.writeTable(&text)
	for _, part := range []string{
		"\nbench-shaping: 13 of 18 bars held\n", "The baseline is the CNI's bandwidth plugin with its own parameters",
		"This machine does 4000 Mbit/s without any shaping: 5G is judged by that.",
	} {
		if !strings.Contains(text.String(), part) {
			t.Errorf("%q is not in\n%s", part, text.String())
		}
	}
	var raw bytes.Buffer
	if err := r.writeJSON(&raw); err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(raw.Bytes(), &back); err != nil || len(back.Bars) != len(r.Bars) {
		t.Errorf("the JSON does not come back: %v", err)
	}
}

func TestWithFQCodelTheWaitIsShorter(t *testing.T) {
	r := report{FQCodel: true, Rates: []shape.RateFigure{figure(shape.Selvage, "ingress", 10e6, 10e6, 10e6, 11)}}
	r.judge()
	if len(r.Bars) != 3 || r.Bars[2].Most != 10 || r.Bars[2].Holds() {
		t.Errorf("%+v", r.Bars)
	}
}

func TestWhatWasNotMeasuredHasNoBar(t *testing.T) {
	var r report
	if r.judge(); len(r.Bars) != 0 {
		t.Errorf("bars of nothing: %v", r.Bars)
	}
}

func TestOptions(t *testing.T) {
	o, err := parseOptions([]string{"-quick", "-strict", "-o", "json", "-only", "rate,cost", "-rates", "1M,1500k", "-length", "4s"})
	if err != nil {
		t.Fatal(err)
	}
	if !o.quick || !o.strict || !o.json || len(o.only) != 2 || len(o.rates) != 2 || o.rates[1] != 1_500_000 || o.length != 4*time.Second || o.repeat != 1 {
		t.Errorf("options: %+v", o)
	}
	for _, args := range [][]string{{"-only", "everything"}, {"-o", "xml"}, {"x"}, {"-rates", "fast"}, {"-length", "100ms"}} {
		if _, err := parseOptions(args); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
