package metrics

import (
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

var update = flag.Bool("update", false, "write the golden files")

// scene records one of everything.
func scene() *Metrics {
	m := New("v1.2.3")
	m.SetConnected("pods", true)
	m.SetConnected("networkpolicies", false)
	m.SetObjects("pods", 15000)
	m.SetObjects("networkpolicies", 1000)
	m.SetInvalidPolicies(2)
	m.ManifestRefused("syntax")
	m.ReadReclaimErrors(func() uint64 { return 1 })
	m.SetBridges([]Bridge{{Name: "gone"}}, true)
	m.SetBridges([]Bridge{{Name: "cni0", Covered: true}, {Name: "br1"}}, true)
	m.SetUnenforceablePods(3)
	m.SetOtherEngine("calico", true)
	m.SetOtherEngine("weave", false)
	m.SetConditions("PodsNotEnforced", 1)
	m.SetShaping(ShapingStatus{Shaped: 7, Invalid: 1, Unshaped: map[string]int{"HostNetwork": 0, "NoInterface": 2}, Repaired: 1, Failed: 1})
	m.SetShaping(ShapingStatus{Shaped: 8, Invalid: 2, Unshaped: map[string]int{"HostNetwork": 0, "NoInterface": 3}, Repaired: 4, Failed: 1})
	m.ReadBandwidth(func() ([]Bandwidth, error) {
		return []Bandwidth{{
			Namespace: "shop", Pod: "web", Direction: "egress", Bytes: 1_000_000, Packets: 900, Drops: 3, Overlimits: 40,
			BacklogBytes: 3028, LimitBytesPerSecond: 1_250_000,
		}}, nil
	}, false)
	m.SetPools(Pools{
		InForce: map[string]int{"selvage": 2, "calico": 0, "node": 0}, Problems: map[string]int{"overlap": 1, "nearly-full": 0},
		Use: []PoolUse{{"web", "IPv4", 256, 250}, {"web", "IPv6", 1 << 64, 250}, {"db", "IPv4", 65536, 0}}, Outside: 4,
	})
	m.SetBaseMasquerade([]Masquerader{{"gone", "IPv4"}, {"flannel", "IPv4"}})
	m.SetBaseMasquerade([]Masquerader{{"flannel", "IPv4"}, {"flannel", "IPv6"}})
	m.Synced(Sync{Failed: ReasonUnknown, Duration: 3 * time.Millisecond, Batches: 1, Messages: 10})
	m.Synced(Sync{Failed: ReasonRefused, Duration: 30 * time.Millisecond})
	m.Synced(Sync{
		Duration:   700 * time.Microsecond,
		Latencies:  []time.Duration{90 * time.Microsecond, time.Millisecond, 20 * time.Second},
		Batches:    3,
		Messages:   41,
		Generation: 7,
		Tightened:  true,
		Repaired:   5,
		At:         time.UnixMilli(1_800_000_000_500),
	})
	return m
}

// TestGolden compares what Prometheus gets to see, but for the runtime's own
// numbers, with testdata/metrics.txt. -update writes it.
func TestGolden(t *testing.T) {
	m := scene()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	var got strings.Builder
	for line := range strings.Lines(w.Body.String()) {
		name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE ")
		if strings.HasPrefix(name, "selvage_") && !strings.HasPrefix(name, "selvage_build_info{") {
			got.WriteString(line)
		}
	}
	golden := filepath.Join("testdata", "metrics.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("metrics differ from %s (-want +got):\n%s", golden, diff)
	}
	if !strings.Contains(w.Body.String(), `selvage_build_info{goversion="go`) {
		t.Error("no build info")
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes", "promhttp_metric_handler_requests_total"} {
		if !strings.Contains(w.Body.String(), "\n"+name) {
			t.Errorf("no %s", name)
		}
	}
}

// TestLint applies Prometheus' own rules for names and help texts.
func TestLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(scene().Gatherer())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestInSync follows the gauge that an alert would watch.
func TestInSync(t *testing.T) {
	m := New("")
	for _, step := range []struct {
		name string
		do   func()
		want float64
	}{
		{"at start", func() {}, 0},
		{"after a sync", func() { m.Synced(Sync{}) }, 1},
		{"after a failure", func() { m.Synced(Sync{Failed: ReasonOther}) }, 0},
		{"after the next sync", func() { m.Synced(Sync{}) }, 1},
	} {
		step.do()
		if got := testutil.ToFloat64(m.inSync); got != step.want {
			t.Errorf("%s: in sync %v, want %v", step.name, got, step.want)
		}
	}
}
