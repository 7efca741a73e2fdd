package main

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/bench/verdict"
)

// TestMain lets the test binary be the API server, as the program is.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == serverCommand {
		os.Exit(exitCode(serve(os.Args[2], os.Stdin, os.Stdout)))
	}
	os.Exit(m.Run())
}

func packets(load string, ratios map[string]float64) bench.PacketResult {
	r := bench.PacketResult{Load: load}
	for name, ratio := range ratios {
		r.Figures = append(r.Figures, bench.Figure{Variant: name, Ratio: ratio, Median: 1000 * ratio})
	}
	return r
}

func TestBars(t *testing.T) {
	shapes := flatShapes(false)
	all := map[string]float64{bench.NoRules: 0.9, bench.ConntrackOnly: 1}
	for _, s := range shapes {
		all[s.String()] = 1.10
	}
	all[shapes[0].String()] = 1.06 // 10 policies: flat within 4 %
	all[shapes[3].String()] = 1.20 // 100 per pod: not flat
	r := report{
		Packets: []bench.PacketResult{
			packets("udp-connect", all), packets("udp-established", map[string]float64{barShape.String(): 1.06, bench.ConntrackOnly: 1}),
		},
		Commit:     []bench.CommitResult{{Shape: bigShape, Want: 1, Messages: 1, Add: []float64{50, 60, 70}, Delete: []float64{990}}},
		Scratch:    []bench.ScratchResult{{Shape: bigShape, Total: []float64{1100, 900, 1000.5}}, {Shape: sharedShape, Total: []float64{9000}}},
		EventShape: eventShape,
		Events: []bench.Times{
			{Name: "remote pod added", Micros: []float64{100}}, {Name: "local pod added, signature new", Micros: []float64{1500}},
		},
		Memory: []bench.MemoryResult{{Shape: memoryShape, Server: bench.Served{Pods: 15000}, Synced: bench.Memory{RSS: 64 * 1024}}},
	}
	r.judge()
	want := map[string]bool{
		"new connection, udp-connect":                                            true,
		"flat over 10 to 10,000 policies, udp-connect":                           true,
		"flat over 2 to 100 policies per pod, udp-connect":                       false,
		"established packet, udp-established":                                    false,
		"remote pod: elements beyond one per set, 250/1000/20/100, 100000 peers": true,
		"remote pod: commit, 250/1000/20/100, 100000 peers":                      true,
		"from nothing, 250/1000/20/100, 100000 peers":                            false,
		"pod event compiled, slowest median":                                     true,
		"... that makes or ends a signature":                                     false,
		"agent's RSS, 15000 pods, 110 local":                                     true,
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
	if got := text.String(); !strings.HasSuffix(got, "\nbench-policy: 6 of 10 bars held\n") || strings.Count(got, "NOT HELD") != 4 {
		t.Errorf("the table is\n%s", got)
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

func TestWhatWasNotMeasuredHoldsNoBar(t *testing.T) {
	if b := (verdict.Bar{Value: math.NaN(), Most: 1}); b.Holds() {
		t.Error("a bar without a value holds")
	}
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
	o, err := parseOptions([]string{"-quick", "-strict", "-o", "json", "-only", "packets,memory", "-nft", "mine=" + rules, "-length", "2s"})
	if err != nil {
		t.Fatal(err)
	}
	if !o.quick || !o.strict || !o.json || len(o.only) != 2 || o.extra["mine"] != "table ip x {}" || o.length != 2*time.Second || o.replicas != 2 {
		t.Errorf("options: %+v", o)
	}
	for _, args := range [][]string{{"-only", "everything"}, {"-o", "xml"}, {"x"}, {"-nft", "x"}, {"-nft", "x=/does/not/exist"}} {
		if _, err := parseOptions(args); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}

// TestMemory runs the real agent against the stand-in.
func TestMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		const why = "network namespaces need root"
		if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
			t.Fatal(why)
		}
		t.Skip("SKIPPED, NOT PASSED: " + why)
	}
	agent := filepath.Join(t.TempDir(), "selvage")
	build := exec.Command("go", "build", "-o", agent, "./cmd/selvage")
	build.Dir = "../../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, err := bench.MeasureMemory(t.Context(), bench.MemoryOptions{
		Shape: bench.Shape{LocalPods: 5, RemotePods: 100, Policies: 10, PerPod: 2, Peers: 10},
		Agent: agent, Server: []string{self, serverCommand},
		Churn: 1200 * time.Millisecond, Rate: 50, Settle: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Server.Pods != 105 || r.Server.PodBytes < 4000 || r.Events == 0 || len(r.During) == 0 {
		t.Errorf("the server: %+v, %d events, %d readings", r.Server, r.Events, len(r.During))
	}
	// nsenter, were it measured in place of the agent, would be smaller.
	for name, m := range map[string]bench.Memory{"synced": r.Synced, "churned": r.Churned} {
		if m.RSS < 10*1024 || m.Peak < m.RSS || m.Anon <= 0 || m.Anon >= m.RSS {
			t.Errorf("%s: %+v", name, m)
		}
	}
}
