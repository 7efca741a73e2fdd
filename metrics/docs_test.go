package metrics

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// section is a part of docs/metrics.md.
type section struct {
	heading, text string
	names         []string
}

// sections have every metric once, in the order in which they are told.
func sections() []section {
	return []section{
		{"Is policy in force", "The first two are for alerts. An event is a change of one object; from when on it is enforced is what the histogram tells.", []string{
			"in_sync", "last_sync_timestamp_seconds", "policy_programming_duration_seconds", "sync_duration_seconds", "sync_batches_total", "sync_messages_total",
			"sync_errors_total", "sync_retries_total", "drift_repaired_total", "generation", "generation_changes_total", "reclaim_errors_total", "ruleset",
		}},
		{"What policy does", "They are read from the kernel at each scrape. The kernel counts denied packets, and of allowed connections the first packet. A thousand policies, and a thousand namespaces, have series of their own, for as long as they are there; all others together are `(others)`.", []string{
			"denied_packets_total", "policy_denied_packets_total", "policy_allowed_connections_total", "policy_scrape_success", "drops_logged_total", "drops_left_out_total",
		}},
		{"The cluster's objects", "", []string{
			"objects", "invalid_policies", "source_connected", "source_errors_total", "source_last_contact_timestamp_seconds", "manifest_errors_total",
		}},
		{"The node", "", []string{
			"conditions", "unenforceable_pods", "bridge_covered", "same_bridge_uncovered", "other_policy_engine", "base_masquerade",
		}},
		{"Bandwidth", "See [bandwidth.md](bandwidth.md). The first five are always there. The others are read from the kernel at each scrape, are there as long as the namespace has shaped pods on the node, and have a label `pod` besides with `--metrics-per-pod`.", []string{
			"shaped_pods", "unshaped_pods", "invalid_bandwidth_annotations", "shaping_repaired_total", "shaping_errors_total",
			"bandwidth_bytes_total", "bandwidth_packets_total", "bandwidth_drops_total", "bandwidth_overlimits_total", "bandwidth_backlog_bytes",
			"bandwidth_limit_bytes_per_second", "bandwidth_scrape_success",
		}},
		{"Pools", "See [pools.md](pools.md). They are about the whole cluster, and so the same on each node. A hundred pools have series of their own, all others together are `(others)`; the nodes' podCIDRs are `(podCIDRs)`.", []string{
			"pools", "pool_problems", "pool_addresses", "pool_allocated_addresses", "pods_outside_pools",
		}},
		{"The program", "Besides, there are those of Prometheus' library: `go_*`, `process_*` and `promhttp_*`.", []string{"build_info"}},
	}
}

// TestDocument compares docs/metrics.md with the registry. -update writes it.
func TestDocument(t *testing.T) {
	families := families(t)
	var got strings.Builder
	got.WriteString("# Metrics\n\n" + wrap("What an agent shows at `/metrics`, by its registry: this page is written by "+
		"`go test ./metrics -update`. No label has an address in it. Directions are from the pods' view: ingress is what they are sent, egress what they send.", 88))
	for _, s := range sections() {
		fmt.Fprintf(&got, "\n## %s\n\n", s.heading)
		if s.text != "" {
			got.WriteString(wrap(s.text, 88) + "\n")
		}
		got.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
		for _, name := range s.names {
			f, ok := families["selvage_"+name]
			if !ok {
				t.Errorf("%s: there is no metric selvage_%s", s.heading, name)
				continue
			}
			delete(families, "selvage_"+name)
			fmt.Fprintf(&got, "| `selvage_%s` | %s | %s | %s |\n", name, f.kind, f.labels, f.help)
		}
	}
	for name := range families {
		t.Errorf("no section has %s", name)
	}
	path := filepath.Join("..", "docs", "metrics.md")
	if *update {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s differs from the registry (-want +got):\n%s", path, diff)
	}
}

// family is what there is to say of a metric.
type family struct{ kind, labels, help string }

// families are all metrics of ours by their names. The scene must have something of
// each that is registered.
func families(t *testing.T) map[string]family {
	t.Helper()
	m := scene()
	all, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]family)
	for _, f := range all {
		if !strings.HasPrefix(f.GetName(), "selvage_") {
			continue
		}
		labels := make(map[string]bool)
		for _, series := range f.GetMetric() {
			for _, l := range series.GetLabel() {
				labels["`"+l.GetName()+"`"] = true
			}
		}
		found[f.GetName()] = family{strings.ToLower(f.GetType().String()), strings.Join(slices.Sorted(maps.Keys(labels)), ", "), f.GetHelp()}
	}
	described := make(chan *prometheus.Desc)
	go func() {
		m.registry.Describe(described)
		close(described)
	}()
	name := regexp.MustCompile(`fqName: "(selvage_[a-z_]+)"`)
	for d := range described {
		if is := name.FindStringSubmatch(d.String()); is != nil && found[is[1]].kind == "" {
			t.Errorf("the scene has nothing of %s", is[1])
		}
	}
	return found
}

// wrap breaks a text into lines, each with its end, of no more than width characters
// where it has spaces.
func wrap(text string, width int) string {
	var out strings.Builder
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			out.WriteString(line + "\n")
			line = ""
		}
		line = strings.TrimSpace(line + " " + word)
	}
	return out.String() + line + "\n"
}
