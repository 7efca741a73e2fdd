package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-net/selvage/informer/link"
	"github.com/selvage-net/selvage/metrics"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/shaping"
	"github.com/selvage-net/selvage/shaping/tc"
)

// shapingConfig is what the agent can be told of the bandwidth of pods.
type shapingConfig struct {
	enabled  bool
	defaults shaping.Limits
	// exclude are blocks of addresses: traffic with them is not shaped.
	exclude  []netip.Prefix
	takeOver bool
	// perPod has the metrics tell pods apart.
	perPod bool
	// netns are the directories of the files that lead to the pods' namespaces.
	netns []string
}

// bandwidth has the shaper follow what the informer brings, and tells of what it
// cannot do.
type bandwidth struct {
	log     *slog.Logger
	metrics *metrics.Metrics
	node    string
	shaper  shaper
	finder  *link.Finder
	remarks remarks
	// last is what the shaper told last.
	last atomic.Pointer[tc.Status]

	// pooled is true once the shaper knows the pools. What came before waits in
	// early, or pods would be without the limits of their pools for a moment.
	pooled bool
	pools  []shaping.Pool
	early  []policy.Delta
}

// newBandwidth returns nil if the kernel has no traffic control, or it is not
// wanted. That is said, and does not stop the agent: policy goes on.
func (a *agent) newBandwidth(c config) *bandwidth {
	if !c.shaping.enabled {
		return nil
	}
	b := &bandwidth{log: a.log, metrics: a.metrics, node: c.policy.NodeName, remarks: bandwidthRemarks(a.log, a.event)}
	if err := b.open(c); err != nil {
		a.noBandwidth("start", err)
		return nil
	}
	a.metrics.ReadBandwidth(b.samples, c.shaping.perPod)
	return b
}

// shaper is what bandwidth needs of *tc.Shaper.
type shaper interface {
	Change(func(*shaping.Model))
	Suspect(tc.Change)
	Look()
	Run(context.Context) error
	Ready() bool
	Samples() ([]tc.Sample, error)
	Close() error
}

func bandwidthRemarks(log *slog.Logger, event func(notice) bool) remarks {
	return remarks{
		event: event, action: "Shape",
		appears: func(attributes ...any) { log.Warn("bandwidth is not limited as it is written", attributes...) },
		over:    func(attributes ...any) { log.Info("bandwidth is no longer in doubt", attributes...) },
	}
}

// noBandwidth tells that bandwidth is not shaped, because some part of it failed; or
// that this is over, if err is nil.
func (a *agent) noBandwidth(part string, err error) {
	if err == nil {
		a.conditions.set(topic("bandwidth " + part))
		return
	}
	a.conditions.set(topic("bandwidth "+part), condition{
		reason: reasonNoBandwidth, about: part,
		message: "changes of the pods' bandwidth are not put in force on this node: " + err.Error() + ", or give the agent --bandwidth=false",
	})
}

// bandwidthPause is the time after which is tried again what watches over bandwidth, and
// for which it must not fail to be taken for working.
const bandwidthPause = 5 * time.Second

// persist runs a part until ctx ends, again and again if it fails: whatever is the
// matter with bandwidth, policy goes on.
func (a *agent) persist(ctx context.Context, part string, f func(context.Context) error) error {
	for ctx.Err() == nil {
		works := time.AfterFunc(bandwidthPause, func() { a.noBandwidth(part, nil) })
		err := f(ctx)
		works.Stop()
		if ctx.Err() == nil {
			a.noBandwidth(part, fmt.Errorf("%w: it is tried again", err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(bandwidthPause):
		}
	}
	return nil
}

func (b *bandwidth) open(c config) (err error) {
	if b.finder, err = link.NewFinder(link.FinderOptions{Dirs: c.shaping.netns, Logger: b.log}); err != nil {
		return fmt.Errorf("%w: see to it that the directories of --netns-dir can be read, and that the kernel is Linux 4.20 or later", err)
	}
	s, err := tc.New(tc.Options{
		Logger: b.log, Find: b.find, Defaults: c.shaping.defaults, Exclude: c.shaping.exclude,
		TakeOver: c.shaping.takeOver, ResyncInterval: c.resyncInterval, Observe: b.observe,
	})
	if err != nil {
		return fmt.Errorf("%w: give the kernel traffic control (CONFIG_NET_SCHED, sch_tbf, sch_ingress, cls_u32, act_mirred, ifb)",
			errors.Join(err, b.finder.Close()))
	}
	b.shaper = s
	return nil
}

func (b *bandwidth) close() error {
	if b == nil {
		return nil
	}
	return errors.Join(b.shaper.Close(), b.finder.Close())
}

// run shapes until ctx ends.
func (b *bandwidth) run(ctx context.Context) error { return b.shaper.Run(ctx) }

// follow tells the shaper of interfaces that come, go and change, until ctx ends.
func (b *bandwidth) follow(ctx context.Context) error {
	return b.finder.Run(ctx, func(c link.LinkChange) {
		if !c.Namespaces {
			b.shaper.Suspect(tc.Change{Index: c.Index, Port: c.PortID})
		}
		if !c.Gone {
			b.shaper.Look()
		}
	})
}

// find finds where a pod's traffic passes: at the node's end of its veth or, if it has
// another kind of interface, in its own namespace.
func (b *bandwidth) find(addrs []netip.Addr) (shaping.Interface, error) {
	f, err := b.finder.Find(addrs)
	if err != nil {
		return shaping.Interface{}, err
	}
	at, end := shaping.Interface{NetNS: f.NetNS.Path, NetNSInode: f.NetNS.Inode}, f.Pod
	if f.Host != nil {
		at, end = shaping.Interface{}, *f.Host
	}
	at.Index, at.Name, at.Frame = end.Index, end.Name, end.MTU
	if end.Ethernet {
		at.Frame += shaping.EthernetHeader
	}
	return at, nil
}

// update tells the shaper what is new, once it knows the pools. The first call has
// everything.
func (b *bandwidth) update(deltas []policy.Delta) {
	switch {
	case b == nil:
	case !b.pooled:
		b.early = append(b.early, deltas...)
	default:
		b.shaper.Change(func(m *shaping.Model) { b.change(m, deltas) })
	}
}

// setPools tells the shaper what the pools say, if that is new: it looks at all pods
// then.
func (b *bandwidth) setPools(pools []shaping.Pool) {
	same := func(p, o shaping.Pool) bool { return p.Limits == o.Limits && slices.Equal(p.CIDRs, o.CIDRs) }
	if b == nil || b.pooled && slices.EqualFunc(b.pools, pools, same) {
		return
	}
	early := b.early
	b.pooled, b.pools, b.early = true, pools, nil
	b.shaper.Change(func(m *shaping.Model) {
		m.SetPools(pools)
		b.change(m, early)
	})
}

// change tells a model of pods and namespaces.
func (b *bandwidth) change(m *shaping.Model, deltas []policy.Delta) {
	for _, d := range deltas {
		switch o := d.Object.(type) {
		case *policy.Namespace:
			if d.Deleted {
				m.SetNamespace(o.Name, nil)
			} else {
				m.SetNamespace(o.Name, o.Annotations)
			}
		case *policy.Pod:
			key := shaping.Key{Namespace: o.Namespace, Name: o.Name}
			if o.Node != b.node {
				continue
			}
			if d.Deleted || o.Finished {
				m.RemovePod(key)
				continue
			}
			m.SetPod(shaping.Pod{
				Key: key, UID: string(o.UID), Addrs: o.Addrs, HostNetwork: o.HostNetwork, Created: o.Created, Annotations: o.Annotations,
			})
		}
	}
}

// ready says whether the pods are shaped for the first time.
func (b *bandwidth) ready() error {
	if b == nil || b.shaper.Ready() {
		return nil
	}
	return errors.New("the bandwidth of the pods is not shaped yet")
}

// samples are for the metrics.
func (b *bandwidth) samples() ([]metrics.Bandwidth, error) {
	samples, err := b.shaper.Samples()
	found := make([]metrics.Bandwidth, 0, len(samples))
	for _, s := range samples {
		found = append(found, metrics.Bandwidth{
			Namespace: s.Pod.Namespace, Pod: s.Pod.Name, Direction: s.Direction.String(),
			Bytes: s.Counters.Bytes, Packets: s.Counters.Packets, Drops: uint64(s.Counters.Drops), Overlimits: uint64(s.Counters.Overlimits),
			BacklogBytes: float64(s.Counters.Backlog), LimitBytesPerSecond: float64(s.Rate) / 8,
		})
	}
	return found, err
}

// unshapedReasons are those that the metric has.
func unshapedReasons() []tc.Reason {
	return []tc.Reason{tc.NoInterface, tc.HostNetwork, tc.ForeignQdisc, tc.NoPermission, tc.Refused}
}

// observe is told by the shaper how things are.
func (b *bandwidth) observe(s tc.Status) {
	m := metrics.ShapingStatus{
		Shaped: s.Shaped, Invalid: len(s.Problems), Unshaped: make(map[string]int), Repaired: s.Repaired, Failed: s.Failed,
	}
	for _, r := range unshapedReasons() {
		m.Unshaped[string(r)] = 0
	}
	var remarks []remark
	for _, p := range s.Problems {
		remarks = append(remarks, remark{
			about: objectOf(p.Pod, p.UID), topic: p.Annotation, reason: "InvalidBandwidth",
			text: p.Err.Error() + "; what was in force before, or else the default, stays in force",
		})
	}
	for _, u := range s.Unshaped {
		m.Unshaped[string(u.Reason)]++
		remarks = append(remarks, remark{
			about: objectOf(u.Pod.Key, u.Pod.UID), topic: "interface", reason: "BandwidthNotShaped",
			text: "the pod's bandwidth is not limited: " + adviceFor(u),
		})
	}
	b.metrics.SetShaping(m)
	b.last.Store(&s)
	b.remarks.tell(remarks) // what has no Event yet gets it with the next round
}

// adviceFor says what is the matter, and what to do.
func adviceFor(u tc.Unshaped) string {
	switch u.Reason {
	case tc.NoInterface:
		if !errors.Is(u.Err, link.ErrNotFound) {
			return u.Err.Error() + ": remove the address, or the network namespace, that is left over or added by hand"
		}
		return u.Err.Error() + ": the agent finds interfaces by the files in --netns-dir, which it must see as the container runtime does (/run/netns of the node)"
	case tc.NoPermission:
		return u.Err.Error() + ": its interface is in its own network namespace (macvlan, ipvlan, VLAN or a physical one): give the agent the capability SYS_ADMIN to reach it"
	case tc.Refused:
		return u.Err.Error() + ": it is tried again; `tc qdisc show` and `tc filter show` on the node tell what is there"
	case tc.HostNetwork, tc.ForeignQdisc:
	}
	return u.Err.Error()
}

// objectOf refers to a pod or, if it has no name, to a namespace.
func objectOf(k shaping.Key, uid string) corev1.ObjectReference {
	if k.Name == "" {
		return corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: k.Namespace, UID: types.UID(uid)}
	}
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: k.Namespace, Name: k.Name, UID: types.UID(uid)}
}
