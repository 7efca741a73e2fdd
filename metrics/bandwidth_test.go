package metrics

import (
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestBandwidthByNamespace adds up what pods have passed, and goes on from there when
// one of them ends, or its queue is made anew.
func TestBandwidthByNamespace(t *testing.T) {
	var now []Bandwidth
	var broken error
	c := newBandwidthCollector(func() ([]Bandwidth, error) { return now, broken }, false)
	is := func(name, want string) {
		t.Helper()
		if err := testutil.CollectAndCompare(c, strings.NewReader(want), "selvage_bandwidth_bytes_total", "selvage_bandwidth_backlog_bytes",
			"selvage_bandwidth_limit_bytes_per_second", "selvage_bandwidth_drops_total", "selvage_bandwidth_scrape_success"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	page := func(bytes, backlog, drops, limit string) string {
		return `# HELP selvage_bandwidth_backlog_bytes Bytes that wait in the queues of shaped pods.
# TYPE selvage_bandwidth_backlog_bytes gauge
selvage_bandwidth_backlog_bytes{direction="ingress",namespace="shop"} ` + backlog + `
# HELP selvage_bandwidth_bytes_total Bytes, in whole frames, that shaped pods were sent (ingress) or have sent (egress).
# TYPE selvage_bandwidth_bytes_total counter
selvage_bandwidth_bytes_total{direction="ingress",namespace="shop"} ` + bytes + `
# HELP selvage_bandwidth_drops_total Packets of shaped pods that were dropped since the queue was full.
# TYPE selvage_bandwidth_drops_total counter
selvage_bandwidth_drops_total{direction="ingress",namespace="shop"} ` + drops + `
# HELP selvage_bandwidth_limit_bytes_per_second What shaped pods are limited to, added up.
# TYPE selvage_bandwidth_limit_bytes_per_second gauge
selvage_bandwidth_limit_bytes_per_second{direction="ingress",namespace="shop"} ` + limit + `
# HELP selvage_bandwidth_scrape_success 1 if the counters of bandwidth could be read from the kernel.
# TYPE selvage_bandwidth_scrape_success gauge
selvage_bandwidth_scrape_success 1
`
	}
	pod := func(name string, bytes, drops uint64, backlog float64) Bandwidth {
		return Bandwidth{Namespace: "shop", Pod: name, Direction: "ingress", Bytes: bytes, Packets: bytes / 100, Drops: drops, BacklogBytes: backlog, LimitBytesPerSecond: 1000}
	}
	now = []Bandwidth{pod("a", 1000, 1, 5), pod("b", 500, 4294967290, 0)}
	is("two pods", page("1500", "5", "4.294967291e+09", "2000"))
	now = []Bandwidth{pod("a", 1200, 1, 0), pod("b", 600, 4, 7)}
	is("more, and a counter of 32 bits went round", page("1800", "7", "4.294967301e+09", "2000"))
	now = []Bandwidth{pod("a", 1300, 1, 0)}
	is("one has ended", page("1900", "0", "4.294967301e+09", "1000"))
	now = []Bandwidth{pod("a", 100, 0, 0)}
	is("its queue is a new one", page("2000", "0", "4.294967301e+09", "1000"))
	now = []Bandwidth{pod("a", 200, 2, 0)}
	is("more", page("2100", "0", "4.294967303e+09", "1000"))
	now = []Bandwidth{pod("a", 300, 1, 0)}
	is("a new one again, and it has sent more than the one before", page("2200", "0", "4.294967304e+09", "1000"))
	broken = errors.New("no")
	is("the kernel does not answer", `# HELP selvage_bandwidth_scrape_success 1 if the counters of bandwidth could be read from the kernel.
# TYPE selvage_bandwidth_scrape_success gauge
selvage_bandwidth_scrape_success 0
`)
	now, broken = nil, nil
	if n := testutil.CollectAndCount(c); n != 1 {
		t.Errorf("%d series without pods", n)
	}
}

// TestBandwidthByPod has a series for each pod, as long as it is there.
func TestBandwidthByPod(t *testing.T) {
	now := []Bandwidth{{Namespace: "shop", Pod: "a", Direction: "ingress", Packets: 3}, {Namespace: "shop", Pod: "b", Direction: "ingress", Packets: 4}}
	c := newBandwidthCollector(func() ([]Bandwidth, error) { return now, nil }, true)
	want := `# HELP selvage_bandwidth_packets_total Packets that shaped pods were sent (ingress) or have sent (egress).
# TYPE selvage_bandwidth_packets_total counter
selvage_bandwidth_packets_total{direction="ingress",namespace="shop",pod="a"} 3
`
	b := `selvage_bandwidth_packets_total{direction="ingress",namespace="shop",pod="b"} 4
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want+b), "selvage_bandwidth_packets_total"); err != nil {
		t.Error(err)
	}
	now = now[:1]
	if err := testutil.CollectAndCompare(c, strings.NewReader(want), "selvage_bandwidth_packets_total"); err != nil {
		t.Error(err)
	}
}
