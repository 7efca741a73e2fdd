package main

import (
	"net/http"
	"strings"
	"sync"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nft"
)

// hangsAfter is how long a sync may take before /status does not wait for it any more.
const hangsAfter = 10 * time.Second

// tally is what the kernel has counted: for the whole node, and for each policy.
type tally struct {
	node     nodeCounts
	policies map[types.NamespacedName]verdictCounts
}

func newTally(c nft.PolicyCounts) tally {
	t := tally{policies: make(map[types.NamespacedName]verdictCounts, len(c.Policies))}
	for _, p := range c.Policies {
		allowed, denied := inDirection(p.Direction, p.Allowed), inDirection(p.Direction, p.Denied)
		key := types.NamespacedName(p.PolicyRef)
		of := t.policies[key]
		of.AllowedConnections, of.DeniedPackets = of.AllowedConnections.plus(allowed), of.DeniedPackets.plus(denied)
		t.policies[key] = of
		t.node.AllowedConnections = t.node.AllowedConnections.plus(allowed)
	}
	for _, d := range c.Denied {
		t.node.DeniedPackets = t.node.DeniedPackets.plus(inDirection(d.Direction, d.Count))
		if d.Direction == "" {
			t.node.UnknownPackets += d.Packets
		}
	}
	return t
}

func inDirection(direction string, n nft.Count) directed {
	switch direction {
	case "ingress":
		return directed{Ingress: n.Packets}
	case "egress":
		return directed{Egress: n.Packets}
	}
	return directed{}
}

// lasting remembers since when something is so, or not.
type lasting struct {
	mu sync.Mutex
	ok bool
	at time.Time
}

// note notes how it is now, and returns since when it has been like that.
func (l *lasting) note(ok bool) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ok != l.ok || l.at.IsZero() {
		l.ok, l.at = ok, time.Now()
	}
	return l.at
}

// inForce remembers which version of each policy is in force, and since when. Its
// methods are safe for concurrent use.
type inForce struct {
	mu       sync.Mutex
	versions map[types.NamespacedName]arrived
	// coming are those that are not in force yet; nil for a policy that is deleted.
	coming map[types.NamespacedName]*networkingv1.NetworkPolicy
}

// arrived is a version of a policy, and when it came into force.
type arrived struct {
	resourceVersion string
	at              time.Time
}

// come notes policies that have changed.
func (f *inForce) come(deltas []policy.Delta) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range deltas {
		np, ok := d.Object.(*networkingv1.NetworkPolicy)
		if !ok {
			continue
		}
		if f.coming == nil {
			f.coming = make(map[types.NamespacedName]*networkingv1.NetworkPolicy)
		}
		key := types.NamespacedName{Namespace: np.Namespace, Name: np.Name}
		if f.coming[key] = np; d.Deleted {
			f.coming[key] = nil
		}
	}
}

// arrive notes that all that came is in force.
func (f *inForce) arrive(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.versions == nil {
		f.versions = make(map[types.NamespacedName]arrived, len(f.coming))
	}
	for key, np := range f.coming {
		if np == nil {
			delete(f.versions, key)
		} else {
			f.versions[key] = arrived{np.ResourceVersion, at}
		}
	}
	f.coming = nil
}

// of returns the version of a policy that is in force, and whether it is the last one
// that has come.
func (f *inForce) of(key types.NamespacedName) (v arrived, last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, known := f.versions[key]
	_, coming := f.coming[key]
	return v, known && !coming
}

// serveStatus answers /status, with all policies if ?policies=all.
func (a *agent) serveStatus(w http.ResponseWriter, r *http.Request) {
	answerJSON(w, a.status(r.URL.Query().Get("policies") == "all"))
}

// status tells how things are. A sync that goes on is waited for, unless it hangs.
func (a *agent) status(all bool) nodeStatus {
	s := nodeStatus{
		Node: a.local.node, Version: version, Time: time.Now(), Started: a.begun, Missing: []string{},
		Source: a.source.status(), Conditions: a.conditions.status(), Bandwidth: a.bandwidth.status(), Pools: a.pools.status(),
		Policies: []policyStatus{}, Invalid: a.problems.status(),
	}
	err := a.missing()
	s.InSync, s.Since = err == nil, a.readySince.note(err == nil)
	if err != nil {
		s.Missing = strings.Split(err.Error(), "\n")
	}
	a.mu.Lock()
	busy := a.busy
	s.Generation, s.LastSync = a.generation, a.lastSync
	a.mu.Unlock()
	if !busy.IsZero() && time.Since(busy) > hangsAfter {
		s.CountsError = "a sync goes on, and takes long"
		return s
	}
	if err := a.drops.err(); err != nil {
		s.DropsError = err.Error()
	}
	counts := a.enforcer.Objects()
	s.Objects = objectCounts{Pods: counts.Pods, LocalPods: counts.LocalPods, Namespaces: counts.Namespaces, Policies: counts.Policies}
	a.policyStatus(&s, all)
	return s
}

// policyStatus tells of the policies that select pods of this node, or of all.
func (a *agent) policyStatus(s *nodeStatus, all bool) {
	counts, err := a.enforcer.PolicyCounts()
	if err != nil {
		s.CountsError = err.Error()
	}
	counted := newTally(counts)
	s.Counts = counted.node
	for _, p := range a.enforcer.Policies() {
		if p.Pods == 0 && !all {
			continue
		}
		key := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
		v, last := a.inForce.of(key)
		s.Policies = append(s.Policies, policyStatus{
			Namespace: p.Namespace, Name: p.Name, Pods: p.Pods, InForce: last, Since: v.at, ResourceVersion: v.resourceVersion,
			verdictCounts: counted.policies[key],
		})
	}
}

// status is what /status says of pools.
func (p *pools) status() poolsStatus {
	if last := p.last.Load(); last != nil {
		return *last
	}
	return poolsStatus{Use: []poolUsed{}, Problems: []poolProblem{}} // nothing is known yet
}

func newPoolsStatus(now *policy.Pools, use policy.Use, found []finding) *poolsStatus {
	s := &poolsStatus{Implicit: now.Implicit, Use: []poolUsed{}, PodsOutside: len(use.Outside), Problems: []poolProblem{}}
	for _, l := range levels(use) {
		s.Use = append(s.Use, poolUsed{l.pool.Name, l.pool.Origin.String(), ipFamily(l.family), l.addresses, l.allocated})
	}
	for _, f := range found {
		s.Problems = append(s.Problems, poolProblem{f.pool.Name, f.pool.Origin.String(), poolReason(f.reason), f.text})
	}
	return s
}

// status is what /status says of bandwidth.
func (b *bandwidth) status() bandwidthStatus {
	s := bandwidthStatus{Enabled: b != nil, Pods: []shapedPod{}, Problems: []bandwidthProblem{}}
	if b == nil {
		return s
	}
	samples, err := b.shaper.Samples()
	if err != nil {
		s.Error = err.Error()
	}
	for _, p := range samples {
		s.Pods = append(s.Pods, shapedPod{
			Namespace: p.Pod.Namespace, Pod: p.Pod.Name, Direction: p.Direction.String(), LimitBytesPerSecond: uint64(p.Rate) / 8,
			Bytes: p.Counters.Bytes, Dropped: uint64(p.Counters.Drops), BacklogBytes: uint64(p.Counters.Backlog),
		})
	}
	last := b.last.Load()
	if last == nil {
		return s
	}
	s.Shaped = last.Shaped
	for _, p := range last.Problems {
		s.Problems = append(s.Problems, bandwidthProblem{p.Pod.Namespace, p.Pod.Name, "InvalidBandwidth", p.Annotation + ": " + p.Err.Error()})
	}
	for _, u := range last.Unshaped {
		s.Problems = append(s.Problems, bandwidthProblem{u.Pod.Key.Namespace, u.Pod.Key.Name, string(u.Reason), adviceFor(u)})
	}
	return s
}
