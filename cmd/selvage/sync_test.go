package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/informer/link"
	"github.com/selvage-net/selvage/metrics"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nft"

	networkingv1 "k8s.io/api/networking/v1"
)

// fakeEnforcer notes what it is told.
type fakeEnforcer struct {
	deltas    []policy.Delta
	resyncs   int
	problems  []policy.Problem
	asked     int // how often for the problems
	policies  []policy.PolicyPods
	tallied   nft.PolicyCounts
	pools     *policy.Pools
	counts    atomic.Int32 // how often the use of the pools was counted
	err       error
	uncounted error // of PolicyCounts
	during    func()
}

func (f *fakeEnforcer) Sync(_ context.Context, deltas []policy.Delta) (nft.Result, error) {
	f.deltas = append(f.deltas, deltas...)
	if f.during != nil {
		f.during()
	}
	return nft.Result{Generation: 3}, f.err
}

func (f *fakeEnforcer) Policies() []policy.PolicyPods           { return f.policies }
func (f *fakeEnforcer) PolicyCounts() (nft.PolicyCounts, error) { return f.tallied, f.uncounted }
func (f *fakeEnforcer) Resync()                                 { f.resyncs++ }
func (f *fakeEnforcer) Problems() []policy.Problem              { f.asked++; return f.problems }
func (f *fakeEnforcer) Objects() policy.Counts                  { return policy.Counts{Pods: 7} }
func (f *fakeEnforcer) PoolUse() policy.Use                     { f.counts.Add(1); return policy.Use{} }

// Pools are those without objects, unless there are some.
func (f *fakeEnforcer) Pools() *policy.Pools {
	if f.pools == nil {
		f.pools = &policy.Pools{Implicit: true}
	}
	return f.pools
}

// fakeBridges shows what it is given.
type fakeBridges struct {
	status link.Status
	checks int
	cidrs  int
	pods   int
}

func (f *fakeBridges) Want(cidrs []netip.Prefix, pods []netip.Addr) {
	f.cidrs, f.pods = len(cidrs), len(pods)
}
func (f *fakeBridges) Check() link.Status  { f.checks++; return f.status }
func (f *fakeBridges) Status() link.Status { return f.status }

// fakeAttachments takes what it is told.
type fakeAttachments struct{ pods []netip.Addr }

func (f *fakeAttachments) Want(pods []netip.Addr) { f.pods = pods }

func newTestAgent() (*agent, *fakeEnforcer, *fakeBridges) {
	c := defaultConfig()
	c.policy.NodeName = "worker"
	a := newAgent(c, slog.New(slog.DiscardHandler), metrics.New("test"))
	e, b := new(fakeEnforcer), &fakeBridges{status: link.Status{Checked: true}}
	a.enforcer, a.bridges, a.attachments = e, b, new(fakeAttachments)
	a.drops = newDrops(c.drops, "worker", nil, slog.New(slog.DiscardHandler))
	return a, e, b
}

var (
	thisNode = policy.Delta{Object: &policy.Node{Meta: policy.Meta{Name: "worker"}}}
	aPolicy  = policy.Delta{Object: &networkingv1.NetworkPolicy{}}
)

func batch(deltas ...policy.Delta) informer.Batch {
	return informer.Batch{Deltas: deltas, Received: slices.Repeat([]time.Time{time.Now()}, len(deltas))}
}

func initial(deltas ...policy.Delta) informer.Batch {
	b := batch(deltas...)
	b.Initial = true
	return b
}

// programmed is how many events the histograms have counted, by kind.
func programmed(t *testing.T, a *agent) string {
	t.Helper()
	families, err := a.metrics.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "selvage_policy_programming_duration_seconds" {
			text := ""
			for _, m := range f.GetMetric() {
				if n := m.GetHistogram().GetSampleCount(); n > 0 {
					text += fmt.Sprintf("%s %d ", m.GetLabel()[0].GetValue(), n)
				}
			}
			return text
		}
	}
	return ""
}

func names(deltas []policy.Delta) string {
	var n []string
	for _, d := range deltas {
		name := d.Object.GetObjectMeta().GetName()
		if d.Deleted {
			name = "-" + name
		}
		n = append(n, name)
	}
	return strings.Join(n, " ")
}

func TestReadiness(t *testing.T) {
	a, e, b := newTestAgent()
	check := func(when string, want ...string) {
		t.Helper()
		text := ""
		if err := a.ready(); err != nil {
			text = err.Error()
		}
		lines := strings.Split(text, "\n")
		if text == "" {
			lines = nil
		}
		if len(lines) != len(want) {
			t.Fatalf("%s: %q, want %q", when, lines, want)
		}
		for i := range want {
			if !strings.Contains(lines[i], want[i]) {
				t.Errorf("%s: %q, want %q", when, lines[i], want[i])
			}
		}
	}
	check("at the start", "not all come yet")
	e.err = errors.New("no luck")
	if err := a.sync(t.Context(), initial()); err == nil {
		t.Error("the sink hides the error")
	}
	check("after a failure", "no luck", "no Node named worker")
	e.err = nil
	if err := a.sync(t.Context(), batch(thisNode)); err != nil {
		t.Error(err)
	}
	check("in sync")
	b.status.Bridges = []link.Bridge{{Name: "cni0", Err: link.ErrNoFilter}, {Name: "cni1"}}
	check("uncovered", "bridge cni0")
	e.err = errors.New("no luck")
	_ = a.sync(t.Context(), batch())
	check("all at once", "no luck", "bridge cni0")
}

func TestHealth(t *testing.T) {
	a, e, _ := newTestAgent()
	var during error
	e.during = func() {
		a.mu.Lock()
		a.busy = a.busy.Add(-2 * stuckAfter)
		a.mu.Unlock()
		during = a.healthy()
	}
	if err := a.sync(t.Context(), initial()); err != nil {
		t.Fatal(err)
	}
	if during == nil {
		t.Error("healthy although a sync hangs")
	}
	if err := a.healthy(); err != nil {
		t.Errorf("unhealthy after it: %v", err)
	}
}

// TestLatency counts each event once, when it is in force.
func TestLatency(t *testing.T) {
	a, e, b := newTestAgent()
	for i, step := range []struct {
		b    informer.Batch
		err  error
		want string
	}{
		{initial(thisNode, aPolicy), nil, ""},
		{batch(aPolicy), nil, "networkpolicies 1 "},
		{batch(aPolicy, thisNode), errors.New("no luck"), "networkpolicies 1 "},
		{batch(aPolicy), errors.New("no luck"), "networkpolicies 1 "},
		{batch(), nil, "networkpolicies 3 nodes 1 "},
		{batch(), nil, "networkpolicies 3 nodes 1 "},
		{batch(localPod("a", "10.1.0.1"), policy.Delta{Object: &policy.Namespace{}}, policy.Delta{Object: &policy.Pool{}}, policy.Delta{Object: &policy.ServiceCIDR{}}), nil,
			"ippools 1 namespaces 1 networkpolicies 3 nodes 1 pods 1 servicecidrs 1 "},
		{informer.Batch{}, nil, "bridges 1 ippools 1 namespaces 1 networkpolicies 3 nodes 1 pods 1 servicecidrs 1 "},
	} {
		if e.err = step.err; step.b.Deltas == nil && step.b.Received == nil { // nothing but a bridge has come
			a.observeBridges(link.Status{})
			b.status.Bridges = []link.Bridge{{Name: "cni0"}}
		}
		_ = a.sync(t.Context(), step.b)
		if got := programmed(t, a); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
	for range 3 {
		e.err = errors.New("no luck")
		_ = a.sync(t.Context(), batch(slices.Repeat([]policy.Delta{aPolicy}, maxWaiting)...))
	}
	if len(a.waiting) != maxWaiting {
		t.Errorf("%d events wait, want no more than %d", len(a.waiting), maxWaiting)
	}
}

// TestBridgeDeltas has the enforcer told of each bridge once, before anything
// else is done.
func TestBridgeDeltas(t *testing.T) {
	a, e, b := newTestAgent()
	cni := link.Bridge{Name: "cni0"}
	if err := a.syncBridges(t.Context()); err != nil || b.checks > 0 || e.asked > 0 {
		t.Errorf("did something before the first sync: %v", err)
	}
	b.status.Bridges = []link.Bridge{cni}
	for i, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { return a.sync(t.Context(), initial(thisNode)) }, "worker cni0"},
		{func() error { return a.syncBridges(t.Context()) }, ""},
		{func() error { return a.sync(t.Context(), batch(thisNode)) }, "worker"},
		{func() error {
			b.status.Bridges = []link.Bridge{cni, {Name: "new"}}
			return a.syncBridges(t.Context())
		}, "new"},
		{func() error {
			b.status = link.Status{Checked: true, Err: errors.New("cannot look")}
			return a.syncBridges(t.Context())
		}, ""},
		{func() error {
			b.status = link.Status{Checked: true, Bridges: []link.Bridge{{Name: "new"}}}
			return a.sync(t.Context(), batch(thisNode))
		}, "worker -cni0"},
	} {
		e.deltas = nil
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := names(e.deltas); got != step.want {
			t.Errorf("step %d: told of %q, want %q", i, got, step.want)
		}
	}
	if b.checks != 1 {
		t.Errorf("looked %d times, want once, before the first sync", b.checks)
	}
}

// TestFollowBridges tries again until the enforcer has taken the bridge.
func TestFollowBridges(t *testing.T) {
	a, e, b := newTestAgent()
	a.retry = time.Millisecond
	if err := a.sync(t.Context(), initial(thisNode)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	tries := 0
	e.during = func() {
		if tries++; tries == 3 {
			e.err = nil
			cancel()
		}
	}
	e.err = errors.New("no luck")
	b.status.Bridges = []link.Bridge{{Name: "cni0"}}
	a.observeBridges(b.status)
	if err := a.followBridges(ctx); err != nil {
		t.Fatal(err)
	}
	if tries != 3 || a.lastFailure() != nil {
		t.Errorf("%d tries, and then %v", tries, a.lastFailure())
	}
	if err := testutil.GatherAndCompare(a.metrics.Gatherer(), strings.NewReader(`
		# HELP selvage_bridge_covered 1 if packets between two pods on the bridge meet the rules.
		# TYPE selvage_bridge_covered gauge
		selvage_bridge_covered{bridge="cni0"} 1
	`), "selvage_bridge_covered"); err != nil {
		t.Error(err)
	}
}

// TestReports asks for the problems when policies changed, and not for each pod.
func TestReports(t *testing.T) {
	a, e, _ := newTestAgent()
	for i, step := range []struct {
		b     informer.Batch
		err   error
		asked int
	}{
		{initial(thisNode), nil, 0},
		{batch(aPolicy), errors.New("no luck"), 1},
		{batch(thisNode), nil, 2},
		{batch(thisNode), nil, 2},
		{batch(thisNode, aPolicy), nil, 3},
	} {
		e.err = step.err
		_ = a.sync(t.Context(), step.b)
		if e.asked != step.asked {
			t.Errorf("step %d: asked %d times, want %d", i, e.asked, step.asked)
		}
	}
	resync := batch()
	resync.Resync = true
	if err := a.sync(t.Context(), resync); err != nil || e.resyncs != 1 {
		t.Errorf("%d resyncs, %v", e.resyncs, err)
	}
}

func TestReasons(t *testing.T) {
	for err, want := range map[error]metrics.Reason{
		nil:                         "",
		nft.ErrPermission:           metrics.ReasonPermission,
		nft.ErrUnknown:              metrics.ReasonUnknown,
		&nft.ObjectError{Op: "add"}: metrics.ReasonRefused,
		errors.New("anything"):      metrics.ReasonOther,
	} {
		if got := reasonOf(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}
