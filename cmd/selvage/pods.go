package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/selvage-net/selvage/informer/link"
)

// checkPodCIDRs tells of a Node without podCIDRs, or with other ones than its
// pods have. syncing is held.
func (a *agent) checkPodCIDRs() {
	var now []condition
	outside, example := a.local.outside()
	switch {
	case !a.local.here: // readiness tells
	case len(a.local.cidrs) == 0:
		now = append(now, condition{
			reason: reasonNoPodCIDR, about: a.local.node,
			message: "the Node object of this node has no podCIDRs: policy is in force for the pods that the agent knows, but a pod that it does not know yet is open until then, " +
				"and the pods' bridge is found only by pods that run: if the base CNI takes its addresses from there, as flannel does, " +
				"run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr; if it has an IPAM of its own, nothing is to be done",
		})
	case outside > 0:
		now = append(now, condition{
			reason: reasonOutsidePodCIDR, about: a.local.node,
			message: fmt.Sprintf("%s of this node, for example %s, have addresses outside of its podCIDRs %v: such a pod is open until the agent knows it: "+
				"have the base CNI take its addresses from the podCIDRs, if it has no reason to have an IPAM of its own", count(outside), example, a.local.cidrs),
		})
	}
	a.conditions.set("pod CIDRs", now...)
}

// observeUnseen is told by link.Attachments after each look.
func (a *agent) observeUnseen(unseen []link.Unseen) {
	a.syncing.Lock()
	names := a.local.names(unseen)
	a.syncing.Unlock()
	pods := make(map[device][]podKey)
	all := make(map[podKey]bool)
	for _, u := range unseen {
		name, ok := names[u.Addr]
		if !ok {
			continue // it went away meanwhile
		}
		d := device{u.Device, u.Kind}
		if !slices.Contains(pods[d], name) {
			pods[d] = append(pods[d], name)
		}
		all[name] = true
	}
	var now []condition
	for d, of := range pods {
		by := "this node has no route to them"
		if d.name != "" {
			by = fmt.Sprintf("this node reaches them by %s, which is neither a bridge of its own nor a device of that pod alone", d)
		}
		now = append(now, condition{
			reason: reasonNotEnforced, about: d.String(), notReady: true,
			message: fmt.Sprintf("no policy is enforced for %s of this node, for example %s: %s, so that their packets do not pass its hooks: "+
				"attach them by a bridge or by routed veth devices, as flannel, bridge and ptp do, or run Selvage only on nodes whose pods are",
				count(len(of)), slices.MinFunc(of, podKey.compare), by),
		})
	}
	a.metrics.SetUnenforceablePods(len(all))
	a.conditions.set("attachments", now...)
}

// device is what a pod is reached by.
type device struct{ name, kind string }

func (d device) String() string {
	if d.name == "" {
		return "no interface"
	}
	return d.name + " (" + cmp.Or(d.kind, "a physical interface") + ")"
}

func count(pods int) string {
	if pods == 1 {
		return "1 pod"
	}
	return fmt.Sprintf("%d pods", pods)
}

func (k podKey) String() string { return k.namespace + "/" + k.name }

func (k podKey) compare(other podKey) int {
	return cmp.Or(cmp.Compare(k.namespace, other.namespace), cmp.Compare(k.name, other.name))
}

// outside counts the pods that have an address outside of the node's pod CIDRs,
// and names one of them.
func (l *localPods) outside() (n int, example string) {
	var first podKey
	for key, addrs := range l.pods {
		if !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !l.covers(a) }) {
			continue
		}
		if n++; n == 1 || key.compare(first) < 0 {
			first = key
		}
	}
	return n, first.String()
}

// covers tells whether an address is in the node's pod CIDRs.
func (l *localPods) covers(a netip.Addr) bool {
	return slices.ContainsFunc(l.cidrs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// names finds the pods that have addresses.
func (l *localPods) names(unseen []link.Unseen) map[netip.Addr]podKey {
	names := make(map[netip.Addr]podKey, len(unseen))
	for _, u := range unseen {
		names[u.Addr] = podKey{}
	}
	for key, addrs := range l.pods {
		for _, addr := range addrs {
			if before, ok := names[addr]; ok && (before == podKey{} || key.compare(before) < 0) {
				names[addr] = key
			}
		}
	}
	for addr, key := range names {
		if (key == podKey{}) {
			delete(names, addr)
		}
	}
	return names
}
