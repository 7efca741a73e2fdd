package world

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The underlay that joins the nodes. Node number i has address i+10 in each.
var (
	underlay4 = netip.MustParsePrefix("172.31.0.0/24")
	underlay6 = netip.MustParsePrefix("fd31::/64")
)

// World is a set of nodes on one underlay. It is safe for concurrent use once
// it is built; building it is not.
type World struct {
	id  string
	lan *Namespace
	dir string

	nodes   []*Node
	arrived arrivals

	closing sync.Once
	closed  error
}

// New makes a world without nodes.
func New() (*World, error) {
	if err := loadBridgeFilter(); err != nil {
		return nil, err
	}
	id, err := newID()
	if err != nil {
		return nil, fmt.Errorf("new world: %w", err)
	}
	w := &World{id: id}
	if w.lan, err = newNamespace(id+"-lan", &w.arrived); err != nil {
		return nil, err
	}
	err = errors.Join(
		// The underlay is a wire: nothing may filter or track there.
		w.lan.Sysctl("net.bridge.bridge-nf-call-iptables=0"),
		w.lan.Sysctl("net.bridge.bridge-nf-call-ip6tables=0"),
		w.lan.addBridge("lan0"),
	)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// loadBridgeFilter sees to it that the kernel can show netfilter what passes on
// a bridge. Distributions have it as a module, which every node of a cluster
// with such a network loads.
func loadBridgeFilter() error {
	const file = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	out, err := exec.Command("modprobe", "br_netfilter").CombinedOutput()
	if err != nil {
		return fmt.Errorf("this kernel has no br_netfilter, and loading the module failed: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Close removes everything that the world is made of. It may be called more
// than once and while probes are running, which then fail.
func (w *World) Close() error {
	w.closing.Do(func() {
		var errs []error
		for _, n := range w.nodes {
			for _, p := range n.Pods() {
				errs = append(errs, p.Close())
			}
			errs = append(errs, n.Close())
		}
		if w.lan != nil {
			errs = append(errs, w.lan.Close())
		}
		if w.dir != "" {
			errs = append(errs, os.RemoveAll(w.dir))
		}
		w.closed = errors.Join(errs...)
	})
	return w.closed
}

// Dir returns a directory that is removed with the world.
func (w *World) Dir() (string, error) {
	if w.dir == "" {
		dir, err := os.MkdirTemp("", w.id+"-")
		if err != nil {
			return "", err
		}
		w.dir = dir
	}
	return w.dir, nil
}

// Nodes returns the nodes in the order in which they were added.
func (w *World) Nodes() []*Node { return slices.Clone(w.nodes) }

func (n *Namespace) addBridge(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("bridge %s in %s: %w", name, n.ID, err)
	}
	return n.up(name)
}

// addVeth makes a pair: name here, eth0 in peer.
func (n *Namespace) addVeth(name string, peer *Namespace, bridge string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if bridge != "" {
		br, err := n.nl.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("bridge %s in %s: %w", bridge, n.ID, err)
		}
		attrs.MasterIndex = br.Attrs().Index
	}
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(peer.FD())}
	if err := n.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth %s in %s: %w", name, n.ID, err)
	}
	if bridge != "" {
		// A pod that reaches itself through a Service leaves the bridge by the
		// port that it came in by.
		if err := n.nl.LinkSetHairpin(veth, true); err != nil {
			return fmt.Errorf("hairpin of %s in %s: %w", name, n.ID, err)
		}
	}
	return errors.Join(n.up(name), peer.up("eth0"))
}

// addAddr puts an address on a link, without duplicate address detection.
func (n *Namespace) addAddr(link string, addr netip.Prefix, scope netlink.Scope) error {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s in %s: %w", link, n.ID, err)
	}
	a := &netlink.Addr{IPNet: ipNet(addr), Scope: int(scope)}
	if addr.Addr().Is6() {
		a.Flags = 0x02 // IFA_F_NODAD
	}
	if err := n.nl.AddrReplace(l, a); err != nil {
		return fmt.Errorf("address %s on %s in %s: %w", addr, link, n.ID, err)
	}
	if addr.Addr().Is6() && !addr.Addr().IsLinkLocalUnicast() {
		return n.waitLocal(addr.Addr())
	}
	return nil
}

// waitLocal waits until the kernel takes an IPv6 address for its own. Even
// without duplicate address detection a work queue has to see to it
// (addrconf_dad_work in net/ipv6/addrconf.c); until then the host forwards
// what comes for it.
func (n *Namespace) waitLocal(a netip.Addr) error {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		routes, err := n.nl.RouteGet(a.AsSlice())
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
	}
	return fmt.Errorf("address %s in %s is not local %v after it was added", a, n.ID, patience)
}

// addRoute adds a route to dst by link, via a gateway unless that is zero, with
// the given source address unless that is zero.
func (n *Namespace) addRoute(dst netip.Prefix, link string, via, src netip.Addr) error {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s in %s: %w", link, n.ID, err)
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(dst), Scope: netlink.SCOPE_LINK}
	if via.IsValid() {
		r.Gw, r.Scope = via.AsSlice(), netlink.SCOPE_UNIVERSE
		r.SetFlag(netlink.FLAG_ONLINK)
	}
	if src.IsValid() {
		r.Src = src.AsSlice()
	}
	if err := n.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s dev %s via %s in %s: %w", dst, link, via, n.ID, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func everything(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// nth returns the i-th address of a prefix.
func nth(p netip.Prefix, i int) netip.Addr {
	a := p.Masked().Addr()
	for range i {
		a = a.Next()
	}
	return a
}
