package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/informer/link"
	"github.com/selvage-net/selvage/metrics"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nft"
)

// stuckAfter is how long one sync may take before /healthz says that the agent
// hangs.
const stuckAfter = 2 * time.Minute

// maxWaiting bounds the events whose latency is still to be measured while
// syncs fail.
const maxWaiting = 10000

// agent ties the parts together: what the informer brings and the bridges that
// are found go to the enforcer, and how that went to the metrics and the
// probes.
type agent struct {
	log      *slog.Logger
	metrics  *metrics.Metrics
	enforcer enforcer
	bridges  bridges
	// attachments, conditions and source watch over what may be wrong with the
	// node and the cluster.
	attachments attachments
	conditions  *conditions
	// bandwidth is nil if it is not shaped.
	bandwidth *bandwidth
	// pools and masquerade watch over the pools of addresses.
	pools      *pools
	masquerade *masquerade
	// event, if it is set, makes an Event; see recorder.send.
	event  func(notice) bool
	source *source
	// begun is when the agent was made.
	begun time.Time
	// drops tells of packets that policy denies.
	drops      *drops
	inForce    inForce
	readySince lasting
	// retry is the pause after a sync for the bridges' sake that failed.
	retry time.Duration
	// bridgesChanged has something in it if the bridges are to be synced.
	bridgesChanged chan struct{}

	// syncing is held during a sync, and guards what follows.
	syncing  sync.Mutex
	started  bool // there was a first sync, successful or not
	local    localPods
	known    map[string]bool // the bridges that the enforcer was told of
	problems problems
	policies bool          // a policy changed, and its problems may not be known yet
	resolved *policy.Pools // the pools that all but the enforcer was told of
	waiting  []event       // those that are not in force yet

	mu sync.Mutex
	// busy is when the sync that is going on began; zero if none is.
	busy time.Time
	// complete is true once everything was in force.
	complete bool
	// failed is why the last sync did not succeed.
	failed error
	// homeless is true if the source has no Node with this node's name.
	homeless bool
	// looked is when the bridges were last looked at.
	looked time.Time
	// generation is the one in force, lastSync when the last sync succeeded.
	generation uint32
	lastSync   time.Time
}

// enforcer is what the agent needs of *nft.Enforcer.
type enforcer interface {
	Sync(ctx context.Context, deltas []policy.Delta) (nft.Result, error)
	Resync()
	Problems() []policy.Problem
	Objects() policy.Counts
	Policies() []policy.PolicyPods
	PolicyCounts() (nft.PolicyCounts, error)
	counter
}

// bridges is what the agent needs of *link.Bridges.
type bridges interface {
	Want(cidrs []netip.Prefix, pods []netip.Addr)
	Check() link.Status
	Status() link.Status
}

// attachments is what the agent needs of *link.Attachments.
type attachments interface {
	Want(pods []netip.Addr)
}

func newAgent(c config, log *slog.Logger, m *metrics.Metrics) *agent {
	conditions := newConditions(log, m)
	return &agent{
		log: log, metrics: m, retry: time.Second, begun: time.Now(),
		conditions:     conditions,
		pools:          newPools(log, m, c.policy.NodeName),
		masquerade:     newMasquerade(log, m, conditions),
		source:         newSource(conditions),
		bridgesChanged: make(chan struct{}, 1),
		local:          localPods{node: c.policy.NodeName},
		known:          make(map[string]bool),
		problems:       problems{log: log},
	}
}

// sync is the informer's sink.
func (a *agent) sync(ctx context.Context, b informer.Batch) error {
	a.syncing.Lock()
	defer a.syncing.Unlock()
	a.bandwidth.update(b.Deltas)
	if a.local.update(b.Deltas) || b.Initial {
		addrs := a.local.addrs()
		a.bridges.Want(a.local.cidrs, addrs)
		a.attachments.Want(addrs)
		a.checkPodCIDRs()
	}
	if b.Initial {
		// The rules depend on the bridges: without them the first sync would
		// take away what the agent before had put in force.
		a.bridges.Check()
	} else {
		for i, d := range b.Deltas {
			a.await(d, b.Received[i])
		}
	}
	return a.apply(ctx, b.Deltas, b.Resync)
}

// followBridges has the rules follow the bridges until ctx ends.
func (a *agent) followBridges(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.bridgesChanged:
		}
		if a.syncBridges(ctx) == nil {
			continue
		}
		select { // the informer's next call may do it, or fail and log it, before
		case <-ctx.Done():
			return nil
		case <-time.After(a.retry):
			a.pokeBridges()
		}
	}
}

// syncBridges syncs if the bridges, or the last sync, make that necessary.
func (a *agent) syncBridges(ctx context.Context) error {
	a.syncing.Lock()
	defer a.syncing.Unlock()
	if !a.started || len(a.bridgeDeltas()) == 0 && a.lastFailure() == nil {
		return nil // nothing is written before the first sync, which looks itself
	}
	return a.apply(ctx, nil, false)
}

// bridgeDeltas returns what the enforcer does not know yet of the bridges.
func (a *agent) bridgeDeltas() []policy.Delta {
	status := a.bridges.Status()
	if !status.Checked || status.Err != nil {
		return nil // what was there may still be
	}
	var deltas []policy.Delta
	there := make(map[string]bool, len(status.Bridges))
	for _, b := range status.Bridges {
		there[b.Name] = true
		if !a.known[b.Name] {
			deltas = append(deltas, bridgeDelta(b.Name, false))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.known)) {
		if !there[name] {
			deltas = append(deltas, bridgeDelta(name, true))
		}
	}
	return deltas
}

func bridgeDelta(name string, gone bool) policy.Delta {
	return policy.Delta{Object: &policy.Bridge{Meta: policy.Meta{Name: name}}, Deleted: gone}
}

// apply brings deltas, and what is new of the bridges, into force. syncing is
// held.
func (a *agent) apply(ctx context.Context, deltas []policy.Delta, compare bool) error {
	for _, d := range a.bridgeDeltas() {
		deltas = append(deltas, d)
		if a.started {
			a.await(d, a.lastLook())
		}
		if name := d.Object.GetObjectMeta().GetName(); d.Deleted {
			delete(a.known, name)
		} else {
			a.known[name] = true
		}
	}
	a.inForce.come(deltas)
	began := time.Now()
	a.setBusy(began)
	if compare {
		a.enforcer.Resync()
	}
	// A signal does not end a sync half-way: what it has begun is in force
	// sooner than the next agent is there.
	result, err := a.enforcer.Sync(context.WithoutCancel(ctx), deltas)
	at := time.Now()
	a.started = true
	a.followPools(deltas)
	a.reportObjects(deltas, err)
	a.setDone(result.Generation, at, err)
	a.reportSync(result, err, at, at.Sub(began))
	return err
}

// reportObjects tells of what is known, and of what is wrong with it.
func (a *agent) reportObjects(deltas []policy.Delta, err error) {
	counts := a.enforcer.Objects()
	a.metrics.SetObjects("pods", counts.Pods)
	a.metrics.SetObjects("local_pods", counts.LocalPods)
	a.metrics.SetObjects("namespaces", counts.Namespaces)
	a.metrics.SetObjects("nodes", counts.Nodes)
	a.metrics.SetObjects("networkpolicies", counts.Policies)
	if err == nil { // else they are not in the kernel
		a.metrics.SetRuleset(metrics.Ruleset{
			Signatures: counts.Signatures, Chains: counts.Chains, Rules: counts.Rules,
			Sets: counts.Sets, Elements: counts.Elements, Counters: counts.Counters,
		})
	}
	// To ask for the problems is to look at all policies: not for each pod.
	a.policies = a.policies || slices.ContainsFunc(deltas, isPolicy)
	if a.policies {
		a.metrics.SetInvalidPolicies(a.problems.set(a.enforcer.Problems()))
		a.policies = err != nil // it may not have compiled them yet
	}
}

// event is something that has changed.
type event struct {
	kind string // as the metrics have it
	came time.Time
}

// await notes a change whose latency is to be measured. syncing is held.
func (a *agent) await(d policy.Delta, came time.Time) {
	a.waiting = append(a.waiting, event{latencyKind(d.Object), came})
	a.waiting = a.waiting[max(0, len(a.waiting)-maxWaiting):]
}

// latencyKind is one of metrics.LatencyKinds.
func latencyKind(o policy.Object) string {
	switch o.(type) {
	case *policy.Pod:
		return "pods"
	case *policy.Namespace:
		return "namespaces"
	case *policy.Node:
		return "nodes"
	case *policy.Bridge:
		return "bridges"
	case *policy.Pool:
		return "ippools"
	case *policy.ServiceCIDR:
		return "servicecidrs"
	}
	return "networkpolicies"
}

func (a *agent) lastLook() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.looked
}

func isPolicy(d policy.Delta) bool {
	_, ok := d.Object.(*networkingv1.NetworkPolicy)
	return ok
}

// reportSync tells how a sync went. Errors are logged by the informer.
func (a *agent) reportSync(r nft.Result, err error, at time.Time, took time.Duration) {
	s := metrics.Sync{
		Failed: reasonOf(err), Duration: took, Batches: r.Batches, Messages: r.Messages, At: at,
		Generation: r.Generation, Tightened: r.Tightened, Repaired: r.Repaired,
	}
	if err == nil {
		for _, e := range a.waiting {
			s.Latencies = append(s.Latencies, metrics.Latency{Kind: e.kind, Took: at.Sub(e.came)})
		}
		a.waiting = nil
	}
	a.metrics.Synced(s)
	if r.Messages > 0 {
		a.log.Debug("rules changed", "messages", r.Messages, "elements", r.Elements, "generation", r.Generation,
			"tightened", r.Tightened, "took", took.Round(time.Microsecond), "events", len(s.Latencies))
	}
}

// reasonOf sorts errors into those that an operator can tell apart.
func reasonOf(err error) metrics.Reason {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, nft.ErrPermission):
		return metrics.ReasonPermission
	case errors.Is(err, nft.ErrRefused):
		return metrics.ReasonRefused
	case errors.Is(err, nft.ErrUnknown):
		return metrics.ReasonUnknown
	}
	return metrics.ReasonOther
}

func (a *agent) setBusy(since time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy = since
}

// setDone notes how a sync went that ended at some time.
func (a *agent) setDone(generation uint32, at time.Time, err error) {
	if err == nil {
		a.inForce.arrive(at)
	}
	a.mu.Lock()
	a.generation = generation
	if err == nil {
		a.lastSync = at
	}
	first := err == nil && !a.complete
	a.busy, a.failed, a.homeless = time.Time{}, err, !a.local.here
	a.complete = a.complete || err == nil
	homeless := a.homeless
	a.mu.Unlock()
	_ = a.ready() // when that changes is remembered
	if first {
		// To have read everything at once has left much behind. It would be
		// given back by and by; the node has better uses for it.
		go debug.FreeOSMemory()
		a.log.Info("everything is in force", "pods", len(a.local.pods), "podCIDRs", fmt.Sprint(a.local.cidrs))
		if homeless {
			a.log.Error("the source has no such Node: its unknown pods cannot be kept closed, and if the name is wrong nothing is enforced",
				"node", a.local.node)
		}
	}
}

func (a *agent) lastFailure() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failed
}

// healthy tells whether the loop goes round.
func (a *agent) healthy() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if since := time.Since(a.busy); !a.busy.IsZero() && since > stuckAfter {
		return fmt.Errorf("a sync hangs, for %v now", since.Round(time.Second))
	}
	return nil
}

// ready tells whether everything desired is in force, or all that is missing.
func (a *agent) ready() error {
	err := a.missing()
	a.readySince.note(err == nil)
	return err
}

// missing joins what is missing for everything desired to be in force.
func (a *agent) missing() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	switch {
	case a.failed != nil:
		errs = append(errs, fmt.Errorf("the rules are not as desired: %w", a.failed))
	case !a.complete:
		return a.source.missing()
	}
	if a.homeless {
		errs = append(errs, fmt.Errorf("the source has no Node named %s", a.local.node))
	}
	return errors.Join(append(errs, a.bridges.Status().Uncovered(), a.conditions.unready(), a.bandwidth.ready())...)
}

// observeBridges is told by link.Bridges after each look.
func (a *agent) observeBridges(s link.Status) {
	bridges := make([]metrics.Bridge, 0, len(s.Bridges))
	for _, b := range s.Bridges {
		bridges = append(bridges, metrics.Bridge{Name: b.Name, Covered: b.Err == nil})
	}
	a.metrics.SetBridges(bridges, s.Uncovered() != nil)
	a.mu.Lock()
	a.looked = time.Now()
	a.mu.Unlock()
	a.pokeBridges()
}

func (a *agent) pokeBridges() {
	select {
	case a.bridgesChanged <- struct{}{}:
	default:
	}
}
