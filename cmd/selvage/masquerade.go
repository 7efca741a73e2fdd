package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/selvage-net/selvage/metrics"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nft"
	"github.com/selvage-net/selvage/policy/xtables"
)

// contradictionLasts is how long a contradiction must last before it is told: while
// somebody changes pools, one may come and go.
const contradictionLasts = 5 * time.Second

// masquerader is somebody else who masquerades what pods send in one family.
type masquerader struct {
	name   string
	family policy.Family
	// sign is by what it is recognised.
	sign string
	// sources are the addresses that it masquerades; nil if that is not known.
	sources []netip.Prefix
}

// masqueraders brings together what was found in nftables and in iptables-legacy, one
// for each name and family. Of the latter it is only known that there is a chain: that
// counts for the families given.
func masqueraders(found []nft.Masquerader, legacy []string, families []policy.Family) []masquerader {
	var all []masquerader
	add := func(m masquerader) {
		i := slices.IndexFunc(all, m.same)
		switch {
		case i < 0:
			all = append(all, m)
		case all[i].sources == nil || m.sources == nil:
			all[i].sources = nil
		default:
			all[i].sources = slices.Concat(all[i].sources, m.sources)
		}
	}
	for _, f := range found {
		add(masquerader{f.Name, f.Family, f.Place.String(), f.Sources})
	}
	for _, chain := range legacy {
		name := nft.MasqueraderOf(chain)
		for _, f := range families {
			if name != "" {
				add(masquerader{name, f, "chain " + chain + " of iptables-legacy", nil})
			}
		}
	}
	return all
}

func (m masquerader) same(o masquerader) bool { return m.name == o.name && m.family == o.family }

// overrules tells whether it masquerades addresses of a pool, whatever that says.
func (m masquerader) overrules(p *policy.Pool) bool {
	if m.name == "calico" && m.sources == nil {
		return false // its rules follow its own pools
	}
	return slices.ContainsFunc(p.CIDRs, func(c netip.Prefix) bool {
		return policy.FamilyOf(c.Addr()) == m.family && (m.sources == nil || slices.ContainsFunc(m.sources, c.Overlaps))
	})
}

// remedy says how to end it.
func (m masquerader) remedy() string {
	switch m.name {
	case "flannel":
		return "give flanneld --ip-masq=false and remove what it has left behind, as docs/pools.md says"
	case "cni-plugins":
		return `give the CNI plugins "ipMasq": false, and have the pods made anew`
	}
	return "end it there"
}

// masquerade watches over what keeps the pools' natOutgoing from being as it says: a
// kernel that cannot masquerade, and others who do it anyway. Its methods are safe for
// concurrent use.
type masquerade struct {
	log        *slog.Logger
	metrics    *metrics.Metrics
	conditions *conditions
	// unsupported is why the kernel cannot masquerade, or nil.
	unsupported error
	// known is closed when the pools are known for the first time.
	known chan struct{}

	mu     sync.Mutex // guards what follows
	pools  *policy.Pools
	node   policy.Labels
	others []masquerader
}

func newMasquerade(log *slog.Logger, m *metrics.Metrics, c *conditions) *masquerade {
	return &masquerade{log: log, metrics: m, conditions: c, known: make(chan struct{})}
}

// setPools says which pools are in force, on a node with these labels.
func (m *masquerade) setPools(p *policy.Pools, node policy.Labels) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pools == nil {
		close(m.known)
	}
	m.pools, m.node = p, node
	m.check()
}

// families are those of which pools in force have addresses.
func (m *masquerade) families() []policy.Family {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []policy.Family
	for _, f := range policy.Families {
		of := func(c netip.Prefix) bool { return policy.FamilyOf(c.Addr()) == f }
		if m.pools != nil && slices.ContainsFunc(m.pools.All, func(p *policy.Pool) bool { return slices.ContainsFunc(p.CIDRs, of) }) {
			all = append(all, f)
		}
	}
	return all
}

// setOthers says who else masquerades.
func (m *masquerade) setOthers(now []masquerader) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var shown []metrics.Masquerader
	for _, o := range now {
		shown = append(shown, metrics.Masquerader{By: o.name, Family: ipFamily(o.family)})
		if !slices.ContainsFunc(m.others, o.same) {
			m.log.Info("somebody else masquerades what pods send: what they have taken on is left to them",
				"by", o.name, "family", ipFamily(o.family), "recognisedBy", o.sign, "sources", fmt.Sprint(o.sources))
		}
	}
	for _, o := range m.others {
		if !slices.ContainsFunc(now, o.same) {
			m.log.Info("somebody else masquerades no more", "by", o.name, "family", ipFamily(o.family))
		}
	}
	m.others = now
	m.metrics.SetBaseMasquerade(shown)
	m.check()
}

// check tells of what contradicts the pools. mu is held.
func (m *masquerade) check() {
	if m.pools == nil {
		return
	}
	var wanted, unwanted []*policy.Pool
	for _, p := range m.pools.All {
		switch {
		case len(p.CIDRs) == 0 || p.Origin == policy.OriginNode: // podCIDRs say nothing of it
		case p.NATOutgoing && p.On(m.node):
			wanted = append(wanted, p)
		default:
			unwanted = append(unwanted, p)
		}
	}
	var now []condition
	if m.unsupported != nil && len(wanted) > 0 {
		now = append(now, condition{
			reason: reasonNoMasquerade, about: "natOutgoing",
			message: fmt.Sprintf("nothing is masqueraded of %s, though natOutgoing is true, because this kernel cannot: places outside of the cluster see the pods' addresses, "+
				"and mostly cannot answer; policies and bandwidth are in force: %v", namePools(wanted), m.unsupported),
		})
	}
	said := make(map[string]bool) // one condition for both families
	for _, o := range m.others {
		of := slices.DeleteFunc(slices.Clone(unwanted), func(p *policy.Pool) bool { return !o.overrules(p) })
		if len(of) == 0 || said[o.name] {
			continue
		}
		said[o.name] = true
		now = append(now, condition{
			reason: reasonBaseMasquerades, about: o.name, lasting: contradictionLasts,
			message: fmt.Sprintf("%s, recognised by %s, masquerades what leaves %s, where natOutgoing is not true for this node: that has no effect, "+
				"places outside of the cluster see the node's address; policies and bandwidth are in force: %s, or set natOutgoing: true",
				o.name, o.sign, namePools(of), o.remedy()),
		})
	}
	m.conditions.set("masquerade", now...)
}

// namePools names the first of some pools, and says how many there are.
func namePools(pools []*policy.Pool) string {
	name := fmt.Sprintf("the pool %s %v", pools[0].Name, pools[0].CIDRs)
	if more := len(pools) - 1; more > 0 {
		name += fmt.Sprintf(" and %d more", more)
	}
	return name
}

// followMasqueraders looks for others who masquerade, until ctx ends.
func (a *agent) followMasqueraders(ctx context.Context, interval time.Duration) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.masquerade.known:
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	failed := false
	for {
		err := a.lookForMasqueraders()
		if err != nil && !failed {
			a.log.Warn("cannot tell whether somebody else masquerades what pods send", "err", err)
		}
		failed = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// lookForMasqueraders looks once, by a connection of its own; see lookForEngines.
func (a *agent) lookForMasqueraders() (err error) {
	conn, err := nft.Open(nft.Options{Logger: a.log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	found, err := conn.Masqueraders()
	if err != nil {
		return err
	}
	legacy, err := xtables.Chains("nat")
	if err != nil {
		return err
	}
	a.masquerade.setOthers(masqueraders(found, legacy, a.masquerade.families()))
	return nil
}
