package world

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/selvage-net/selvage/policy"
)

// Attachment is how a pod hangs on its node.
type Attachment int

// The attachments.
const (
	// Bridged pods are ports of the node's bridge, with the bridge's address as
	// their gateway, as CNI's bridge plugin makes them.
	Bridged Attachment = iota
	// Routed pods have a veth of their own and a route to their single address,
	// as CNI's ptp plugin makes them.
	Routed
)

// String returns a word for the attachment.
func (a Attachment) String() string {
	if a == Routed {
		return "routed"
	}
	return "bridged"
}

// The gateway of routed pods, on every host end of a veth.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// PodOptions describe a pod.
type PodOptions struct {
	// Name is unique on the node; it becomes part of the namespace's name.
	Name string
	// Addrs are at most one address of each family, out of the node's PodCIDRs
	// for bridged pods.
	Addrs      []netip.Addr
	Attachment Attachment
}

// Pod is a pod's network namespace.
type Pod struct {
	*Namespace
	Name       string
	Node       *Node
	Attachment Attachment
	// HostInterface is the node's end of the pod's veth.
	HostInterface string

	addrs []netip.Addr
}

// AddPod adds a pod to the node.
func (n *Node) AddPod(o PodOptions) (*Pod, error) {
	ns, err := newNamespace(n.ID+"-"+o.Name, n.arrived)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	p := &Pod{
		Namespace: ns, Name: o.Name, Node: n, Attachment: o.Attachment,
		HostInterface: fmt.Sprintf("veth%d", len(n.pods)),
	}
	n.pods = append(n.pods, p)
	n.mu.Unlock()

	bridge := Bridge
	if o.Attachment == Routed {
		bridge = ""
	}
	err = n.addVeth(p.HostInterface, ns, bridge)
	if err == nil && o.Attachment == Routed {
		err = errors.Join(
			n.addAddr(p.HostInterface, single(gateway4), netlink.SCOPE_LINK),
			n.addAddr(p.HostInterface, netip.PrefixFrom(gateway6, 64), netlink.SCOPE_LINK))
	}
	if err == nil {
		err = p.SetAddrs(o.Addrs...)
	}
	if err != nil {
		return nil, fmt.Errorf("pod %s on %s: %w", o.Name, n.Name, err)
	}
	return p, nil
}

// Addrs returns the pod's addresses.
func (p *Pod) Addrs() []netip.Addr { return slices.Clone(p.addrs) }

// Addr returns the pod's address of a family, or the zero address.
func (p *Pod) Addr(f policy.Family) netip.Addr {
	for _, a := range p.addrs {
		if policy.FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

// SetAddrs gives the pod other addresses in place of those it has. Its servers
// must be started anew.
func (p *Pod) SetAddrs(addrs ...netip.Addr) error {
	eth0, err := p.nl.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("eth0 in %s: %w", p.ID, err)
	}
	var errs []error
	for _, a := range p.addrs {
		errs = append(errs, p.removeAddr(eth0, a))
	}
	p.addrs = nil
	for _, a := range addrs {
		errs = append(errs, p.AddAddr(a))
	}
	return errors.Join(errs...)
}

// AddAddr gives the pod one more address. A test may want more than one of a
// family.
func (p *Pod) AddAddr(a netip.Addr) error {
	p.addrs = append(p.addrs, a)
	if p.Attachment == Routed {
		return p.route(a)
	}
	return p.bridge(a)
}

func (p *Pod) removeAddr(eth0 netlink.Link, a netip.Addr) error {
	list, err := p.nl.AddrList(eth0, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses in %s: %w", p.ID, err)
	}
	var errs []error
	for _, have := range list {
		if got, ok := netip.AddrFromSlice(have.IP); ok && got.Unmap() == a {
			errs = append(errs, p.nl.AddrDel(eth0, &have))
		}
	}
	if p.Attachment == Routed {
		errs = append(errs, p.Node.unroute(p.HostInterface, a))
	}
	return errors.Join(errs...)
}

func (p *Pod) bridge(a netip.Addr) error {
	i := slices.IndexFunc(p.Node.PodCIDRs, func(c netip.Prefix) bool { return c.Contains(a) })
	if i < 0 {
		return fmt.Errorf("address %s is in none of the node's ranges %v", a, p.Node.PodCIDRs)
	}
	cidr := p.Node.PodCIDRs[i]
	return errors.Join(
		p.addAddr("eth0", netip.PrefixFrom(a, cidr.Bits()), netlink.SCOPE_UNIVERSE),
		p.addRoute(everything(a), "eth0", nth(cidr, 1), netip.Addr{}))
}

// unroute takes back what the node knows of a routed pod's address.
func (n *Node) unroute(link string, a netip.Addr) error {
	l, err := n.nl.LinkByName(link)
	if err == nil {
		err = n.nl.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(single(a)), Scope: netlink.SCOPE_LINK})
	}
	if err != nil {
		err = fmt.Errorf("remove route to %s by %s in %s: %w", a, link, n.ID, err)
	}
	return errors.Join(err, n.proxyNDP(a, n.nl.NeighDel))
}

// proxyNDP sets or deletes the entry by which the node answers for an IPv6
// address on the bridge. IPv4 needs no such entry.
func (n *Node) proxyNDP(a netip.Addr, change func(*netlink.Neigh) error) error {
	br, err := n.nl.LinkByName(Bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) || a.Is4() {
		return nil
	}
	if err == nil {
		err = change(&netlink.Neigh{LinkIndex: br.Attrs().Index, Flags: netlink.NTF_PROXY, Family: netlink.FAMILY_V6, IP: a.AsSlice()})
	}
	if err != nil {
		return fmt.Errorf("neighbour proxy for %s on %s in %s: %w", a, Bridge, n.ID, err)
	}
	return nil
}

func (p *Pod) route(a netip.Addr) error {
	gw := gateway4
	if a.Is6() {
		gw = gateway6
	}
	return errors.Join(
		p.Node.proxyNDP(a, p.Node.nl.NeighSet),
		p.addAddr("eth0", single(a), netlink.SCOPE_UNIVERSE),
		p.addRoute(everything(a), "eth0", gw, netip.Addr{}),
		p.Node.addRoute(single(a), p.HostInterface, netip.Addr{}, p.Node.Addr(policy.FamilyOf(a))))
}
