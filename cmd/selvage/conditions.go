package main

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/selvage-net/selvage/metrics"
)

// reason sorts conditions for logs, Events and the metric.
type reason string

// The reasons.
const (
	// reasonRefused is an API server that does not give the objects of a kind.
	reasonRefused reason = "ObjectsRefused"
	// reasonOldServer is an API server that lacks something.
	reasonOldServer reason = "OldAPIServer"
	// reasonNoPodCIDR is a Node without podCIDRs.
	reasonNoPodCIDR reason = "NoPodCIDR"
	// reasonOutsidePodCIDR is pods with addresses outside of the podCIDRs.
	reasonOutsidePodCIDR reason = "PodsOutsidePodCIDR"
	// reasonNotEnforced is pods whose packets the node does not see.
	reasonNotEnforced reason = "PodsNotEnforced"
	// reasonOtherEngine is another policy engine on the node.
	reasonOtherEngine reason = "OtherPolicyEngine"
	// reasonNoBandwidth is a node where the bandwidth of pods cannot be shaped.
	reasonNoBandwidth reason = "BandwidthNotShaped"
	// reasonNoMasquerade is a kernel that cannot do what a pool's natOutgoing says.
	reasonNoMasquerade reason = "MasqueradeUnsupported"
	// reasonBaseMasquerades is a base CNI that masquerades what a pool says should not
	// be.
	reasonBaseMasquerades reason = "BaseCNIMasquerades"
	// reasonSecondAgent is what an agent says of itself that finds another one.
	reasonSecondAgent reason = "SecondAgent"
)

// reasons are those that a condition can have.
func reasons() []reason {
	return []reason{
		reasonRefused, reasonOldServer, reasonNoPodCIDR, reasonOutsidePodCIDR, reasonNotEnforced, reasonOtherEngine, reasonNoBandwidth,
		reasonNoMasquerade, reasonBaseMasquerades,
	}
}

// A condition is something about the node, or the cluster as the node sees it,
// that somebody should put right.
type condition struct {
	reason reason
	// about is what it is about, in a word or two. It tells conditions of one
	// topic apart: one whose message changes stays the same condition.
	about string
	// message is one line: what is wrong, what follows from it, what to do.
	message string
	// notReady ends readiness for as long as the condition holds.
	notReady bool
	// lasting is how long it must hold before anything is said of it.
	lasting time.Duration
}

// topic is what one part of the agent watches over.
type topic string

// conditions tells of each condition when it appears, by a line in the log and an
// Event on the Node, and when it is over, by a line in the log. Its methods are
// safe for concurrent use.
type conditions struct {
	log     *slog.Logger
	metrics *metrics.Metrics
	// event, if it is set, makes an Event of a condition that has appeared. It
	// must not wait.
	event func(condition)

	mu   sync.Mutex
	held map[topic]map[string]*held
}

// held is a condition that holds.
type held struct {
	condition
	// said is true once it has appeared, at that time.
	said  bool
	at    time.Time
	timer *time.Timer
}

func newConditions(log *slog.Logger, m *metrics.Metrics) *conditions {
	for _, r := range reasons() {
		m.SetConditions(string(r), 0)
	}
	return &conditions{log: log, metrics: m, held: make(map[topic]map[string]*held)}
}

// set says which conditions of a topic hold now. Those of before that are not
// among them are over.
func (c *conditions) set(t topic, now ...condition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.held[t]
	c.held[t] = make(map[string]*held, len(now))
	for _, n := range now {
		h := before[n.about]
		if h == nil {
			h = &held{}
		}
		h.condition = n
		c.held[t][n.about] = h
		delete(before, n.about)
		switch {
		case h.said || h.timer != nil:
		case n.lasting == 0:
			c.say(h)
		default:
			h.timer = time.AfterFunc(n.lasting, func() { c.sayLater(t, h) })
		}
	}
	for _, h := range before {
		if h.said {
			c.log.Info("condition is over", "reason", h.reason, "about", h.about)
		} else {
			h.timer.Stop()
		}
	}
	c.count()
}

// sayLater says a condition that has lasted, unless it is over.
func (c *conditions) sayLater(t topic, h *held) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held[t][h.about] == h {
		c.say(h)
		c.count()
	}
}

// say tells of a condition that appears. mu is held.
func (c *conditions) say(h *held) {
	h.said, h.at = true, time.Now()
	c.log.Warn("condition has appeared", "reason", h.reason, "about", h.about, "message", h.message)
	if c.event != nil {
		c.event(h.condition)
	}
}

// count shows the metric. mu is held.
func (c *conditions) count() {
	n := make(map[reason]int)
	for _, of := range c.held {
		for _, h := range of {
			if h.said {
				n[h.reason]++
			}
		}
	}
	for _, r := range reasons() {
		c.metrics.SetConditions(string(r), n[r])
	}
}

// unready returns the conditions that end readiness, joined, or nil.
func (c *conditions) unready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []condition
	for _, of := range c.held {
		for _, h := range of {
			if h.said && h.notReady {
				found = append(found, h.condition)
			}
		}
	}
	slices.SortFunc(found, condition.compare)
	var errs []error
	for _, f := range found {
		errs = append(errs, errors.New(f.message))
	}
	return errors.Join(errs...)
}

// status is what /status says of conditions that have appeared.
func (c *conditions) status() []conditionStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []*held
	for _, of := range c.held {
		for _, h := range of {
			if h.said {
				found = append(found, h)
			}
		}
	}
	slices.SortFunc(found, func(a, b *held) int { return a.compare(b.condition) })
	all := []conditionStatus{}
	for _, h := range found {
		all = append(all, conditionStatus{h.reason, h.about, h.message, h.at})
	}
	return all
}

func (c condition) compare(o condition) int {
	return cmp.Or(cmp.Compare(c.reason, o.reason), cmp.Compare(c.about, o.about))
}
