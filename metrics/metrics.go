// Package metrics holds the numbers that Selvage shows to Prometheus. It has a
// registry of its own; nothing here is global, and none of the other packages
// is known to it: cmd/selvage brings them together.
//
// Names follow the Prometheus guide: base units, `_total` for counters. No
// metric has a label with a policy or an address, nor, unless that is asked for,
// with a pod, so that the number of series does not grow with the cluster. Of pools
// a hundred have series of their own.
package metrics

import (
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Reason is why a sync failed, the label of selvage_sync_errors_total.
type Reason string

// The reasons. They are few and fixed, so that an alert can name them.
const (
	// ReasonUnknown is a batch of which it is not known whether the kernel took
	// it, after a full socket buffer for example.
	ReasonUnknown Reason = "unknown"
	// ReasonRefused is a batch that the kernel refused; nothing of it took
	// effect.
	ReasonRefused Reason = "refused"
	// ReasonPermission is a lost privilege.
	ReasonPermission Reason = "permission"
	// ReasonOther is everything else.
	ReasonOther Reason = "other"
)

// Sync is what one sync did.
type Sync struct {
	// Failed is empty if it was successful, or else says why it was not; then
	// Duration, Batches and Messages count, and nothing else.
	Failed Reason
	// Duration is the time from the first look at the changes to the kernel's
	// last acknowledgement.
	Duration time.Duration
	// Latencies are, for each event in it, the time from its arrival from the
	// source to the kernel's last acknowledgement.
	Latencies []time.Duration
	// Batches and Messages are what was sent to the kernel.
	Batches, Messages int
	// Generation is the generation in force afterwards.
	Generation uint32
	// Tightened says that the generation changed.
	Tightened bool
	// Repaired is how many sets, chains and elements in the kernel were found
	// to be others than had been written there, and were put right.
	Repaired int
	// At is when it ended.
	At time.Time
}

// Bridge is one bridge that carries pods of this node.
type Bridge struct {
	Name string
	// Covered says that packets between two pods on the bridge meet the rules.
	Covered bool
}

// Metrics are all instruments. All methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	programming  prometheus.Histogram
	duration     prometheus.Histogram
	batches      prometheus.Counter
	messages     prometheus.Counter
	errors       *prometheus.CounterVec
	lastSync     prometheus.Gauge
	inSync       prometheus.Gauge
	generation   prometheus.Gauge
	generations  prometheus.Counter
	repaired     prometheus.Counter
	objects      *prometheus.GaugeVec
	invalid      prometheus.Gauge
	manifests    *prometheus.CounterVec
	connected    *prometheus.GaugeVec
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
		programming: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "selvage_policy_programming_duration_seconds",
			Help:    "Time from the arrival of an event from the source until the kernel enforces it.",
			Buckets: buckets(),
		}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "selvage_sync_duration_seconds",
			Help:    "Time one sync took: compiling the changes and sending them to the kernel.",
			Buckets: buckets(),
		}),
		batches:     counter("selvage_sync_batches_total", "Transactions sent to the kernel."),
		messages:    counter("selvage_sync_messages_total", "Netlink messages sent to the kernel in these transactions."),
		lastSync:    gauge("selvage_last_sync_timestamp_seconds", "When the last successful sync ended, in Unix time."),
		inSync:      gauge("selvage_in_sync", "1 if everything desired is in the kernel."),
		generation:  gauge("selvage_generation", "The generation that the mark of a judged flow carries."),
		generations: counter("selvage_generation_changes_total", "Restrictive changes: each had every flow on the node judged once more."),
		repaired:    counter("selvage_drift_repaired_total", "Sets, chains and elements that somebody else had changed in the kernel and that were put right."),
		invalid:     gauge("selvage_invalid_policies", "NetworkPolicies that could not be compiled as they are written; what could not be understood of them matches nothing."),
		bridgesUnmet: gauge("selvage_same_bridge_uncovered",
			"1 if packets between two pods of this node may pass on a bridge without meeting the rules."),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "selvage_sync_errors_total", Help: "Syncs that failed, by reason; each is tried again.",
		}, []string{"reason"}),
		manifests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "selvage_manifest_errors_total",
			Help: "Mistakes found in manifests, by reason; the last good version of what they define stays in force.",
		}, []string{"reason"}),
		objects: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_objects", Help: "Objects of the cluster that the agent knows, by kind.",
		}, []string{"kind"}),
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_source_connected", Help: "1 if the last list or watch of the kind succeeded; enforcement goes on without.",
		}, []string{"kind"}),
		bridges: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_bridge_covered", Help: "1 if packets between two pods on the bridge meet the rules.",
		}, []string{"bridge"}),
		unseen: gauge("selvage_unenforceable_pods", "Pods of this node whose packets do not pass its hooks: no policy is in force for them."),
		engines: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_other_policy_engine", Help: "1 if another policy engine, or what it has left behind, was found on this node.",
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
	for _, r := range []Reason{ReasonUnknown, ReasonRefused, ReasonPermission, ReasonOther} {
		m.errors.WithLabelValues(string(r)) // a counter that starts at 0 lets rate() see its first step
	}
	m.registry.MustRegister(m.programming, m.duration, m.batches, m.messages, m.errors, m.lastSync, m.inSync,
		m.generation, m.generations, m.repaired, m.objects, m.invalid, m.manifests, m.connected,
		m.bridges, m.bridgesUnmet, m.unseen, m.engines, m.conditions, build, m.pools, m.masquerade,
		m.shaping.shaped, m.shaping.invalid, m.shaping.unshaped, m.shaping.repaired, m.shaping.failed,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// buckets reach from 100 µs, about what one element costs in a quiet kernel,
// to 10 s, in steps of 1, 2.5 and 5.
func buckets() []float64 {
	return []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

// Handler serves the metrics over HTTP.
func (m *Metrics) Handler() http.Handler {
	return promhttp.InstrumentMetricHandler(m.registry, promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		Registry: m.registry,
	}))
}

// Gatherer returns the registry for reading.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// Synced records a sync.
func (m *Metrics) Synced(s Sync) {
	m.duration.Observe(s.Duration.Seconds())
	m.batches.Add(float64(s.Batches))
	m.messages.Add(float64(s.Messages))
	if s.Failed != "" {
		m.errors.WithLabelValues(string(s.Failed)).Inc()
		m.inSync.Set(0)
		return
	}
	for _, l := range s.Latencies {
		m.programming.Observe(l.Seconds())
	}
	m.generation.Set(float64(s.Generation))
	if s.Tightened {
		m.generations.Inc()
	}
	m.repaired.Add(float64(s.Repaired))
	m.lastSync.Set(float64(s.At.UnixMilli()) / 1000)
	m.inSync.Set(1)
}

// ReadReclaimErrors has a scrape ask read how often conntrack entries with an
// old generation could not be cleared. It must be called once at most.
func (m *Metrics) ReadReclaimErrors(read func() uint64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "selvage_reclaim_errors_total",
		Help: "Times that conntrack entries with an old generation could not be cleared before its value comes round again.",
	}, func() float64 { return float64(read()) }))
}

// ManifestRefused records a mistake in a manifest.
func (m *Metrics) ManifestRefused(reason string) { m.manifests.WithLabelValues(reason).Inc() }

// SetObjects says how many objects of a kind (pods, namespaces, nodes,
// networkpolicies) are known.
func (m *Metrics) SetObjects(kind string, n int) { m.objects.WithLabelValues(kind).Set(float64(n)) }

// SetInvalidPolicies says how many policies could not be compiled.
func (m *Metrics) SetInvalidPolicies(n int) { m.invalid.Set(float64(n)) }

// SetConnected says whether the source answers for a kind.
func (m *Metrics) SetConnected(kind string, ok bool) {
	m.connected.WithLabelValues(kind).Set(truth(ok))
}

// SetBridges says which bridges carry pods; those of before are forgotten.
// uncovered says that packets between pods may pass on one unseen.
func (m *Metrics) SetBridges(bridges []Bridge, uncovered bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	gone := m.known
	m.known = make(map[string]bool, len(bridges))
	for _, b := range bridges {
		m.bridges.WithLabelValues(b.Name).Set(truth(b.Covered))
		m.known[b.Name] = true
		delete(gone, b.Name)
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

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
