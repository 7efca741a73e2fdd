package metrics

import (
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// PolicyCounts are what the rules have let through and denied. Of several counts with
// the same names the sums are shown.
type PolicyCounts struct {
	Policies []PolicyCount
	Denied   []DeniedCount
}

// PolicyCount is what was counted of a policy in one direction.
type PolicyCount struct {
	Namespace, Policy string
	// Direction is ingress or egress, from the pods' view.
	Direction string
	// Allowed are connections, Denied packets.
	Allowed, Denied uint64
}

// DeniedCount is what was denied to or from the pods of a namespace.
type DeniedCount struct {
	// Namespace and Direction are empty for addresses that no pod is known to have.
	Namespace, Direction string
	Packets              uint64
}

// How many policies and namespaces have series of their own.
const (
	maxPolicies   = 1000
	maxNamespaces = 1000
)

// ReadPolicies has each scrape read, once, what the rules have let through and denied.
// Counts may only grow as long as their policy or namespace is there. It must be called
// once at most.
func (m *Metrics) ReadPolicies(read func() (PolicyCounts, error)) {
	m.registry.MustRegister(newPolicyCollector(read))
}

// ReadDrops has a scrape ask how many denied packets lines in the log tell of, and how
// many none does. It must be called once at most.
func (m *Metrics) ReadDrops(logged, leftOut func() uint64) {
	m.counterFunc("selvage_drops_logged_total", "Denied packets that lines in the log tell of; one line can tell of many.", logged)
	m.counterFunc("selvage_drops_left_out_total",
		"Denied packets that the rules passed on to the agent, but no line in the log tells of: there were too many, or --drop-log-rate is 0. Those that the rules did not pass on, beyond two a second and pod, are in selvage_denied_packets_total only.", leftOut)
}

// policyCollector reads the counters of the rules when it is asked.
type policyCollector struct {
	read func() (PolicyCounts, error)

	allowed, denied, packets, success *prometheus.Desc

	mu                   sync.Mutex // held during a scrape
	policies, namespaces shares
}

func newPolicyCollector(read func() (PolicyCounts, error)) *policyCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &policyCollector{
		read: read, policies: newShares(maxPolicies), namespaces: newShares(maxNamespaces),
		allowed: desc("selvage_policy_allowed_connections_total",
			"Connections of pods of this node that a rule of the policy let through, alone or together with other policies: new ones, and those judged again after a restrictive change. If it stays 0 on all nodes, nobody uses what the policy allows.",
			"namespace", "policy", "direction"),
		denied: desc("selvage_policy_denied_packets_total",
			"Denied packets of pods of this node that the policy isolates; if several policies isolate a pod, each of them has the packet. `selvage drops` shows which packets these are.",
			"namespace", "policy", "direction"),
		packets: desc("selvage_denied_packets_total",
			"Packets from (egress) and to (ingress) isolated pods of this node that no policy allows, by the pods' namespace; without namespace and direction those of addresses that no pod is known to have.",
			"namespace", "direction"),
		success: desc("selvage_policy_scrape_success", "1 if the counters of policies could be read from the kernel."),
	}
}

// Describe implements prometheus.Collector.
func (c *policyCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.allowed, c.denied, c.packets, c.success} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *policyCollector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := c.read()
	ch <- prometheus.MustNewConstMetric(c.success, prometheus.GaugeValue, truth(err == nil))
	if err != nil {
		return
	}
	show := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for of, n := range c.policies.add(now.Policies) {
		show(c.allowed, n.allowed, of.namespace, of.policy, of.direction)
		show(c.denied, n.denied, of.namespace, of.policy, of.direction)
	}
	denied := make([]PolicyCount, 0, len(now.Denied))
	for _, d := range now.Denied {
		denied = append(denied, PolicyCount{Namespace: d.Namespace, Direction: d.Direction, Denied: d.Packets})
	}
	for of, n := range c.namespaces.add(denied) {
		show(c.packets, n.denied, of.namespace, of.direction)
	}
}

// shares give some owners of counts, policies or namespaces, series of their own for as
// long as they are there, and one to all others together. That one never goes back:
// what an owner has counted in it stays there, even if the owner is no more, or has
// got series of its own since.
type shares struct {
	max int
	own map[owner]bool
	// last is what the others had counted when they were last read, rest their sums by
	// direction.
	last map[share]verdicts
	rest map[string]verdicts
}

// owner is a policy, or a namespace if policy is empty, or nobody that is known.
type owner struct{ namespace, policy string }

// share are the labels of a series.
type share struct {
	owner
	direction string
}

// verdicts are connections that were allowed and packets that were denied.
type verdicts struct{ allowed, denied uint64 }

func (v verdicts) plus(o verdicts) verdicts {
	return verdicts{v.allowed + o.allowed, v.denied + o.denied}
}

// since is what was counted after before; a count that went back began anew.
func (v verdicts) since(before verdicts) verdicts {
	if v.allowed < before.allowed || v.denied < before.denied {
		return v
	}
	return verdicts{v.allowed - before.allowed, v.denied - before.denied}
}

func newShares(most int) shares {
	return shares{max: most, own: make(map[owner]bool), rest: make(map[string]verdicts)}
}

// add takes counts in and returns what all series have now.
func (s *shares) add(now []PolicyCount) map[share]verdicts {
	there := make(map[owner]bool, len(now))
	for _, n := range now {
		there[ownerOf(n)] = true
	}
	maps.DeleteFunc(s.own, func(o owner, _ bool) bool { return !there[o] })
	shown, last := make(map[share]verdicts, len(now)), make(map[share]verdicts)
	for _, n := range now {
		of, sums := share{ownerOf(n), n.Direction}, shown
		if !s.owns(of.owner) {
			sums = last
		}
		sums[of] = sums[of].plus(verdicts{n.Allowed, n.Denied})
	}
	for of, n := range last {
		s.rest[of.direction] = s.rest[of.direction].plus(n.since(s.last[of]))
	}
	s.last = last
	for direction, n := range s.rest {
		of := share{owner{others, others}, direction}
		shown[of] = shown[of].plus(n)
	}
	return shown
}

// owns tells whether an owner has series of its own, and gives it some if there is room.
func (s *shares) owns(o owner) bool {
	if o == (owner{}) || s.own[o] {
		return true
	}
	if len(s.own) >= s.max {
		return false
	}
	s.own[o] = true
	return true
}

func ownerOf(n PolicyCount) owner { return owner{clean(n.Namespace), clean(n.Policy)} }
