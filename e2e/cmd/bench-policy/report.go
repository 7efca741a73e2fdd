package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/bench/verdict"
)

// report is all that was measured.
type report struct {
	Start   time.Time       `json:"start"`
	Seconds float64         `json:"seconds"`
	Machine verdict.Machine `json:"machine"`
	Quick   bool            `json:"quick"`
	Bars    []verdict.Bar   `json:"bars"`

	EventShape bench.Shape           `json:"eventShape"`
	Events     []bench.Times         `json:"events,omitempty"`
	Scratch    []bench.ScratchResult `json:"scratch,omitempty"`
	Commit     []bench.CommitResult  `json:"commit,omitempty"`
	Memory     []bench.MemoryResult  `json:"memory,omitempty"`
	Packets    []bench.PacketResult  `json:"packets,omitempty"`
}

func (r *report) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("write the figures: %w", err)
	}
	return nil
}

func ratio(f float64) string { return fmt.Sprintf("%.3f", f) }

func percent(f float64) string { return fmt.Sprintf("%.1f%%", 100*f) }

func (r *report) writeTable(w io.Writer) {
	fmt.Fprintf(w, "\n%s, kernel %s, %d x %s, load %s before, %s, took %.0f s\n",
		r.Start.Format(time.DateTime+" UTC"), r.Machine.Kernel, r.Machine.CPUs, r.Machine.CPU, r.Machine.Load, r.Machine.Go, r.Seconds)
	fmt.Fprintln(w, "clusters are named local pods/policies/policies per pod/peers per policy")
	for i := range r.Packets {
		writePackets(w, &r.Packets[i])
	}
	r.writeCommit(w)
	r.writeScratch(w)
	r.writeEvents(w)
	r.writeMemory(w)
	fmt.Fprintln(w)
	verdict.WriteBars(w, "bench-policy", r.Bars)
}

func writePackets(w io.Writer, p *bench.PacketResult) {
	base, _ := p.Figure(bench.ConntrackOnly)
	fmt.Fprintf(w, "\n%s: ns per operation (%d worlds each, %d rounds); identical worlds differ by %s\n",
		p.Load, base.Replicas, base.Rounds, percent(base.Spread))
	t := verdict.NewTable(w)
	t.Row("variant", "p5", "over ct", "ratio p5", "median", "over ct", "ratio", "spread")
	for _, f := range p.Figures {
		t.Row(f.Variant, f.P5, f.P5-base.P5, ratio(f.RatioP5), f.Median, f.Median-base.Median, ratio(f.Ratio), percent(f.Spread))
	}
	t.Flush()
}

func (r *report) writeCommit(w io.Writer) {
	if len(r.Commit) == 0 {
		return
	}
	fmt.Fprintln(w, "\none remote pod comes and goes: µs to encode and commit")
	t := verdict.NewTable(w)
	t.Row("cluster", "elements", "sets with it", "excess", "messages", "add p50", "p99", "delete p50", "p99", "address again p50", "messages")
	for _, c := range r.Commit {
		t.Row(fmt.Sprintf("%s, %d remote pods", c.Shape, c.Shape.RemotePods), c.Elements, c.Want, c.Excess, c.Messages,
			bench.Median(c.Add), bench.Quantile(c.Add, 0.99), bench.Median(c.Delete), bench.Quantile(c.Delete, 0.99), bench.Median(c.Again), c.AgainMessages)
	}
	t.Flush()
}

func (r *report) writeScratch(w io.Writer) {
	if len(r.Scratch) == 0 {
		return
	}
	fmt.Fprintln(w, "\nfrom nothing: ms (medians)")
	t := verdict.NewTable(w)
	t.Row("cluster", "elements", "chains", "messages", "batches", "compile", "apply", "(encode)", "total", "worst")
	for _, s := range r.Scratch {
		t.Row(fmt.Sprintf("%s, %d remote pods", s.Shape, s.Shape.RemotePods), s.Elements, s.Chains, s.Messages, s.Batches,
			bench.Median(s.Compile), bench.Median(s.Apply), bench.Median(s.Encode), bench.Median(s.Total), bench.Quantile(s.Total, 1))
	}
	t.Flush()
}

func (r *report) writeEvents(w io.Writer) {
	if len(r.Events) == 0 {
		return
	}
	fmt.Fprintf(w, "\none pod event compiled: µs, in a cluster of %s with %d remote pods\n", r.EventShape, r.EventShape.RemotePods)
	t := verdict.NewTable(w)
	t.Row("event", "p50", "p99", "max", "elements", "chains", "times")
	for _, e := range r.Events {
		t.Row(e.Name, bench.Median(e.Micros), bench.Quantile(e.Micros, 0.99), bench.Quantile(e.Micros, 1), e.Elements, e.Chains, len(e.Micros))
	}
	t.Flush()
}

func (r *report) writeMemory(w io.Writer) {
	if len(r.Memory) == 0 {
		return
	}
	fmt.Fprintln(w, "\nthe agent's memory: MiB")
	t := verdict.NewTable(w)
	t.Row("cluster", "pods", "bytes each", "synced after", "RSS synced", "of it anon", "peak", "RSS in churn", "after churn", "peak", "events")
	for _, m := range r.Memory {
		during := make([]float64, 0, len(m.During))
		for _, v := range m.During {
			during = append(during, mib(v))
		}
		t.Row(m.Shape.String(), m.Server.Pods, m.Server.PodBytes, fmt.Sprintf("%.1f s", m.SyncSeconds),
			mib(m.Synced.RSS), mib(m.Synced.Anon), mib(m.Synced.Peak), bench.Median(during), mib(m.Churned.RSS), mib(m.Churned.Peak), m.Events)
	}
	t.Flush()
}

func mib(kib int) float64 { return float64(kib) / 1024 }
