package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// sourceMetrics are about where the objects come from, and about the objects.
type sourceMetrics struct {
	objects   *prometheus.GaugeVec
	invalid   prometheus.Gauge
	manifests *prometheus.CounterVec
	connected *prometheus.GaugeVec
	errors    *prometheus.CounterVec
}

func newSourceMetrics() sourceMetrics {
	return sourceMetrics{
		objects: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_objects", Help: "Objects of the cluster that the agent knows, by kind; local_pods are those of this node.",
		}, []string{"kind"}),
		invalid: gauge("selvage_invalid_policies", "NetworkPolicies that could not be compiled as they are written; what could not be understood of them matches nothing. Events on them, and the log, say what to correct."),
		manifests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "selvage_manifest_errors_total",
			Help: "Mistakes found in manifests, by reason; the last good version of what they define stays in force. The log says in which file.",
		}, []string{"reason"}),
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_source_connected", Help: "1 if the last list or watch of the kind succeeded; enforcement goes on without.",
		}, []string{"kind"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "selvage_source_errors_total",
			Help: "Lists and watches that failed, by kind of object and cause; each is tried again. What is unanswered mostly ends by itself; for other causes the log says what to put right.",
		}, []string{"kind", "cause"}),
	}
}

func (s *sourceMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{s.objects, s.invalid, s.manifests, s.connected, s.errors}
}

// ManifestRefused records a mistake in a manifest.
func (m *Metrics) ManifestRefused(reason string) {
	m.source.manifests.WithLabelValues(reason).Inc()
}

// SetObjects says how many objects of a kind (pods, namespaces, nodes,
// networkpolicies) are known.
func (m *Metrics) SetObjects(kind string, n int) {
	m.source.objects.WithLabelValues(kind).Set(float64(n))
}

// SetInvalidPolicies says how many policies could not be compiled.
func (m *Metrics) SetInvalidPolicies(n int) { m.source.invalid.Set(float64(n)) }

// SetConnected says whether the source answers for a kind.
func (m *Metrics) SetConnected(kind string, ok bool) {
	m.source.connected.WithLabelValues(kind).Set(truth(ok))
}

// SourceFailed records that a kind could not be listed or watched. The causes must be
// few and fixed.
func (m *Metrics) SourceFailed(kind, cause string) {
	m.source.errors.WithLabelValues(kind, cause).Inc()
}

// ReadLastContact has a scrape ask read when the source was last heard of; the zero
// time if it never was. It must be called once at most, and only for a source that is
// heard of even if nothing changes.
func (m *Metrics) ReadLastContact(read func() time.Time) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "selvage_source_last_contact_timestamp_seconds",
		Help: "When the API server was last heard of, in Unix time; 0 if it never was. While it answers that is about once a minute at least.",
	}, func() float64 {
		at := read()
		if at.IsZero() {
			return 0
		}
		return float64(at.UnixMilli()) / 1000
	}))
}
