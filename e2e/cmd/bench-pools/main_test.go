package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/bench/pools"
)

// cost is a result in which identical worlds differ by up to 2 %.
func cost(way pools.Way, load bench.Load, baseline string, one, many, oneToFlannel float64) pools.CostResult {
	return pools.CostResult{
		Family: "ip", Way: way, Load: load.String(), New: load.New(),
		Figures: []bench.Figure{
			{Variant: baseline, Ratio: 1, Spread: 0.01, Replicas: 4}, {Variant: pools.Flannel, Ratio: 1.1, Spread: 0.02},
			{Variant: "1 pool, 1 node", Ratio: one}, {Variant: "1000 pools, 1 node", Ratio: many}, {Variant: "mine", Ratio: 9},
		},
		ToFlannel: map[string]float64{"1 pool, 1 node": oneToFlannel, "1000 pools, 1 node": 0.9, "mine": 9},
	}
}

func TestBars(t *testing.T) {
	step := func(own, elements, others, batches int, commit float64) pools.Step {
		return pools.Step{Name: "pool added", Own: own, Elements: elements, Others: others, Batches: batches, Commit: []float64{commit}, Compile: []float64{1}}
	}
	r := report{
		Clusters: []pools.Cluster{{Pools: 1, Nodes: 1}, {Pools: 1000, Nodes: 1}},
		Costs: []pools.CostResult{
			cost(pools.Leaving, bench.UDPConnect, pools.Plain, 0.99, 1.021, 1.019),
			cost(pools.Leaving, bench.TCPConnect, pools.Plain, 1.019, 1, 1.021),
			cost(pools.Leaving, bench.UDPEstablished, pools.Plain, 1.021, 1, 2),
			cost(pools.Inside, bench.UDPConnect, pools.Idle, 1.049, 1.02, 2),
			cost(pools.Inside, bench.TCPEstablished, pools.Idle, 1.019, 1, 2),
		},
		Changes: []pools.ChangeResult{
			{Cluster: pools.Cluster{Pools: 10, Nodes: 1}, Steps: []pools.Step{step(4, 4, 0, 1, 900), step(2, 2, 0, 1, 10)}},
			{Cluster: pools.Cluster{Pools: 1000, Nodes: 1}, Steps: []pools.Step{step(4, 4, 0, 2, 1100), step(2, 3, 1, 1, 10)}},
			{Cluster: pools.Cluster{Pools: 2, Nodes: 1}, Steps: []pools.Step{step(4, 3, 0, 1, 1)}},
		},
	}
	r.judge()
	want := map[string]bool{
		"new connection, leaving, ip udp-connect, over one plain rule":    false,
		"new connection, leaving, ip udp-connect, over flannel's rules":   true,
		"new connection, leaving, ip tcp-connect, over one plain rule":    true,
		"new connection, leaving, ip tcp-connect, over flannel's rules":   false,
		"established, leaving, ip udp-established, over one plain rule":   false,
		"new connection, inside, ip udp-connect, over nat without rules":  true,
		"established, inside, ip tcp-established, over nat without rules": true,
		"a pool's change: transactions, 10 pools, 1 node":                 true,
		"a pool's change: more than its own elements, 10 pools, 1 node":   true,
		"a pool's change: commit, 10 pools, 1 node":                       true,
		"a pool's change: transactions, 1000 pools, 1 node":               false,
		"a pool's change: more than its own elements, 1000 pools, 1 node": false,
		"a pool's change: commit, 1000 pools, 1 node":                     false,
		"a pool's change: transactions, 2 pools, 1 node":                  true,
		"a pool's change: more than its own elements, 2 pools, 1 node":    false,
		"a pool's change: commit, 2 pools, 1 node":                        true,
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
	if got := text.String(); !strings.HasSuffix(got, "\nbench-pools: 9 of 16 bars held\n") || !strings.Contains(got, "identical worlds differ by up to 2.0%") {
		t.Errorf("the table is\n%s", got)
	}
	var raw bytes.Buffer
	if err := r.writeJSON(&raw); err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(raw.Bytes(), &back); err != nil || len(back.Bars) != len(r.Bars) || back.Changes[0].Steps[0].Own != 4 {
		t.Errorf("the JSON does not come back: %v", err)
	}
}

func TestWhatWasNotMeasuredHasNoBar(t *testing.T) {
	var r report
	if r.judge(); len(r.Bars) != 0 {
		t.Errorf("bars of nothing: %v", r.Bars)
	}
}

func TestOptions(t *testing.T) {
	rules := filepath.Join(t.TempDir(), "rules.nft")
	if err := os.WriteFile(rules, []byte("table ip x {}"), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := parseOptions([]string{"-quick", "-strict", "-o", "json", "-only", "packets", "-nft", "mine=" + rules, "-length", "4s"})
	if err != nil {
		t.Fatal(err)
	}
	if !o.quick || !o.strict || !o.json || len(o.only) != 1 || o.extra["mine"] != "table ip x {}" || len(o.families) != 1 || o.length != 4*time.Second || o.replicas != 2 {
		t.Errorf("options: %+v", o)
	}
	if o, err = parseOptions(nil); err != nil || len(o.families) != 2 || o.replicas != 4 {
		t.Errorf("defaults: %+v (%v)", o, err)
	}
	for _, args := range [][]string{{"-only", "everything"}, {"-o", "xml"}, {"x"}, {"-nft", "x"}, {"-nft", "x=/does/not/exist"}} {
		if _, err := parseOptions(args); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
