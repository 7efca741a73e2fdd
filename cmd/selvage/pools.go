package main

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-net/selvage/informer/api/calico"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
	"github.com/selvage-net/selvage/metrics"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/shaping"
)

// countInterval is the least time between two counts of the pools' addresses: each is
// a look at all pods of the cluster, during which no sync can go on.
const countInterval = 5 * time.Second

// The reasons of Events on pools.
const (
	reasonPoolInvalid       reason = "PoolInvalid"
	reasonPoolOverlap       reason = "PoolOverlap"
	reasonPoolHoldsNode     reason = "PoolHoldsNode"
	reasonPoolHoldsServices reason = "PoolHoldsServices"
	reasonPoolDisabledInUse reason = "PoolDisabledInUse"
	reasonPoolNearlyFull    reason = "PoolNearlyFull"
)

// poolReason is the reason of the Event on what is found.
func poolReason(r policy.PoolReason) reason {
	switch r {
	case policy.PoolInvalid:
	case policy.PoolOverlap:
		return reasonPoolOverlap
	case policy.PoolHoldsNode:
		return reasonPoolHoldsNode
	case policy.PoolHoldsServices:
		return reasonPoolHoldsServices
	case disabledInUse:
		return reasonPoolDisabledInUse
	case nearlyFull:
		return reasonPoolNearlyFull
	}
	return reasonPoolInvalid
}

// pools tells what is wrong with the pools of the cluster, and how much of them is in
// use.
type pools struct {
	metrics *metrics.Metrics
	node    string
	remarks remarks
	// changed has something in it if there is something to count.
	changed chan struct{}
	// full are those that were nearly full at the last count.
	full map[fullPool]bool
	// last is what was told last.
	last atomic.Pointer[poolsStatus]
}

// fullPool names the addresses of one family of a pool.
type fullPool struct {
	origin policy.Origin
	name   string
	family policy.Family
}

func newPools(log *slog.Logger, m *metrics.Metrics, node string) *pools {
	return &pools{
		metrics: m, node: node, changed: make(chan struct{}, 1),
		remarks: remarks{
			action: "Resolve", shared: true,
			appears: func(attributes ...any) { log.Warn("pool is not as it should be", attributes...) },
			over:    func(attributes ...any) { log.Info("pool is no longer in doubt", attributes...) },
		},
	}
}

// counter is who counts; see nft.Enforcer.
type counter interface {
	Pools() *policy.Pools
	PoolUse() policy.Use
}

// run counts whenever something has changed, until ctx ends.
func (p *pools) run(ctx context.Context, c counter) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.changed:
		}
		if !p.report(c.Pools(), c.PoolUse()) {
			p.poke() // some Events could not be made
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(countInterval):
		}
	}
}

// poke has the addresses be counted.
func (p *pools) poke() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// report tells how things are, and returns whether each problem has its Event.
func (p *pools) report(now *policy.Pools, use policy.Use) bool {
	if !resolved(now) {
		return true
	}
	full := make(map[fullPool]bool)
	found := findPoolProblems(now, use, func(l level) bool {
		key := fullPool{l.pool.Origin, l.pool.Name, l.family}
		if l.crowded() || p.full[key] && l.ratio() >= nearlyFullBelow {
			full[key] = true
		}
		return full[key]
	})
	p.full = full
	p.metrics.SetPools(poolNumbers(now, use, found))
	p.last.Store(newPoolsStatus(now, use, found))
	var all []remark
	for _, f := range found {
		// Each node's agent tells of its own podCIDRs: there may be many nodes.
		if f.pool.Origin != policy.OriginNode || f.pool.Name == p.node {
			all = append(all, poolRemark(f))
		}
	}
	return p.remarks.tell(all)
}

// resolved tells whether pools are known. Without objects the nodes' podCIDRs would be
// the pools.
func resolved(p *policy.Pools) bool { return p.Implicit || len(p.All) > 0 }

// poolRemark is what is said of a finding. Agents may see other numbers in it at the
// same time: where there are some, the gist is without.
func poolRemark(f finding) remark {
	r := remark{about: poolObject(f.pool), topic: f.topic, reason: string(poolReason(f.reason)), text: f.text}
	if f.reason == disabledInUse || f.reason == nearlyFull {
		r.gist = f.topic
	}
	return r
}

// poolObject refers to a pool or, if it has no object of its own, to its node.
func poolObject(p *policy.Pool) corev1.ObjectReference {
	switch p.Origin {
	case policy.OriginSelvage:
	case policy.OriginCalico:
		return corev1.ObjectReference{APIVersion: calico.GroupVersion.String(), Kind: "IPPool", Name: p.Name, UID: p.UID}
	case policy.OriginNode: // as in nodeNotice
		return corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: p.Name, UID: types.UID(p.Name)}
	}
	return corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "IPPool", Name: p.Name, UID: p.UID}
}

// poolNumbers are for the metrics.
func poolNumbers(now *policy.Pools, use policy.Use, found []finding) metrics.Pools {
	m := metrics.Pools{InForce: make(map[string]int), Problems: make(map[string]int), Outside: len(use.Outside)}
	for _, o := range []policy.Origin{policy.OriginSelvage, policy.OriginCalico, policy.OriginNode} {
		m.InForce[o.String()] = 0
	}
	for _, p := range now.All {
		if len(p.CIDRs) > 0 {
			m.InForce[p.Origin.String()]++
		}
	}
	for _, r := range poolReasons() {
		m.Problems[string(r)] = 0
	}
	for _, f := range found {
		m.Problems[string(f.reason)]++
	}
	for _, l := range levels(use) {
		u := metrics.PoolUse{Pool: l.pool.Name, Family: ipFamily(l.family), Addresses: l.addresses, Allocated: l.allocated}
		if l.pool.Origin == policy.OriginNode {
			u.Pool = ""
		}
		m.Use = append(m.Use, u)
	}
	return m
}

// defaultsOf returns what the pools in force say of the bandwidth of the pods on a
// node with these labels. Pools that say nothing are among them: a pod that has an
// address in one has no other.
func defaultsOf(p *policy.Pools, node policy.Labels) []shaping.Pool {
	if !slices.ContainsFunc(p.All, func(pool *policy.Pool) bool { return pool.Ingress != 0 || pool.Egress != 0 }) {
		return nil // as usual
	}
	all := make([]shaping.Pool, 0, len(p.All))
	for _, pool := range p.All {
		of := shaping.Pool{CIDRs: pool.CIDRs}
		if pool.On(node) {
			of.Limits[shaping.Ingress].Rate, of.Limits[shaping.Egress].Rate = shaping.Rate(pool.Ingress), shaping.Rate(pool.Egress)
		}
		all = append(all, of)
	}
	return all
}

// followPools has what depends on the pools follow them. syncing is held.
func (a *agent) followPools(deltas []policy.Delta) {
	now := a.enforcer.Pools()
	if !resolved(now) {
		return // the enforcer has not taken anything in yet
	}
	for _, d := range deltas {
		if _, ok := d.Object.(*policy.Pod); ok {
			a.pools.poke()
			break
		}
	}
	if now == a.resolved {
		return
	}
	a.resolved = now
	a.pools.poke()
	a.bandwidth.setPools(defaultsOf(now, a.local.labels))
	a.masquerade.setPools(now, a.local.labels)
}
