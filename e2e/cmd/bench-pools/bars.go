package main

import (
	"fmt"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/bench/pools"
	"github.com/selvage-net/selvage/e2e/bench/verdict"
)

// judge works out the bars of all that was measured.
func (r *report) judge() {
	for i := range r.Costs {
		r.judgeCost(&r.Costs[i])
	}
	for _, c := range r.Changes {
		r.judgeChange(c)
	}
}

// mostInside is how much more than with idle nat the first packet of a connection may
// cost that stays inside.
const mostInside = 1.05

// judgeCost has bars for the cluster that costs most. The product may cost no more than
// what it is compared with, but for what identical worlds of the same run differ by.
func (r *report) judgeCost(c *pools.CostResult) {
	var worst, toFlannel float64
	for _, cluster := range r.Clusters {
		if f, ok := c.Figure(cluster.String()); ok {
			worst = max(worst, f.Ratio)
			toFlannel = max(toFlannel, c.ToFlannel[cluster.String()])
		}
	}
	what := map[bool]string{true: "new connection", false: "established"}[c.New]
	name := fmt.Sprintf("%s, %s, %s %s", what, c.Way, c.Family, c.Load)
	most := 1 + c.Noise()
	bar := verdict.Bar{Name: fmt.Sprintf("%s, over %s", name, c.Way.Baseline()), Value: worst, Most: most, Unit: "x"}
	if c.New && c.Way == pools.Inside {
		bar.Most = mostInside
	}
	r.Bars = append(r.Bars, bar)
	if c.New && c.Way == pools.Leaving {
		r.Bars = append(r.Bars, verdict.Bar{Name: fmt.Sprintf("%s, over %s", name, pools.Flannel), Value: toFlannel, Most: most, Unit: "x"})
	}
}

// judgeChange has bars for the step that was worst.
func (r *report) judgeChange(c pools.ChangeResult) {
	var batches, excess, commit float64
	for _, s := range c.Steps {
		batches = max(batches, float64(s.Batches))
		excess = max(excess, float64(s.Others), float64(s.Elements-s.Own), float64(s.Own-s.Elements))
		commit = max(commit, bench.Median(s.Commit)/1000)
	}
	r.Bars = append(r.Bars,
		verdict.Bar{Name: fmt.Sprintf("a pool's change: transactions, %s", c.Cluster), Value: batches, Most: 1, Unit: "transactions"},
		verdict.Bar{Name: fmt.Sprintf("a pool's change: more than its own elements, %s", c.Cluster), Value: excess, Unit: "elements"},
		verdict.Bar{Name: fmt.Sprintf("a pool's change: commit, %s", c.Cluster), Value: commit, Most: 1, Unit: "ms"})
}
