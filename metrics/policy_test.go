package metrics

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestPolicies reads once for all series of a scrape, and shows none if that fails.
func TestPolicies(t *testing.T) {
	reads := 0
	var broken error
	c := newPolicyCollector(func() (PolicyCounts, error) {
		reads++
		return PolicyCounts{
			Policies: []PolicyCount{{"shop", "web", "ingress", 5, 2}, {"shop", "web", "ingress", 1, 1}, {"shop", "db", "egress", 0, 0}},
			Denied:   []DeniedCount{{"shop", "ingress", 3}, {"", "", 4}},
		}, broken
	})
	for name, want := range map[string]int{
		"selvage_policy_allowed_connections_total": 2, "selvage_policy_denied_packets_total": 2,
		"selvage_denied_packets_total": 2, "selvage_policy_scrape_success": 1,
	} {
		if n := testutil.CollectAndCount(c, name); n != want {
			t.Errorf("%d series of %s, want %d", n, name, want)
		}
	}
	if n := c.policies.add([]PolicyCount{{"shop", "web", "ingress", 5, 2}, {"shop", "web", "ingress", 1, 1}})[share{owner{"shop", "web"}, "ingress"}]; n != (verdicts{6, 3}) {
		t.Errorf("two counts of one name make %v", n)
	}
	reads = 0
	want := `# HELP selvage_policy_scrape_success 1 if the counters of policies could be read from the kernel.
# TYPE selvage_policy_scrape_success gauge
selvage_policy_scrape_success `
	if err := testutil.CollectAndCompare(c, strings.NewReader(want+"1\n"), "selvage_policy_scrape_success"); err != nil {
		t.Error(err)
	}
	if reads != 1 {
		t.Errorf("read %d times for one scrape", reads)
	}
	broken = errors.New("no")
	if err := testutil.CollectAndCompare(c, strings.NewReader(want+"0\n")); err != nil {
		t.Error(err)
	}
}

// TestShares has a few owners keep their series, and the series of all others never go
// back.
func TestShares(t *testing.T) {
	s := newShares(2)
	count := func(policy string, allowed uint64) PolicyCount {
		return PolicyCount{"shop", policy, "ingress", allowed, 0}
	}
	for _, step := range []struct {
		name string
		now  []PolicyCount
		want map[string]uint64
	}{
		{"room for all", []PolicyCount{count("b", 1), count("c", 2)}, map[string]uint64{"b": 1, "c": 2}},
		{"more, and one that comes first", []PolicyCount{count("a", 100), count("b", 3), count("c", 4), count("d", 5)}, map[string]uint64{"b": 3, "c": 4, others: 105}},
		{"the others go on", []PolicyCount{count("a", 110), count("b", 3), count("c", 4), count("d", 6)}, map[string]uint64{"b": 3, "c": 4, others: 116}},
		{"one of them is gone", []PolicyCount{count("b", 3), count("c", 4), count("d", 7)}, map[string]uint64{"b": 3, "c": 4, others: 117}},
		{"and made anew", []PolicyCount{count("a", 10), count("b", 3), count("c", 4), count("d", 7)}, map[string]uint64{"b": 3, "c": 4, others: 127}},
		{"and once more", []PolicyCount{count("a", 9), count("b", 3), count("c", 4), count("d", 7)}, map[string]uint64{"b": 3, "c": 4, others: 136}},
		{"one gets a place that is free", []PolicyCount{count("a", 10), count("b", 3), count("d", 8)}, map[string]uint64{"a": 10, "b": 3, others: 137}},
		{"nobody is unknown", []PolicyCount{count("a", 10), count("b", 3), {Direction: "ingress", Allowed: 6}}, map[string]uint64{"a": 10, "b": 3, "": 6, others: 137}},
		{"a name that nothing can have", []PolicyCount{{others, others, "ingress", 5, 0}}, map[string]uint64{others: 142}},
		{"nothing is left", nil, map[string]uint64{others: 137}},
	} {
		got := make(map[string]uint64)
		for of, n := range s.add(step.now) {
			got[of.policy] = n.allowed
		}
		if fmt.Sprint(got) != fmt.Sprint(step.want) {
			t.Errorf("%s: %v, want %v", step.name, got, step.want)
		}
	}
}

// TestManyPolicies has no more series than it may, and loses no packet by that.
func TestManyPolicies(t *testing.T) {
	c := newPolicyCollector(func() (PolicyCounts, error) { return manyCounts(3 * maxPolicies), nil })
	for name, want := range map[string]int{
		"selvage_policy_allowed_connections_total": 2*maxPolicies + 2,
		"selvage_denied_packets_total":             2*maxNamespaces + 2 + 1,
	} {
		if n := testutil.CollectAndCount(c, name); n != want {
			t.Errorf("%d series of %s, want %d", n, name, want)
		}
	}
	sum := uint64(0)
	for _, n := range c.policies.add(manyCounts(3 * maxPolicies).Policies) {
		sum += n.denied
	}
	if want := uint64(3 * maxPolicies * 2); sum != want {
		t.Errorf("%d packets, want %d", sum, want)
	}
}

// manyCounts are those of so many policies, each in a namespace of its own and in both
// directions, with one packet each.
func manyCounts(policies int) PolicyCounts {
	all := PolicyCounts{Denied: []DeniedCount{{"", "", 1}}}
	for i := range policies {
		namespace := fmt.Sprintf("ns-%05d", i)
		for _, direction := range []string{"egress", "ingress"} {
			all.Policies = append(all.Policies, PolicyCount{namespace, "default-deny", direction, uint64(i), 1})
			all.Denied = append(all.Denied, DeniedCount{namespace, direction, 1})
		}
	}
	return all
}

// BenchmarkScrape is one scrape of a node with 250 pods, all shaped and with series of
// their own. Of the time 50 ms are the most that it may take, with what the kernel needs.
func BenchmarkScrape(b *testing.B) {
	for _, policies := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprintf("policies=%d", policies), func(b *testing.B) {
			m, counts := New("bench"), manyCounts(policies)
			var pods []Bandwidth
			for i := range 250 {
				for _, direction := range []string{"egress", "ingress"} {
					pods = append(pods, Bandwidth{Namespace: fmt.Sprintf("ns-%05d", i%20), Pod: fmt.Sprintf("pod-%d", i), Direction: direction, Bytes: 1e9})
				}
			}
			m.ReadPolicies(func() (PolicyCounts, error) { return counts, nil })
			m.ReadBandwidth(func() ([]Bandwidth, error) { return pods, nil }, true)
			m.ReadDrops(func() uint64 { return 1 }, func() uint64 { return 1 })
			h := m.Handler()
			b.ReportAllocs()
			for b.Loop() {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
				if w.Code != 200 {
					b.Fatalf("status %d: %s", w.Code, w.Body)
				}
				b.ReportMetric(float64(w.Body.Len()), "bytes/page")
			}
		})
	}
}
