package bench

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/ti-mo/conntrack"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// Flow is the traffic that is measured in one Triple.
type Flow struct {
	// Pod is the local pod that serves, on Port by TCP and by UDP.
	Pod  netip.Addr
	Port uint16
	// Peers are the addresses that connections come from, all of them allowed.
	// The first one is the source's own; packets of the others are made by a
	// raw socket. All addresses are of one family.
	Peers []netip.Addr
}

func (f Flow) family() policy.Family { return policy.FamilyOf(f.Pod) }

// Triple is the smallest world in which a node forwards: a source, a node and
// a pod, each a network namespace, joined by two pairs of veth and routed.
// Neighbour entries are permanent, so that no timer of theirs is measured.
type Triple struct {
	Source, Node, Pod *Namespace
	Flow              Flow

	tracked *conntrack.Conn
}

// The addresses of the links between the namespaces, by family. They belong to
// nobody whom policy knows.
var (
	nodeToSource = [...]netip.Addr{netip.MustParseAddr("192.168.255.1"), netip.MustParseAddr("fd00:ff::1:1")}
	sourceToNode = [...]netip.Addr{netip.MustParseAddr("192.168.255.2"), netip.MustParseAddr("fd00:ff::1:2")}
	nodeToPod    = [...]netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fd00:ff::2:1")}
)

// NewTriple builds the three namespaces for the flow. The node has no rules
// yet: see LoadText and the apply of package policy/nft.
func NewTriple(flow Flow) (*Triple, error) {
	t := &Triple{Flow: flow}
	for _, ns := range []**Namespace{&t.Source, &t.Node, &t.Pod} {
		n, err := NewNamespace()
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
		*ns = n
	}
	if err := t.wire(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// Close removes the namespaces.
func (t *Triple) Close() error {
	var errs []error
	if t.tracked != nil {
		errs = append(errs, t.tracked.Close())
	}
	for _, n := range []*Namespace{t.Source, t.Node, t.Pod} {
		if n != nil {
			errs = append(errs, n.Close())
		}
	}
	return errors.Join(errs...)
}

// Reversed returns the same world, seen from the other side: the pod is the source
// of the flow. That goes to the source's first address, the one that answers come
// from. It is closed with t.
func (t *Triple) Reversed() (*Triple, error) {
	if err := t.FlushConntrack(); err != nil { // opens what is to be shared
		return nil, err
	}
	return &Triple{
		Source: t.Pod, Node: t.Node, Pod: t.Source, tracked: t.tracked,
		Flow: Flow{Pod: sourceToNode[t.Flow.family()], Port: t.Flow.Port, Peers: []netip.Addr{t.Flow.Pod}},
	}, nil
}

func (t *Triple) wire() error {
	for _, n := range []*Namespace{t.Source, t.Node, t.Pod} {
		// No router solicitation in the middle of a batch.
		quiet := map[string]string{"ipv6/conf/all/disable_ipv6": "1"}
		if t.Flow.family() == policy.IPv6 {
			quiet = map[string]string{"ipv6/conf/default/accept_ra": "0", "ipv6/conf/default/router_solicitations": "0"}
		}
		if err := errors.Join(n.Sysctl(quiet), n.Sysctl(map[string]string{
			"ipv4/conf/all/rp_filter":     "0",
			"ipv4/conf/default/rp_filter": "0",
		})); err != nil {
			return err
		}
	}
	if err := t.Node.Sysctl(map[string]string{
		"ipv4/ip_forward":                "1",
		"ipv6/conf/all/forwarding":       "1",
		"ipv4/conf/all/send_redirects":   "0",
		"ipv4/conf/all/accept_redirects": "0",
	}); err != nil {
		return err
	}
	for _, n := range []*Namespace{t.Source, t.Pod} {
		if err := n.Sysctl(map[string]string{
			"ipv4/tcp_syncookies":      "0",
			"ipv4/ip_local_port_range": "10000 65000",
			"ipv4/tcp_max_syn_backlog": "4096",
			"ipv4/icmp_ratelimit":      "0",
			"core/somaxconn":           "4096",
		}); err != nil {
			return err
		}
	}
	f := t.Flow.family()
	if err := link(t.Node, "source0", nodeToSource[f], t.Source, "eth0", sourceToNode[f], t.Flow.Peers[0]); err != nil {
		return fmt.Errorf("join source and node: %w", err)
	}
	if err := link(t.Node, "pod0", nodeToPod[f], t.Pod, "eth0", t.Flow.Pod); err != nil {
		return fmt.Errorf("join node and pod: %w", err)
	}
	// All that is not the pod is behind the source.
	h, err := t.Node.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName("source0")
	if err != nil {
		return fmt.Errorf("find the link to the source: %w", err)
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: sourceToNode[f].AsSlice()})
}

// link joins node and other by a veth pair. The other end gets the addresses,
// the first of which the node reaches directly, and its default route.
func link(node *Namespace, name string, nodeAddr netip.Addr, other *Namespace, otherName string, addrs ...netip.Addr) error {
	hn, err := node.Netlink()
	if err != nil {
		return err
	}
	defer hn.Close()
	ho, err := other.Netlink()
	if err != nil {
		return err
	}
	defer ho.Close()

	veth := netlink.NewVeth(netlink.NewLinkAttrs())
	veth.Name, veth.PeerName, veth.PeerNamespace = name, otherName, netlink.NsFd(other.FD())
	if err := hn.LinkAdd(veth); err != nil {
		return fmt.Errorf("add a veth pair: %w", err)
	}
	here, err := hn.LinkByName(name)
	if err != nil {
		return err
	}
	there, err := ho.LinkByName(otherName)
	if err != nil {
		return err
	}
	if err := errors.Join(hn.LinkSetUp(here), ho.LinkSetUp(there), addAddr(hn, here, nodeAddr)); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := addAddr(ho, there, a); err != nil {
			return err
		}
	}
	if err := errors.Join(awaitUp(hn, name), awaitUp(ho, otherName)); err != nil {
		return err
	}
	return errors.Join(
		hn.RouteAdd(onLink(here, addrs[0])),
		ho.RouteAdd(onLink(there, nodeAddr)),
		addNeighbour(hn, here, addrs[0], there),
		addNeighbour(ho, there, nodeAddr, here),
		ho.RouteAdd(&netlink.Route{LinkIndex: there.Attrs().Index, Gw: nodeAddr.AsSlice()}),
	)
}

// awaitUp waits until the link sends. One that is up drops what it is given
// until the kernel has noticed its carrier (net/core/link_watch.c).
func awaitUp(h *netlink.Handle, name string) error {
	for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(time.Millisecond) {
		l, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("look at link %s: %w", name, err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
	}
	return fmt.Errorf("link %s does not come up", name)
}

func addAddr(h *netlink.Handle, l netlink.Link, a netip.Addr) error {
	addr := &netlink.Addr{IPNet: hostNet(a)}
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrAdd(l, addr); err != nil {
		return fmt.Errorf("add address %s: %w", a, err)
	}
	return awaitLocal(h, a)
}

// awaitLocal waits until the kernel takes an address for its own. IPv6 leaves that to
// a work queue (addrconf_dad_work in net/ipv6/addrconf.c).
func awaitLocal(h *netlink.Handle, a netip.Addr) error {
	for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(time.Millisecond) {
		routes, err := h.RouteGet(a.AsSlice())
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
	}
	return fmt.Errorf("address %s does not become local", a)
}

func onLink(l netlink.Link, to netip.Addr) *netlink.Route {
	return &netlink.Route{LinkIndex: l.Attrs().Index, Dst: hostNet(to), Scope: netlink.SCOPE_LINK}
}

func addNeighbour(h *netlink.Handle, l netlink.Link, a netip.Addr, owner netlink.Link) error {
	n := &netlink.Neigh{
		LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: a.AsSlice(), HardwareAddr: owner.Attrs().HardwareAddr,
	}
	if err := h.NeighSet(n); err != nil {
		return fmt.Errorf("set the neighbour %s: %w", a, err)
	}
	return nil
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// LoadText loads a ruleset in nft's syntax into the node with `nft -f`.
func (t *Triple) LoadText(text string) error { return t.load(text, "nft", "-f", "-") }

// LoadIPTables adds rules in the syntax of iptables-restore to the node's nftables.
func (t *Triple) LoadIPTables(text string) error {
	program := "iptables-nft-restore"
	if t.Flow.family() == policy.IPv6 {
		program = "ip6tables-nft-restore"
	}
	return t.load(text, program, "--noflush")
}

// load gives a program on the node some text to read.
func (t *Triple) load(text string, program ...string) error {
	cmd := exec.Command("nsenter", append([]string{"--net=" + t.Node.Path()}, program...)...)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.400s", strings.Join(program, " "), err, out)
	}
	return nil
}

// FlushConntrack forgets all of the node's connections, so that neither the
// table fills nor old entries are hit when a port comes round again.
func (t *Triple) FlushConntrack() error {
	if t.tracked == nil {
		err := t.Node.Do(func() (err error) {
			t.tracked, err = conntrack.Dial(nil)
			return err
		})
		if err != nil {
			return fmt.Errorf("open conntrack: %w", err)
		}
	}
	if err := t.tracked.Flush(); err != nil {
		return fmt.Errorf("flush conntrack: %w", err)
	}
	return nil
}
