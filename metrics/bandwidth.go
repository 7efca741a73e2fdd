package metrics

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Bandwidth is what one direction of one pod has passed, as the kernel counts it:
// from 0 again whenever the queue is made anew.
type Bandwidth struct {
	Namespace, Pod, Direction         string
	Bytes, Packets, Drops, Overlimits uint64
	BacklogBytes, LimitBytesPerSecond float64
}

// ShapingStatus is how the shaping of pods is going.
type ShapingStatus struct {
	// Shaped is the number of pods with a limit in force, Invalid that of
	// annotations that cannot be used.
	Shaped, Invalid int
	// Unshaped is the number of pods whose limit is not in force, by reason. All
	// reasons must be there.
	Unshaped map[string]int
	// Repaired and Failed are counted from the start of the program.
	Repaired, Failed int
}

// shapingMetrics are what SetShaping sets.
type shapingMetrics struct {
	shaped, invalid  prometheus.Gauge
	unshaped         *prometheus.GaugeVec
	repaired, failed prometheus.Counter
	last             ShapingStatus
}

func newShapingMetrics() shapingMetrics {
	return shapingMetrics{
		shaped:  gauge("selvage_shaped_pods", "Pods of this node whose traffic is held to a limit in at least one direction."),
		invalid: gauge("selvage_invalid_bandwidth_annotations", "Annotations for bandwidth, of pods and their namespaces, that cannot be used; the last usable value stays in force."),
		unshaped: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "selvage_unshaped_pods", Help: "Pods of this node that have a limit which is not in force, by reason; an Event on the pod says more.",
		}, []string{"reason"}),
		repaired: counter("selvage_shaping_repaired_total", "Times that somebody else had removed or changed the shaping of a pod and it was put right."),
		failed:   counter("selvage_shaping_errors_total", "Times that the kernel refused to shape a pod; each is tried again."),
	}
}

func (s *shapingMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{s.shaped, s.invalid, s.unshaped, s.repaired, s.failed}
}

// SetShaping says how the shaping is going.
func (m *Metrics) SetShaping(s ShapingStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shaping.shaped.Set(float64(s.Shaped))
	m.shaping.invalid.Set(float64(s.Invalid))
	for reason, n := range s.Unshaped {
		m.shaping.unshaped.WithLabelValues(reason).Set(float64(n))
	}
	m.shaping.repaired.Add(float64(s.Repaired - m.shaping.last.Repaired))
	m.shaping.failed.Add(float64(s.Failed - m.shaping.last.Failed))
	m.shaping.last = s
}

// ReadBandwidth has each scrape read what the pods have passed: by namespace, or by
// pod if perPod is set, whose number of series grows with the node's pods. It must be
// called once at most.
func (m *Metrics) ReadBandwidth(read func() ([]Bandwidth, error), perPod bool) {
	m.registry.MustRegister(newBandwidthCollector(read, perPod))
}

// bandwidthCollector reads the kernel's counters when it is asked. Those of a
// namespace go on when a pod of it ends: what was counted up to the last scrape stays
// in the sum.
type bandwidthCollector struct {
	read   func() ([]Bandwidth, error)
	perPod bool

	bytes, packets, drops, overlimits, backlog, limit, success *prometheus.Desc

	mu   sync.Mutex // held during a scrape
	sums map[series]*Bandwidth
	last map[series]Bandwidth // by pod
}

// series are the labels of a series. Pod is empty in a sum over a namespace.
type series struct{ namespace, pod, direction string }

func newBandwidthCollector(read func() ([]Bandwidth, error), perPod bool) *bandwidthCollector {
	labels := []string{"namespace", "direction"}
	if perPod {
		labels = append(labels, "pod")
	}
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, labels, nil) }
	return &bandwidthCollector{
		read: read, perPod: perPod,
		sums: make(map[series]*Bandwidth), last: make(map[series]Bandwidth),
		bytes:      desc("selvage_bandwidth_bytes_total", "Bytes, in whole frames, that shaped pods were sent (ingress) or have sent (egress)."),
		packets:    desc("selvage_bandwidth_packets_total", "Packets that shaped pods were sent (ingress) or have sent (egress)."),
		drops:      desc("selvage_bandwidth_drops_total", "Packets of shaped pods that were dropped since the queue was full."),
		overlimits: desc("selvage_bandwidth_overlimits_total", "Times that a packet of a shaped pod had to wait for its turn."),
		backlog:    desc("selvage_bandwidth_backlog_bytes", "Bytes that wait in the queues of shaped pods."),
		limit:      desc("selvage_bandwidth_limit_bytes_per_second", "What shaped pods are limited to, added up."),
		success:    prometheus.NewDesc("selvage_bandwidth_scrape_success", "1 if the counters of bandwidth could be read from the kernel.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *bandwidthCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.bytes, c.packets, c.drops, c.overlimits, c.backlog, c.limit, c.success} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *bandwidthCollector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := c.read()
	ch <- prometheus.MustNewConstMetric(c.success, prometheus.GaugeValue, truth(err == nil))
	if err != nil {
		return
	}
	c.add(now)
	for s, b := range c.sums {
		labels := []string{s.namespace, s.direction}
		if c.perPod {
			labels = append(labels, s.pod)
		}
		for d, v := range map[*prometheus.Desc]uint64{c.bytes: b.Bytes, c.packets: b.Packets, c.drops: b.Drops, c.overlimits: b.Overlimits} {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
		}
		ch <- prometheus.MustNewConstMetric(c.backlog, prometheus.GaugeValue, b.BacklogBytes, labels...)
		ch <- prometheus.MustNewConstMetric(c.limit, prometheus.GaugeValue, b.LimitBytesPerSecond, labels...)
	}
}

// add adds what was counted since the last scrape.
func (c *bandwidthCollector) add(now []Bandwidth) {
	seen := make(map[series]bool, len(now))
	for _, sum := range c.sums {
		sum.BacklogBytes, sum.LimitBytesPerSecond = 0, 0
	}
	last := make(map[series]Bandwidth, len(now))
	for _, b := range now {
		of := series{clean(b.Namespace), clean(b.Pod), b.Direction}
		before := c.last[of]
		last[of] = b
		if !c.perPod {
			of.pod = ""
		}
		sum := c.sums[of]
		if sum == nil {
			sum = &Bandwidth{}
			c.sums[of] = sum
		}
		seen[of] = true
		sum.BacklogBytes += b.BacklogBytes
		sum.LimitBytesPerSecond += b.LimitBytesPerSecond
		// Bytes cannot go back in one queue: it is another one if they do.
		if b.Bytes < before.Bytes || b.Packets < before.Packets {
			before = Bandwidth{}
		}
		sum.Bytes += b.Bytes - before.Bytes
		sum.Packets += b.Packets - before.Packets
		sum.Drops += since(before.Drops, b.Drops)
		sum.Overlimits += since(before.Overlimits, b.Overlimits)
	}
	c.last = last
	for of := range c.sums {
		if !seen[of] {
			delete(c.sums, of)
		}
	}
}

// since is the difference of two counters of 32 bits. One that went back has gone round
// if it was far, and else begins anew with another queue.
func since(before, now uint64) uint64 {
	if now < before && before < 1<<31 {
		return now
	}
	return uint64(uint32(now) - uint32(before))
}
