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
	m.SourceFailed("pods", "unanswered")
	m.SourceFailed("pods", "unanswered")
	m.SourceFailed("networkpolicies", "forbidden")
	m.ReadLastContact(func() time.Time { return time.UnixMilli(1_800_000_000_250) })
	m.ReadReclaimErrors(func() uint64 { return 1 })
	m.SetRuleset(Ruleset{Signatures: 12, Chains: 60, Rules: 180, Sets: 90, Elements: 4000, Counters: 70})
	m.ReadDrops(func() uint64 { return 90 }, func() uint64 { return 10 })
	m.ReadPolicies(func() (PolicyCounts, error) {
		return PolicyCounts{
			Policies: []PolicyCount{
				{"shop", "db", "ingress", 700, 4}, {"shop", "web", "egress", 30, 0}, {"shop", "web", "ingress", 5000, 17},
			},
			Denied: []DeniedCount{{"", "", 2}, {"shop", "egress", 0}, {"shop", "ingress", 21}},
		}, nil
	})
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
		Latencies:  []Latency{{"pods", 90 * time.Microsecond}, {"networkpolicies", time.Millisecond}, {"pods", 20 * time.Second}},
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

// TestRetries counts a sync as one more try if the one before failed, however it ends.
func TestRetries(t *testing.T) {
	m := New("")
	for i, step := range []struct {
		failed Reason
		want   float64
	}{{ReasonRefused, 0}, {ReasonUnknown, 1}, {"", 2}, {"", 2}, {ReasonOther, 2}, {"", 3}} {
		m.Synced(Sync{Failed: step.failed})
		if got := testutil.ToFloat64(m.sync.retries); got != step.want {
			t.Errorf("step %d: %v tried again, want %v", i, got, step.want)
		}
	}
}

// TestNoContact shows 0 and not the year 1 as long as a source was never heard of.
func TestNoContact(t *testing.T) {
	m := New("")
	m.ReadLastContact(func() time.Time { return time.Time{} })
	if err := testutil.GatherAndCompare(m.Gatherer(), strings.NewReader(`
		# HELP selvage_source_last_contact_timestamp_seconds When the API server was last heard of, in Unix time; 0 if it never was. While it answers that is about once a minute at least.
		# TYPE selvage_source_last_contact_timestamp_seconds gauge
		selvage_source_last_contact_timestamp_seconds 0
	`), "selvage_source_last_contact_timestamp_seconds"); err != nil {
		t.Error(err)
	}
}

// TestHostileNames shows names that no label can have, or that look like the end of
// one, without losing the other metrics.
func TestHostileNames(t *testing.T) {
	const name = "a\xff\"\n} 1\nselvage_in_sync 7"
	m := New("")
	m.SetBridges([]Bridge{{Name: name}}, false)
	m.SetBridges([]Bridge{{Name: name, Covered: true}}, false)
	m.SetPools(Pools{Use: []PoolUse{{Pool: name, Family: "IPv4"}}})
	m.ReadBandwidth(func() ([]Bandwidth, error) { return []Bandwidth{{Namespace: name, Pod: name}}, nil }, true)
	m.ReadPolicies(func() (PolicyCounts, error) {
		return PolicyCounts{
			Policies: []PolicyCount{{name, name, "ingress", 1, 1}, {others, others, "ingress", 1, 1}},
			Denied:   []DeniedCount{{name, "ingress", 1}},
		}, nil
	})
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	if !strings.Contains(w.Body.String(), "\nselvage_in_sync 0\n") || strings.Contains(w.Body.String(), "\nselvage_in_sync 7") {
		t.Errorf("a name has written a line:\n%s", w.Body)
	}
	if n := testutil.CollectAndCount(m.bridges); n != 1 {
		t.Errorf("%d series of one bridge", n)
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
		if got := testutil.ToFloat64(m.sync.inSync); got != step.want {
			t.Errorf("%s: in sync %v, want %v", step.name, got, step.want)
		}
	}
}
