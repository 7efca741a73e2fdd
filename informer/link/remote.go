package link

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// none is the number of a namespace that has none.
const none = unix.NETNSA_NSID_NOT_ASSIGNED

// skipStats asks for a link without its counters (RTEXT_FILTER_SKIP_STATS).
const skipStats = 1 << 3

// loopback is the index of lo in every network namespace, see loopback_net_init
// in drivers/net/loopback.c.
const loopback = 1

// remote reads the addresses and links of other network namespaces without
// entering them. A request can carry the number (nsid) that the socket's own
// namespace has for another one; the kernel then answers for that one, to who has
// CAP_NET_ADMIN in it (rtnl_get_net_ns_capable in net/core/rtnetlink.c).
type remote struct {
	sockets map[int]*nl.SocketHandle
	// dev is the file system nsfs, inode the socket's own namespace there, and id
	// the number that this namespace has for itself.
	dev, inode uint64
	id         int
}

// newRemote returns a remote for the network namespace of the caller.
func newRemote() (*remote, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	r := &remote{sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}
	if err := r.prepare(s); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// prepare sets up the socket and finds out in which namespace it is.
func (r *remote) prepare(s *nl.NetlinkSocket) error {
	// Without it the kernel does not read the attributes of a request to dump
	// addresses, and dumps those of this namespace, see inet_dump_ifaddr.
	if err := unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		return fmt.Errorf("set NETLINK_GET_STRICT_CHK: %w", err)
	}
	own, err := unix.IoctlRetInt(s.GetFd(), unix.SIOCGSKNS)
	if err != nil {
		return fmt.Errorf("ask for the socket's network namespace: %w", err)
	}
	defer func() { _ = unix.Close(own) }()
	var st unix.Stat_t
	if err := unix.Fstat(own, &st); err != nil {
		return err
	}
	r.dev, r.inode = st.Dev, st.Ino
	r.id, err = r.nsid(own)
	return err
}

func (r *remote) close() { r.sockets[unix.NETLINK_ROUTE].Close() }

func (r *remote) execute(req *nl.NetlinkRequest, kind uint16) ([][]byte, error) {
	req.Sockets = r.sockets
	return req.Execute(unix.NETLINK_ROUTE, kind)
}

// nsid returns the number of the network namespace that a file is open on, and
// has the kernel give it one if it has none yet. It is that namespace's as long
// as the file is open.
func (r *remote) nsid(fd int) (int, error) {
	for range dumps {
		id, err := r.askNSID(fd)
		if err != nil || id != none {
			return id, err
		}
		req := nl.NewNetlinkRequest(unix.RTM_NEWNSID, unix.NLM_F_ACK)
		req.AddData(nl.NewRtGenMsg())
		req.AddData(nl.NewRtAttr(unix.NETNSA_NSID, int32Attr(none)))
		req.AddData(nl.NewRtAttr(unix.NETNSA_FD, int32Attr(fd)))
		if _, err := r.execute(req, 0); err != nil && !errors.Is(err, unix.EEXIST) { // another was quicker
			return 0, fmt.Errorf("have a number given to the network namespace: %w", err)
		}
	}
	return 0, errors.New("the kernel gives the network namespace no number")
}

func (r *remote) askNSID(fd int) (int, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNSID, 0)
	req.AddData(nl.NewRtGenMsg())
	req.AddData(nl.NewRtAttr(unix.NETNSA_FD, int32Attr(fd)))
	messages, err := r.execute(req, unix.RTM_NEWNSID)
	if err != nil {
		return 0, fmt.Errorf("ask for the number of the network namespace: %w", err)
	}
	for _, m := range messages {
		attrs, err := parseAttrs(m, 4)
		if err != nil {
			return 0, err
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.NETNSA_NSID {
				return int32Of(a.Value)
			}
		}
	}
	return 0, errors.New("no answer about the number of the network namespace")
}

// address is an address on the interface with that index.
type address struct {
	addr  netip.Addr
	index int
}

// addresses lists the addresses of a namespace by which a pod can be known: not
// those of lo, and not the link-local ones, which many have in common.
func (r *remote) addresses(nsid int) ([]address, error) {
	return dump(func() ([]address, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFA_TARGET_NETNSID, int32Attr(nsid)))
		messages, err := r.execute(req, unix.RTM_NEWADDR)
		if err != nil {
			return nil, err
		}
		var all []address
		for _, m := range messages {
			a, err := parseAddress(m, nsid)
			if err != nil {
				return nil, err
			}
			if a.index != loopback && usable(a.addr) {
				all = append(all, a)
			}
		}
		return all, nil
	})
}

// usable tells whether a pod can be found by an address.
func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast()
}

// parseAddress reads a RTM_NEWADDR message about that namespace. Families other than
// IP, which know nothing of the attributes in the request, have no address here.
func parseAddress(m []byte, nsid int) (address, error) {
	attrs, err := parseAttrs(m, unix.SizeofIfAddrmsg)
	if err != nil {
		return address{}, err
	}
	header := nl.DeserializeIfAddrmsg(m)
	if header.Family != unix.AF_INET && header.Family != unix.AF_INET6 {
		return address{}, nil
	}
	a := address{index: int(header.Index)}
	from, local := none, false
	for _, attr := range attrs {
		switch attr.Attr.Type {
		case unix.IFA_LOCAL: // then IFA_ADDRESS is that of the other end
			a.addr, _ = netip.AddrFromSlice(attr.Value)
			local = true
		case unix.IFA_ADDRESS:
			if !local {
				a.addr, _ = netip.AddrFromSlice(attr.Value)
			}
		case unix.IFA_TARGET_NETNSID:
			if from, err = int32Of(attr.Value); err != nil {
				return address{}, err
			}
		}
	}
	if from != nsid { // a kernel before 4.20 knows no such requests
		return address{}, errors.New("the kernel does not list the addresses of other network namespaces")
	}
	return a, nil
}

// port is a network interface and what it is tied to.
type port struct {
	End
	// peer is the index of the other end, or of the interface below; 0 if there
	// is neither. peerNS is the number that the socket's namespace has for the
	// peer's; none if the peer is in the interface's own.
	peer, peerNS int
}

// link reads one interface of a namespace.
func (r *remote) link(nsid, index int) (port, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, int32Attr(skipStats)))
	req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, int32Attr(nsid)))
	messages, err := r.execute(req, unix.RTM_NEWLINK)
	if err != nil {
		return port{}, err
	}
	for _, m := range messages {
		return parsePort(m, nsid)
	}
	return port{}, fmt.Errorf("no answer about link %d", index)
}

// parsePort reads a RTM_NEWLINK message about that namespace.
func parsePort(m []byte, nsid int) (port, error) {
	attrs, err := parseAttrs(m, unix.SizeofIfInfomsg)
	if err != nil {
		return port{}, err
	}
	info := nl.DeserializeIfInfomsg(m)
	p := port{End: End{Index: int(info.Index), Ethernet: info.Type == unix.ARPHRD_ETHER}, peerNS: none}
	from := none
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			p.Name = unix.ByteSliceToString(a.Value)
		case unix.IFLA_MTU:
			p.MTU, err = int32Of(a.Value)
		case unix.IFLA_LINK:
			p.peer, err = int32Of(a.Value)
		case unix.IFLA_LINK_NETNSID:
			p.peerNS, err = int32Of(a.Value)
		case unix.IFLA_TARGET_NETNSID:
			from, err = int32Of(a.Value)
		case unix.IFLA_LINKINFO:
			p.Kind, err = parseKind(a.Value)
		}
		if err != nil {
			return port{}, err
		}
	}
	if from != nsid {
		return port{}, errors.New("the kernel does not show the links of other network namespaces")
	}
	return p, nil
}

// parseKind returns what the kernel calls the kind of an interface.
func parseKind(info []byte) (string, error) {
	attrs, err := nl.ParseRouteAttr(info)
	if err != nil {
		return "", err
	}
	for _, a := range attrs {
		if a.Attr.Type == nl.IFLA_INFO_KIND {
			return unix.ByteSliceToString(a.Value), nil
		}
	}
	return "", nil
}

// parseAttrs returns the attributes behind a header of that size.
func parseAttrs(m []byte, header int) ([]syscall.NetlinkRouteAttr, error) {
	if len(m) < header {
		return nil, fmt.Errorf("a message of %d bytes", len(m))
	}
	return nl.ParseRouteAttr(m[header:])
}

func int32Attr(v int) []byte { return nl.Uint32Attr(uint32(int32(v))) }

func int32Of(b []byte) (int, error) {
	if len(b) != 4 {
		return 0, fmt.Errorf("a number of %d bytes", len(b))
	}
	return int(int32(nl.NativeEndian().Uint32(b))), nil
}
