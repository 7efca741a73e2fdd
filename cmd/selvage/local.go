package main

import (
	"net/netip"
	"slices"

	"github.com/selvage-net/selvage/policy"
)

// localPods keeps what is to be known of this node: its pod CIDRs and labels, and the
// addresses of the pods that run on it.
type localPods struct {
	node   string
	here   bool // there is a Node of that name
	cidrs  []netip.Prefix
	labels policy.Labels
	pods   map[podKey][]netip.Addr
}

type podKey struct{ namespace, name string }

// update takes changes in and returns whether any concerns this node.
func (l *localPods) update(deltas []policy.Delta) bool {
	changed := false
	for _, d := range deltas {
		switch o := d.Object.(type) {
		case *policy.Node:
			if o.Name == l.node {
				l.cidrs, l.labels, l.here = nil, nil, !d.Deleted
				if l.here {
					l.cidrs, l.labels = o.PodCIDRs, o.Labels
				}
				changed = true
			}
		case *policy.Pod:
			if o.Node != l.node {
				continue
			}
			changed = true
			key := podKey{o.Namespace, o.Name}
			if d.Deleted || o.HostNetwork || o.Finished || len(o.Addrs) == 0 {
				delete(l.pods, key)
				continue
			}
			if l.pods == nil {
				l.pods = make(map[podKey][]netip.Addr)
			}
			l.pods[key] = o.Addrs
		}
	}
	return changed
}

// addrs returns the addresses of all pods, sorted.
func (l *localPods) addrs() []netip.Addr {
	var all []netip.Addr
	for _, a := range l.pods {
		all = append(all, a...)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}
