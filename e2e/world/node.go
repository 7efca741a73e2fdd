package world

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/selvage-net/selvage/policy"
)

// Bridge is the name of the bridge that carries a node's pods, as flannel
// names it.
const Bridge = "cni0"

// BridgeFiltering says whether a node's bridge shows its packets to netfilter.
type BridgeFiltering int

// The settings. br_netfilter has a switch for the whole network namespace and
// one for each bridge; a bridge's packets are seen if either is on.
const (
	// FilterNamespace turns on the switch of the namespace.
	FilterNamespace BridgeFiltering = iota
	// FilterBridge turns on the switch of the pods' bridge alone.
	FilterBridge
	// FilterOff leaves both off.
	FilterOff
)

// NodeOptions describe a node.
type NodeOptions struct {
	Name string
	// PodCIDRs are the node's own ranges of pod addresses; without any, the
	// node is a mere host on the underlay.
	PodCIDRs []netip.Prefix
	// Addrs are the node's IPv4 and IPv6 address on the underlay. Without any
	// it gets the next ones of 172.31.0.0/24 and fd31::/64.
	Addrs []netip.Addr
	// Filtering is for the bridge of the node's pods.
	Filtering BridgeFiltering
}

// Node is a node's network namespace.
type Node struct {
	*Namespace
	Name     string
	PodCIDRs []netip.Prefix
	// Addrs are the node's addresses on the underlay.
	Addrs []netip.Addr

	world *World
	mu    sync.Mutex
	pods  []*Pod
	extra []netip.Addr
}

// AddNode adds a node, and routes between it and all others.
func (w *World) AddNode(o NodeOptions) (*Node, error) {
	ns, err := newNamespace(w.id+"-"+o.Name, &w.arrived)
	if err != nil {
		return nil, err
	}
	i := len(w.nodes) + 10
	n := &Node{
		Namespace: ns, Name: o.Name, PodCIDRs: slices.Clone(o.PodCIDRs), world: w,
		Addrs: slices.Clone(o.Addrs),
	}
	if len(n.Addrs) == 0 {
		n.Addrs = []netip.Addr{nth(underlay4, i), nth(underlay6, i)}
	}
	others := w.nodes
	w.nodes = append(w.nodes, n)
	if err := n.join(o, others); err != nil {
		return nil, fmt.Errorf("node %s: %w", o.Name, err)
	}
	return n, nil
}

func (n *Node) join(o NodeOptions, others []*Node) error {
	namespaceSwitch := map[bool]string{true: "1", false: "0"}[o.Filtering == FilterNamespace]
	errs := []error{
		n.Sysctl("net.ipv4.ip_forward=1"), n.Sysctl("net.ipv6.conf.all.forwarding=1"),
		n.Sysctl("net.bridge.bridge-nf-call-iptables=" + namespaceSwitch),
		n.Sysctl("net.bridge.bridge-nf-call-ip6tables=" + namespaceSwitch),
		n.world.lan.addVeth(fmt.Sprintf("node%d", len(others)), n.Namespace, "lan0"),
	}
	for _, f := range policy.Families {
		bits := []netip.Prefix{underlay4, underlay6}[f].Bits()
		errs = append(errs, n.addAddr("eth0", netip.PrefixFrom(n.Addrs[f], bits), netlink.SCOPE_UNIVERSE),
			// The virtual address of a Service is rewritten after routing, so
			// that there must be some route for it.
			n.addRoute(everything(n.Addrs[f]), "eth0", netip.Addr{}, n.Addrs[f]))
	}
	if len(o.PodCIDRs) > 0 {
		// A bridged pod looks for a routed one, whose address is of the same
		// range, on the bridge: the node answers in its place, at once.
		errs = append(errs, n.addBridge(Bridge),
			n.Sysctl("net.ipv4.conf."+Bridge+".proxy_arp=1"), n.Sysctl("net.ipv4.neigh."+Bridge+".proxy_delay=0"),
			n.Sysctl("net.ipv6.conf."+Bridge+".proxy_ndp=1"), n.Sysctl("net.ipv6.neigh."+Bridge+".proxy_delay=0"))
		for _, p := range o.PodCIDRs {
			errs = append(errs, n.addAddr(Bridge, netip.PrefixFrom(nth(p, 1), p.Bits()), netlink.SCOPE_UNIVERSE))
		}
		if o.Filtering == FilterBridge {
			errs = append(errs, n.SetBridgeFiltering(context.Background(), true))
		}
	}
	for _, other := range others {
		errs = append(errs, n.routeTo(other), other.routeTo(n))
	}
	return errors.Join(errs...)
}

// SetBridgeFiltering turns the switch of the pods' bridge on or off.
func (n *Node) SetBridgeFiltering(ctx context.Context, on bool) error {
	v := map[bool]string{true: "1", false: "0"}[on]
	_, err := n.Run(ctx, "ip", "link", "set", Bridge, "type", "bridge", "nf_call_iptables", v, "nf_call_ip6tables", v)
	return err
}

// routeTo adds routes to the pods of another node, as flannel's host-gw does.
func (n *Node) routeTo(other *Node) error {
	var errs []error
	for _, p := range other.PodCIDRs {
		errs = append(errs, n.addRoute(p, "eth0", other.Addr(policy.FamilyOf(p.Addr())), netip.Addr{}))
	}
	return errors.Join(errs...)
}

// RouteVia sends what goes to dst to another node.
func (n *Node) RouteVia(dst netip.Prefix, other *Node) error {
	return n.addRoute(dst, "eth0", other.Addr(policy.FamilyOf(dst.Addr())), netip.Addr{})
}

// AddAddr gives the node one more address.
func (n *Node) AddAddr(a netip.Addr) error {
	n.extra = append(n.extra, a)
	return n.addAddr("eth0", single(a), netlink.SCOPE_UNIVERSE)
}

// Addr returns the node's address of a family on the underlay.
func (n *Node) Addr(f policy.Family) netip.Addr { return n.Addrs[f] }

// Gateways are the addresses of the pods' bridge.
func (n *Node) Gateways() []netip.Addr {
	var gw []netip.Addr
	for _, p := range n.PodCIDRs {
		gw = append(gw, nth(p, 1))
	}
	return gw
}

// Pods returns the node's pods in the order in which they were added.
func (n *Node) Pods() []*Pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.pods)
}

// Service is a virtual address and port that a node rewrites to a backend, as
// kube-proxy does.
type Service struct {
	Name     string
	Addrs    []netip.Addr
	Protocol policy.Protocol
	Port     uint16
	// Backends of an address's family take turns.
	Backends []netip.AddrPort
}

// SetServices replaces the node's Services. Connections that are already
// rewritten stay as they are.
func (n *Node) SetServices(ctx context.Context, services ...Service) error {
	var b strings.Builder
	for _, f := range policy.Families {
		fmt.Fprintf(&b, "table %s service\ndelete table %s service\ntable %s service {\n", f, f, f)
		for _, hook := range []string{"prerouting", "output"} {
			fmt.Fprintf(&b, "\tchain %s {\n\t\ttype nat hook %s priority -100\n", hook, hook)
			for _, s := range services {
				s.writeDNAT(&b, f)
			}
			b.WriteString("\t}\n")
		}
		fmt.Fprintf(&b, "\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat\n")
		for _, s := range services {
			for _, to := range s.backends(f) {
				// A pod would not take an answer from its own address.
				fmt.Fprintf(&b, "\t\tct status dnat %s saddr %s %s daddr %s masquerade\n", f, to.Addr(), f, to.Addr())
			}
		}
		b.WriteString("\t}\n}\n")
	}
	return n.NFT(ctx, b.String())
}

func (s Service) backends(f policy.Family) []netip.AddrPort {
	var of []netip.AddrPort
	for _, b := range s.Backends {
		if policy.FamilyOf(b.Addr()) == f {
			of = append(of, b)
		}
	}
	return of
}

func (s Service) writeDNAT(b *strings.Builder, f policy.Family) {
	to := s.backends(f)
	for _, a := range s.Addrs {
		if policy.FamilyOf(a) != f || len(to) == 0 {
			continue
		}
		match := fmt.Sprintf("\t\t%s daddr %s %s dport %d", f, a, s.Protocol, s.Port)
		for i, backend := range to {
			turn := ""
			if left := len(to) - i; left > 1 {
				turn = fmt.Sprintf(" numgen random mod %d 0", left)
			}
			fmt.Fprintf(b, "%s%s dnat to %s\n", match, turn, backend)
		}
	}
}
