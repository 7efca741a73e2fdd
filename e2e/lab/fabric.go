package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// bridge is the link of fabric that the nodes hang on.
const bridge = "br0"

// openNetwork returns a netlink handle in the network namespace of a process.
// It must be closed.
func openNetwork(pid int) (*netlink.Handle, error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns)
}

// buildFabric makes the bridge.
func buildFabric(pid int) error {
	nl, err := openNetwork(pid)
	if err != nil {
		return err
	}
	defer nl.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = bridge, hardwareAddress(address(0))
	if err := nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	return errors.Join(raise(nl, "lo"), raise(nl, bridge, netip.PrefixFrom(address(0), 24)))
}

// plug connects a node to the fabric: a link of its name there is its eth0.
func plug(fabric, node int, name string, addr netip.Addr) error {
	outer, err := openNetwork(fabric)
	if err != nil {
		return err
	}
	defer outer.Close()
	inner, err := openNetwork(node)
	if err != nil {
		return err
	}
	defer inner.Close()
	br, err := outer.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	// The link of the machine before goes with its namespace, which takes the
	// kernel a moment.
	if old, err := outer.LinkByName(name); err == nil {
		if err := outer.LinkDel(old); err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
			return fmt.Errorf("old link of %s: %w", name, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = name, br.Attrs().Index
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(node), PeerHardwareAddr: hardwareAddress(addr),
	}
	if err := outer.LinkAdd(veth); err != nil {
		return fmt.Errorf("link of %s: %w", name, err)
	}
	if err := errors.Join(raise(outer, name), raise(inner, "lo"), raise(inner, "eth0", netip.PrefixFrom(addr, 24))); err != nil {
		return err
	}
	eth0, err := inner.LinkByName("eth0")
	if err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.IP(address(0).AsSlice())}
	if err := inner.RouteAdd(route); err != nil {
		return fmt.Errorf("default route of %s: %w", name, err)
	}
	return nil
}

// hardwareAddress returns the MAC of the machine with an address. A machine keeps
// it when it reboots: the others would send to the old one for half a minute.
func hardwareAddress(ip netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{0x02, 0x00}, ip.AsSlice()...) // locally administered
}

// raise gives a link addresses and sets it up.
func raise(nl *netlink.Handle, name string, prefixes ...netip.Prefix) error {
	link, err := nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	for _, p := range prefixes {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if err := nl.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %v of link %s: %w", p, name, err)
		}
	}
	if err := nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s up: %w", name, err)
	}
	return nil
}
