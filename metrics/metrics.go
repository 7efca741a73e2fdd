// Package metrics holds the numbers that Selvage shows to Prometheus. It has a
// registry of its own; nothing here is global, and none of the other packages
// is known to it: cmd/selvage brings them together.
//
// Names follow the Prometheus guide: base units, `_total` for counters. No metric has
// a label with an address, nor, unless that is asked for, with a pod, so that the
// number of series does not grow with the cluster. Of policies and namespaces a
// thousand, of pools a hundred have series of their own; all others share one.
//
// Names that come from elsewhere are no more than values of labels, whatever they hold.
package metrics

import (
	"net/http"
	"runtime"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Bridge is one bridge that carries pods of this node.
type Bridge struct {
	Name string
	// Covered says that packets between two pods on the bridge meet the rules.
	Covered bool
}

// Metrics are all instruments. All methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	sync         syncMetrics
	source       sourceMetrics
	bridges      *prometheus.GaugeVec
	bridgesUnmet prometheus.Gauge
	unseen       prometheus.Gauge
	engines      *prometheus.GaugeVec
	conditions   *prometheus.GaugeVec
	shaping      shapingMetrics
	pools        *poolCollector
	masquerade   *prometheus.GaugeVec

	mu           sync.Mutex
	known        map[string]bool // the bridges that have a series
	masqueraders []Masquerader   // and others who masquerade
}

// New returns the instruments, registered in a registry of their own together
// with those of the Go runtime and of the process. version is that of the
// program.
func New(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		sync:     newSyncMetrics(),
		source:   newSourceMetrics(),
		bridges: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_bridge_covered", Help: "1 if packets between two pods on the bridge meet the rules.",
		}, []string{"bridge"}),
		bridgesUnmet: gauge("selvage_same_bridge_uncovered",
			"1 if packets between two pods of this node may pass on a bridge without meeting the rules; /readyz says why."),
		unseen: gauge("selvage_unenforceable_pods", "Pods of this node whose packets do not pass its hooks: no policy is in force for them."),
		engines: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_other_policy_engine", Help: "1 if another policy engine, or what it has left behind, was found on this node; remove it, or connections pass only if both allow them.",
		}, []string{"engine"}),
		conditions: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_conditions", Help: "Things that somebody should put right, by reason; the log and an Event on the Node say what to do.",
		}, []string{"reason"}),
		shaping: newShapingMetrics(),
		pools:   newPoolCollector(),
		masquerade: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_base_masquerade", Help: "1 if somebody else on this node, the base CNI mostly, masquerades what pods send.",
		}, []string{"by", "family"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "selvage_build_info", Help: "Always 1; the labels tell the build.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(m.sync.collectors()...)
	m.registry.MustRegister(m.source.collectors()...)
	m.registry.MustRegister(m.shaping.collectors()...)
	m.registry.MustRegister(m.bridges, m.bridgesUnmet, m.unseen, m.engines, m.conditions, build, m.pools, m.masquerade,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

// counterFunc has a scrape ask read for the value of a counter.
func (m *Metrics) counterFunc(name, help string, read func() uint64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help},
		func() float64 { return float64(read()) }))
}

// Handler serves the metrics over HTTP.
func (m *Metrics) Handler() http.Handler {
	return promhttp.InstrumentMetricHandler(m.registry, promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		Registry: m.registry,
	}))
}

// Gatherer returns the registry for reading.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// SetBridges says which bridges carry pods; those of before are forgotten.
// uncovered says that packets between pods may pass on one unseen.
func (m *Metrics) SetBridges(bridges []Bridge, uncovered bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	gone := m.known
	m.known = make(map[string]bool, len(bridges))
	for _, b := range bridges {
		name := clean(b.Name)
		m.bridges.WithLabelValues(name).Set(truth(b.Covered))
		m.known[name] = true
		delete(gone, name)
	}
	// No Reset: a scrape in between would see no bridge at all.
	for name := range gone {
		m.bridges.DeleteLabelValues(name)
	}
	m.bridgesUnmet.Set(truth(uncovered))
}

// SetUnenforceablePods says for how many pods of this node no policy is in force.
func (m *Metrics) SetUnenforceablePods(n int) { m.unseen.Set(float64(n)) }

// SetOtherEngine says whether another policy engine was found. The names must be
// few and fixed.
func (m *Metrics) SetOtherEngine(name string, found bool) {
	m.engines.WithLabelValues(name).Set(truth(found))
}

// SetConditions says how many conditions hold for a reason. The reasons must be
// few and fixed.
func (m *Metrics) SetConditions(reason string, n int) {
	m.conditions.WithLabelValues(reason).Set(float64(n))
}

// others stands for all that has no series of its own, as the value of a label. Nothing
// can have such a name.
const others = "(others)"

// clean makes the value of a label of a name that can hold anything: a value has to be
// UTF-8.
func clean(name string) string { return strings.ToValidUTF8(name, "\uFFFD") }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
