package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	// Latencies are those of the events in it.
	Latencies []Latency
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

// Latency is how long an event took to come into force.
type Latency struct {
	// Kind is the kind of the object, one of LatencyKinds.
	Kind string
	// Took is the time from the event's arrival from its source to the kernel's last
	// acknowledgement.
	Took time.Duration
}

// LatencyKinds returns the kinds of objects whose events come into force by a sync.
// They have series from the start, so that the first event is seen as one.
func LatencyKinds() []string {
	return []string{"bridges", "ippools", "namespaces", "networkpolicies", "nodes", "pods", "servicecidrs"}
}

// Ruleset is how much there is of the rules in the kernel, in both tables together.
type Ruleset struct {
	Signatures, Chains, Rules, Sets, Elements, Counters int
}

// syncMetrics are about bringing the rules into the kernel.
type syncMetrics struct {
	programming *prometheus.HistogramVec
	duration    prometheus.Histogram
	batches     prometheus.Counter
	messages    prometheus.Counter
	errors      *prometheus.CounterVec
	retries     prometheus.Counter
	lastSync    prometheus.Gauge
	inSync      prometheus.Gauge
	generation  prometheus.Gauge
	generations prometheus.Counter
	repaired    prometheus.Counter
	ruleset     *prometheus.GaugeVec
	// failed says that the last sync failed.
	failed bool
}

func newSyncMetrics() syncMetrics {
	s := syncMetrics{
		programming: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "selvage_policy_programming_duration_seconds",
			Help:    "Time from the arrival of an event from the source until the kernel enforces it, by kind of object; failed syncs in between count.",
			Buckets: buckets(),
		}, []string{"kind"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "selvage_sync_duration_seconds",
			Help:    "Time one sync took: compiling the changes and sending them to the kernel.",
			Buckets: buckets(),
		}),
		batches:  counter("selvage_sync_batches_total", "Transactions sent to the kernel."),
		messages: counter("selvage_sync_messages_total", "Netlink messages sent to the kernel, in all transactions."),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "selvage_sync_errors_total", Help: "Syncs that failed, by reason; each is tried again. The log has the kernel's answer.",
		}, []string{"reason"}),
		retries:     counter("selvage_sync_retries_total", "Syncs that tried again what the one before had failed to do."),
		lastSync:    gauge("selvage_last_sync_timestamp_seconds", "When the last successful sync ended, in Unix time."),
		inSync:      gauge("selvage_in_sync", "1 if everything desired is in the kernel; if it is not, /readyz says what is missing."),
		generation:  gauge("selvage_generation", "The generation that the mark of a judged flow carries."),
		generations: counter("selvage_generation_changes_total", "Restrictive changes: each had every flow on the node judged once more."),
		repaired:    counter("selvage_drift_repaired_total", "Sets, chains and elements that somebody else had changed in the kernel and that were put right; if it goes on, find out who writes to the tables named selvage."),
		ruleset: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_ruleset", Help: "How much there is of the rules in the kernel, as this agent last wrote them, by kind; a signature is a list of policies that pods share.",
		}, []string{"kind"}),
	}
	// A counter that starts at 0 lets rate() see its first step.
	for _, r := range []Reason{ReasonUnknown, ReasonRefused, ReasonPermission, ReasonOther} {
		s.errors.WithLabelValues(string(r))
	}
	for _, kind := range LatencyKinds() {
		s.programming.WithLabelValues(kind)
	}
	return s
}

func (s *syncMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		s.programming, s.duration, s.batches, s.messages, s.errors, s.retries, s.lastSync, s.inSync,
		s.generation, s.generations, s.repaired, s.ruleset,
	}
}

// buckets reach from 100 µs, about what one element costs in a quiet kernel,
// to 10 s, in steps of 1, 2.5 and 5.
func buckets() []float64 {
	return []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
}

// Synced records a sync. Whoever calls it does so in the order of the syncs.
func (m *Metrics) Synced(s Sync) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sync.failed {
		m.sync.retries.Inc()
	}
	m.sync.failed = s.Failed != ""
	m.sync.duration.Observe(s.Duration.Seconds())
	m.sync.batches.Add(float64(s.Batches))
	m.sync.messages.Add(float64(s.Messages))
	if s.Failed != "" {
		m.sync.errors.WithLabelValues(string(s.Failed)).Inc()
		m.sync.inSync.Set(0)
		return
	}
	for _, l := range s.Latencies {
		m.sync.programming.WithLabelValues(l.Kind).Observe(l.Took.Seconds())
	}
	m.sync.generation.Set(float64(s.Generation))
	if s.Tightened {
		m.sync.generations.Inc()
	}
	m.sync.repaired.Add(float64(s.Repaired))
	m.sync.lastSync.Set(float64(s.At.UnixMilli()) / 1000)
	m.sync.inSync.Set(1)
}

// SetRuleset says how much was written to the kernel.
func (m *Metrics) SetRuleset(r Ruleset) {
	for kind, n := range map[string]int{
		"signatures": r.Signatures, "chains": r.Chains, "rules": r.Rules,
		"sets": r.Sets, "elements": r.Elements, "counters": r.Counters,
	} {
		m.sync.ruleset.WithLabelValues(kind).Set(float64(n))
	}
}

// ReadReclaimErrors has a scrape ask read how often conntrack entries with an
// old generation could not be cleared. It must be called once at most.
func (m *Metrics) ReadReclaimErrors(read func() uint64) {
	m.counterFunc("selvage_reclaim_errors_total",
		"Times that conntrack entries with an old generation could not be cleared before its value comes round again.", read)
}
