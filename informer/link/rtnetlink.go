package link

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dumps is how often an interrupted dump is taken anew: the kernel marks one
// during which something changed, and it may lack what was there all along.
const dumps = 10

// bridge is a bridge as the kernel describes it.
type bridge struct {
	name  string
	index int
	// v4 and v6 are the bridge's own switches.
	v4, v6 bool
}

// links reads and writes what the kernel knows of links. It is safe for
// concurrent use.
type links struct {
	handle *netlink.Handle
}

func newLinks() (*links, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	return &links{handle: h}, nil
}

// bridges lists all bridges. The netlink library's own LinkList knows nothing
// of the two switches.
func (l *links) bridges() (map[int]bridge, error) {
	return dump(func() (map[int]bridge, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil) // kernels from 4.6 on list only this kind
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
		req.AddData(info)
		messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		if err != nil {
			return nil, err
		}
		all := make(map[int]bridge)
		for _, m := range messages {
			br, ok, err := parseBridge(m)
			if err != nil {
				return nil, err
			}
			if ok {
				all[br.index] = br
			}
		}
		return all, nil
	})
}

// bridge reads one bridge.
func (l *links) bridge(index int) (bridge, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return bridge{}, err
	}
	for _, m := range messages {
		if br, ok, err := parseBridge(m); ok || err != nil {
			return br, err
		}
	}
	return bridge{}, fmt.Errorf("link %d is no bridge", index)
}

// handOver turns on both switches of a bridge.
func (l *links) handOver(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IPTABLES, nl.Uint8Attr(1))
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IP6TABLES, nl.Uint8Attr(1))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// parseBridge reads a RTM_NEWLINK message; ok is false if it is of another kind.
func parseBridge(m []byte) (br bridge, ok bool, err error) {
	if len(m) < unix.SizeofIfInfomsg {
		return br, false, fmt.Errorf("a link message of %d bytes", len(m))
	}
	br.index = int(nl.DeserializeIfInfomsg(m).Index)
	attrs, err := nl.ParseRouteAttrAsMap(m[unix.SizeofIfInfomsg:])
	if err != nil {
		return br, false, err
	}
	br.name = unix.ByteSliceToString(attrs[unix.IFLA_IFNAME].Value)
	info, err := nl.ParseRouteAttrAsMap(attrs[unix.IFLA_LINKINFO].Value)
	if err != nil {
		return br, false, err
	}
	if unix.ByteSliceToString(info[nl.IFLA_INFO_KIND].Value) != "bridge" {
		return br, false, nil
	}
	data, err := nl.ParseRouteAttrAsMap(info[nl.IFLA_INFO_DATA].Value)
	if err != nil {
		return br, false, err
	}
	on := func(attr uint16) bool {
		v := data[attr].Value
		return len(v) == 1 && v[0] != 0
	}
	br.v4, br.v6 = on(nl.IFLA_BR_NF_CALL_IPTABLES), on(nl.IFLA_BR_NF_CALL_IP6TABLES)
	return br, true, nil
}

// carrying returns the bridges of all that carry pods: those that hold an
// address in the pod CIDRs, themselves or by a VLAN interface on top, and those
// by which a pod is reached without a gateway.
func (l *links) carrying(all map[int]bridge, cidrs []netip.Prefix, pods []netip.Addr) (map[int]bridge, error) {
	found := make(map[int]bridge)
	if len(all) == 0 {
		return found, nil
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return l.handle.AddrList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var near []netip.Prefix // on-link at a bridge found already
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); !ok || !inAny(cidrs, ip) {
			continue
		}
		br, ok := l.under(all, a.LinkIndex)
		if !ok {
			continue
		}
		found[br.index] = br
		ones, _ := a.Mask.Size()
		near = append(near, netip.PrefixFrom(ip, ones).Masked())
	}
	for _, pod := range pods {
		if inAny(near, pod) {
			continue
		}
		routes, err := l.handle.RouteGet(pod.AsSlice())
		if err != nil {
			continue // no route: no bridge brings it anything
		}
		for _, r := range routes {
			if br, ok := l.under(all, r.LinkIndex); ok && r.Gw == nil && r.Via == nil {
				found[br.index] = br
			}
		}
	}
	return found, nil
}

// under returns the bridge that a link is, or is on top of.
func (l *links) under(all map[int]bridge, index int) (bridge, bool) {
	if br, ok := all[index]; ok {
		return br, true
	}
	link, err := l.handle.LinkByIndex(index)
	if err != nil {
		return bridge{}, false // it went away meanwhile
	}
	br, ok := all[link.Attrs().ParentIndex]
	// The parent of a veth may have its number in another namespace.
	return br, ok && (link.Type() == "vlan" || link.Type() == "macvlan")
}

func inAny(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// dump calls f until it is not interrupted by a change, some times at most.
func dump[T any](f func() (T, error)) (T, error) {
	var v T
	var err error
	for range dumps {
		if v, err = f(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return v, err
}

// events are the kernel's notifications of changes of links and addresses.
type events struct {
	socket *nl.NetlinkSocket
	once   sync.Once
}

func subscribe() (*events, error) {
	return subscribeTo(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
}

func subscribeTo(groups ...uint) (*events, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		return nil, err
	}
	return &events{socket: s}, nil
}

// receive calls f after each notification until the socket is closed.
func (e *events) receive(f func()) error {
	for {
		if _, err := e.next(); err != nil {
			return err
		}
		f()
	}
}

// next waits for notifications. There are none if the kernel had more of them
// than the socket holds, and has dropped some: look all the more.
func (e *events) next() ([]syscall.NetlinkMessage, error) {
	messages, _, err := e.socket.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return nil, nil
	}
	return messages, err
}

func (e *events) close() { e.once.Do(e.socket.Close) }
