package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/selvage-net/selvage/metrics"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/shaping"
)

// told is a log and the Events of it.
type told struct {
	log    strings.Builder
	events []string
	refuse atomic.Bool
}

func (s *told) event(n notice) bool {
	if s.refuse.Load() {
		return false
	}
	s.events = append(s.events, fmt.Sprintf("%s %s %s %s: %s", n.about.APIVersion, n.about.Kind, n.about.Name, n.reason, n.note))
	return true
}

func (s *told) logger() *slog.Logger { return slog.New(slog.NewTextHandler(&s.log, nil)) }

// is compares with beginnings of the Events since the last call, and with the number of
// lines.
func (s *told) is(t *testing.T, when string, lines int, want ...string) {
	t.Helper()
	if got := strings.Count(s.log.String(), "\n"); got != lines {
		t.Errorf("%s: %d lines, want %d:\n%s", when, got, lines, s.log.String())
	}
	for i, got := range s.events {
		if i >= len(want) || !strings.HasPrefix(got, want[i]) {
			t.Errorf("%s: Event %q", when, got)
		}
	}
	if len(s.events) < len(want) {
		t.Errorf("%s: Events %q, want %q", when, s.events, want)
	}
	s.log.Reset()
	s.events = nil
}

func newTestPools(node string) (*pools, *told) {
	s := new(told)
	p := newPools(s.logger(), metrics.New("test"), node)
	p.remarks.event = s.event
	return p, s
}

// reportOf is a count of a cluster.
func reportOf(p *pools, s policy.Snapshot) bool {
	now := policy.Resolve(s.Pools, s.Nodes, s.Services)
	return p.report(now, now.Use(maps.All(policy.Owners(s.Pods))))
}

// TestPoolEvents tells of each problem once while it lasts.
func TestPoolEvents(t *testing.T) {
	p, s := newTestPools("n1")
	pool := &policy.Pool{Meta: policy.Meta{Name: "a", UID: "u"}, CIDRs: cidrs("10.1.0.0/24"), Created: 1}
	with := func(pods int, more ...*policy.Pool) policy.Snapshot {
		return policy.Snapshot{Pools: append(more, pool), Pods: podsAt("p", "10.1.0.0", pods)}
	}
	const ipPool = "selvage.dev/v1alpha1 IPPool "
	reportOf(p, with(230)) // 89.8 %
	s.is(t, "room", 0)
	reportOf(p, with(231))
	s.is(t, "nearly full", 1, ipPool+"a PoolNearlyFull: pods have 231 of the 256 IPv4 addresses of the pool: give the base CNI more")
	reportOf(p, with(240))
	reportOf(p, with(218)) // 85.2 %
	s.is(t, "still nearly full", 0)
	reportOf(p, with(217)) // 84.8 %
	s.is(t, "room again", 1)
	reportOf(p, with(225))
	s.is(t, "not nearly full again", 0)

	pool.Disabled = true
	reportOf(p, with(3))
	s.is(t, "disabled", 1, ipPool+"a PoolDisabledInUse: the pool is disabled, and pods have 3 of its addresses")
	reportOf(p, with(2))
	s.is(t, "still in use", 0)
	reportOf(p, with(0))
	s.is(t, "not in use", 1)

	overlapping := &policy.Pool{Meta: policy.Meta{Name: "b"}, Origin: policy.OriginCalico, CIDRs: cidrs("10.0.0.0/8"), Created: 2}
	garbled := &policy.Pool{Meta: policy.Meta{Name: "c"}, Err: errors.New("spec.cidrs[0]: no block"), Created: 3}
	s.refuse.Store(true)
	if reportOf(p, with(0, overlapping, garbled)) {
		t.Error("no Event is taken for all Events")
	}
	s.is(t, "too many Events", 2)
	s.refuse.Store(false)
	if !reportOf(p, with(0, overlapping, garbled)) {
		t.Error("all Events are taken for some")
	}
	s.is(t, "later", 0,
		ipPool+"c PoolInvalid: spec.cidrs[0]: no block; nothing of the pool is in force",
		"crd.projectcalico.org/v1 IPPool b PoolOverlap: 10.0.0.0/8 overlaps 10.1.0.0/24 of the pool a (selvage)")
	if p.report(&policy.Pools{}, policy.Use{}); s.log.Len() > 0 {
		t.Errorf("it is over since nothing is known: %s", s.log.String())
	}
	reportOf(p, with(0))
	s.is(t, "put right", 2)
}

// TestPodCIDREvents has each agent tell of its own node alone.
func TestPodCIDREvents(t *testing.T) {
	cluster := policy.Snapshot{
		Nodes: []*policy.Node{{Meta: policy.Meta{Name: "n1"}, PodCIDRs: cidrs("10.1.0.0/28")}, {Meta: policy.Meta{Name: "n2"}, PodCIDRs: cidrs("10.1.0.16/28")}},
		Pods:  podsAt("p", "10.1.0.0", 32),
	}
	p, s := newTestPools("n2")
	reportOf(p, cluster)
	s.is(t, "both are full", 1, "v1 Node n2 PoolNearlyFull: pods have 16 of the 16 IPv4 addresses of the node's podCIDRs")
	if n := metricSum(t, p.metrics, "selvage_pool_problems"); n != 2 {
		t.Errorf("%v problems in the metric, want those of both nodes", n)
	}
}

// TestPoolMetrics counts what there is.
func TestPoolMetrics(t *testing.T) {
	p, _ := newTestPools("n1")
	s := mixedPools()
	reportOf(p, s)
	for name, want := range map[string]float64{
		"selvage_pools": 5, "selvage_pool_problems": 7, "selvage_pods_outside_pools": 12, "selvage_pool_allocated_addresses": 20,
	} {
		if got := metricSum(t, p.metrics, name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if n := metricSum(t, p.metrics, "selvage_pool_addresses"); n != 1<<80+65536+256+256+256+16 {
		t.Errorf("%v addresses", n)
	}
}

// TestPoolPace counts at once when something changes after a pause, and else with a
// pause; and again as long as there are Events to be made.
func TestPoolPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := newTestPools("n1")
		e := &fakeEnforcer{pools: policy.Resolve([]*policy.Pool{{Meta: policy.Meta{Name: "a"}, Err: errors.New("wrong")}}, nil, nil)}
		counts := func(want int) {
			t.Helper()
			synctest.Wait()
			if got := int(e.counts.Load()); got != want {
				t.Errorf("counted %d times, want %d", got, want)
			}
		}
		go func() {
			if err := p.run(t.Context(), e); err != nil {
				t.Error(err)
			}
		}()
		time.Sleep(time.Hour)
		counts(0)
		s.refuse.Store(true)
		for range 3 {
			p.poke()
			counts(1)
		}
		time.Sleep(countInterval)
		counts(2)
		s.refuse.Store(false)
		time.Sleep(countInterval)
		counts(3)
		s.is(t, "as soon as it may", 1, "selvage.dev/v1alpha1 IPPool a PoolInvalid")
		time.Sleep(time.Hour)
		counts(3)
		p.poke()
		counts(4)
	})
}

// TestPoolDefaults has the limits of pools apply where they are in force and meant.
func TestPoolDefaults(t *testing.T) {
	zone, err := labels.Parse("zone=a")
	if err != nil {
		t.Fatal(err)
	}
	p := policy.Resolve([]*policy.Pool{
		{Meta: policy.Meta{Name: "all"}, Created: 1, CIDRs: cidrs("10.1.0.0/24", "10.2.0.0/24"), Ingress: 1_000_000},
		{Meta: policy.Meta{Name: "zone"}, Created: 2, CIDRs: cidrs("10.3.0.0/24"), Egress: 2_000_000, Nodes: zone, Disabled: true},
		{Meta: policy.Meta{Name: "none"}, Created: 3, CIDRs: cidrs("10.4.0.0/24")},
		{Meta: policy.Meta{Name: "over"}, Created: 4, CIDRs: cidrs("10.1.0.0/16"), Egress: 3_000_000},
	}, nil, nil)
	all := shaping.Pool{CIDRs: cidrs("10.1.0.0/24", "10.2.0.0/24"), Limits: shaping.Limits{shaping.Ingress: {Rate: 1_000_000}}}
	elsewhere, none, over := shaping.Pool{CIDRs: cidrs("10.3.0.0/24")}, shaping.Pool{CIDRs: cidrs("10.4.0.0/24")}, shaping.Pool{Limits: shaping.Limits{shaping.Egress: {Rate: 3_000_000}}}
	of := shaping.Pool{CIDRs: cidrs("10.3.0.0/24"), Limits: shaping.Limits{shaping.Egress: {Rate: 2_000_000}}}
	for _, tt := range []struct {
		node policy.Labels
		want []shaping.Pool
	}{
		{policy.NewLabels(map[string]string{"zone": "a"}), []shaping.Pool{all, of, none, over}},
		{policy.NewLabels(map[string]string{"zone": "b"}), []shaping.Pool{all, elsewhere, none, over}},
		{nil, []shaping.Pool{all, elsewhere, none, over}},
	} {
		if diff := cmp.Diff(tt.want, defaultsOf(p, tt.node), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.node, diff)
		}
	}
}

// TestFollowPools tells of pools when they or pods have changed, and not before they
// are known.
func TestFollowPools(t *testing.T) {
	a, e, _ := newTestAgent()
	poked := func() bool {
		select {
		case <-a.pools.changed:
			return true
		default:
			return false
		}
	}
	e.pools = &policy.Pools{}
	if err := a.sync(t.Context(), initial(thisNode)); err != nil {
		t.Fatal(err)
	}
	if poked() || a.resolved != nil {
		t.Error("counts before anything is known")
	}
	first := &policy.Pools{Implicit: true}
	for i, step := range []struct {
		pools *policy.Pools
		delta policy.Delta
		want  bool
	}{
		{first, aPolicy, true}, {first, aPolicy, false}, {first, localPod("a", "10.1.0.1"), true}, {&policy.Pools{Implicit: true}, aPolicy, true},
	} {
		e.pools = step.pools
		if err := a.sync(t.Context(), batch(step.delta)); err != nil {
			t.Fatal(err)
		}
		if got := poked(); got != step.want || a.resolved != step.pools {
			t.Errorf("step %d: counts: %v, want %v", i, got, step.want)
		}
	}
}
