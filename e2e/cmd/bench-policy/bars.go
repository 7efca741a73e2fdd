package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/bench/verdict"
)

// atMost is a bar whose value must not be more than the limit.
func atMost(name string, value, limit float64, unit string) verdict.Bar {
	return verdict.Bar{Name: name, Value: value, Most: limit, Unit: unit}
}

// judge works out the bars of all that was measured.
func (r *report) judge() {
	for i := range r.Packets {
		r.judgePackets(&r.Packets[i])
	}
	for _, c := range r.Commit {
		where := fmt.Sprintf("%s, %d peers", c.Shape, c.Shape.RemotePods)
		r.Bars = append(r.Bars,
			atMost("remote pod: elements beyond one per set, "+where, float64(c.Excess), 0, "elements"),
			atMost("remote pod: commit, "+where, max(bench.Median(c.Add), bench.Median(c.Delete))/1000, 1, "ms"))
	}
	for _, s := range r.Scratch[:min(1, len(r.Scratch))] {
		r.Bars = append(r.Bars, atMost(fmt.Sprintf("from nothing, %s, %d peers", s.Shape, s.Shape.RemotePods), bench.Median(s.Total)/1000, 1, "s"))
	}
	r.judgeEvents()
	for _, m := range r.Memory {
		r.Bars = append(r.Bars, atMost(fmt.Sprintf("agent's RSS, %d pods, %d local", m.Server.Pods, m.Shape.LocalPods), mib(m.Synced.RSS), 64, "MiB"))
	}
}

func (r *report) judgePackets(p *bench.PacketResult) {
	load := bench.Loads[slices.IndexFunc(bench.Loads[:], func(l bench.Load) bool { return l.String() == p.Load })]
	f, ok := p.Figure(barShape.String())
	if !ok {
		return
	}
	if !load.New() {
		r.Bars = append(r.Bars, atMost("established packet, "+p.Load, f.Ratio, 1.05, "x"))
		return
	}
	r.Bars = append(r.Bars, atMost("new connection, "+p.Load, f.Ratio, 1.15, "x"))
	var policies, perPod []string
	for _, s := range flatShapes(r.Quick) {
		if s.Policies != barShape.Policies {
			policies = append(policies, s.String())
		} else {
			perPod = append(perPod, s.String())
		}
	}
	for _, group := range []struct {
		what   string
		shapes []string
	}{{"10 to 10,000 policies", append(policies, barShape.String())}, {"2 to 100 policies per pod", perPod}} {
		if len(group.shapes) > 1 {
			r.Bars = append(r.Bars, atMost("flat over "+group.what+", "+p.Load, 100*spread(p, group.shapes), 5, "%"))
		}
	}
}

// spread is how much more the dearest of some variants costs than the cheapest.
func spread(p *bench.PacketResult, variants []string) float64 {
	var values []float64
	for _, v := range variants {
		if f, ok := p.Figure(v); ok {
			values = append(values, f.Ratio)
		}
	}
	return slices.Max(values)/slices.Min(values) - 1
}

// judgeEvents has one bar for the events that leave all signatures as they
// are, and one for those that make or end one: these bring hundreds of elements
// into the change, each of which is work.
func (r *report) judgeEvents() {
	if len(r.Events) == 0 {
		return
	}
	var plain, signature float64
	for _, e := range r.Events {
		m := bench.Median(e.Micros) / 1000
		if strings.Contains(e.Name, "local pod moves") || strings.Contains(e.Name, "signature new") || strings.Contains(e.Name, "last pod") {
			signature = max(signature, m)
		} else {
			plain = max(plain, m)
		}
	}
	r.Bars = append(r.Bars,
		atMost("pod event compiled, slowest median", plain, 1, "ms"),
		atMost("... that makes or ends a signature", signature, 1, "ms"))
}
