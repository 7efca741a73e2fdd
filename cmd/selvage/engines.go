package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/selvage-net/selvage/informer/link"
	"github.com/selvage-net/selvage/policy/nft"
	"github.com/selvage-net/selvage/policy/xtables"
)

// engine is another implementation of policy, and what gives it away on a node.
// Its pods do not: k3s and k0s have kube-router in a binary of their own.
type engine struct {
	// name is short and fixed: the metric has it.
	name string
	// tables are nftables tables, as family and name.
	tables []nft.Place
	// chain is the one that the chain FORWARD of iptables jumps to for it.
	chain string
	// link is a network interface.
	link string
}

// engines are those that are known.
func engines() []engine {
	return []engine{
		{name: "kube-network-policies", tables: []nft.Place{{Family: "inet", Table: "kube-network-policies"}}},
		{name: "kindnet", tables: []nft.Place{{Family: "inet", Table: "kindnet-network-policies"}}},
		{name: "kube-router", chain: "KUBE-ROUTER-FORWARD",
			tables: []nft.Place{{Family: "ip", Table: "kube-router-filter-ipv4"}, {Family: "ip6", Table: "kube-router-filter-ipv6"}}},
		{name: "calico", chain: "cali-FORWARD", tables: []nft.Place{{Family: "ip", Table: "calico"}, {Family: "ip6", Table: "calico"}}},
		{name: "cilium", chain: "CILIUM_FORWARD", link: "cilium_host"},
		{name: "antrea", chain: "ANTREA-FORWARD", link: "antrea-gw0"},
		{name: "ovn-kubernetes", link: "ovn-k8s-mp0"},
		{name: "weave-npc", chain: "WEAVE-NPC"},
		{name: "azure-npm", chain: "AZURE-NPM"},
	}
}

// places are all places in nftables where an engine may have rules.
func (e engine) places() []nft.Place {
	places := e.tables
	if e.chain != "" {
		for _, family := range []string{"ip", "ip6"} {
			places = append(places, nft.Place{Family: family, Table: "filter", Chain: e.chain})
		}
	}
	return places
}

// sight is where engines can be seen.
type sight struct {
	// place tells whether there is a table or a chain of nftables, link whether
	// there is an interface.
	place func(nft.Place) (bool, error)
	link  func(name string) (bool, error)
	// chains are those of a table of iptables-legacy.
	chains func(table string) ([]string, error)
}

// sign returns by what an engine is recognised, or "" if it is not there. legacy
// are the chains of iptables-legacy.
func (s sight) sign(e engine, legacy []string) (string, error) {
	for _, place := range e.places() {
		if ok, err := s.place(place); ok || err != nil {
			return place.String(), err
		}
	}
	if slices.Contains(legacy, e.chain) {
		return "chain " + e.chain + " of iptables-legacy", nil
	}
	if e.link == "" {
		return "", nil
	}
	ok, err := s.link(e.link)
	if err != nil {
		return "", fmt.Errorf("look for the interface %s: %w", e.link, err)
	}
	if ok {
		return "interface " + e.link, nil
	}
	return "", nil
}

// followEngines tells of other policy engines, until ctx ends.
func (a *agent) followEngines(ctx context.Context, interval time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	failed := false
	for {
		err := a.lookForEngines()
		if err != nil && !failed {
			a.log.Warn("cannot tell whether there is another policy engine", "err", err)
		}
		failed = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// lookForEngines looks once, by a connection of its own: the enforcer's is busy
// while it applies a change.
func (a *agent) lookForEngines() (err error) {
	conn, err := nft.Open(nft.Options{Logger: a.log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return a.checkEngines(sight{place: conn.Present, link: link.Exists, chains: xtables.Chains})
}

// checkEngines tells of the engines that are in sight.
func (a *agent) checkEngines(s sight) error {
	legacy, err := s.chains("filter")
	if err != nil {
		return err
	}
	var now []condition
	found := make(map[string]bool)
	for _, e := range engines() {
		sign, err := s.sign(e, legacy)
		if err != nil {
			return err
		}
		if sign == "" {
			continue
		}
		found[e.name] = true
		now = append(now, condition{
			reason: reasonOtherEngine, about: e.name,
			message: fmt.Sprintf("another policy engine, %s, has rules on this node, recognised by %s: a connection passes only if both allow it: "+
				"remove %s and what it has left behind, as docs/migrate.md says, or remove Selvage", e.name, sign, e.name),
		})
	}
	for _, e := range engines() {
		a.metrics.SetOtherEngine(e.name, found[e.name])
	}
	a.conditions.set("engines", now...)
	return nil
}
