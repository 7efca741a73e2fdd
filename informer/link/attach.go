package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// pace is the least time between two looks at how pods are attached.
const pace = time.Second

// absentFactor is how much longer than Lasting is waited if a pod cannot be on this
// node at all as things are: there is no route to it, or only by a gateway. On a
// node that has just come up, that is how pods look that ran before, until their
// network has been made anew.
const absentFactor = 6

// Unseen is a pod's address to which the node's packets do not go by a device of
// that pod's own, nor by a bridge of the node's: what the pod sends and gets does
// not pass the node's hooks.
type Unseen struct {
	Addr netip.Addr
	// Device is the interface that the node would reach it by; empty if there is
	// no route.
	Device string
	// Kind is what the kernel calls the kind of the device, for example
	// openvswitch; empty if it is a physical one or there is none.
	Kind string
}

// AttachmentsOptions are what Attachments need.
type AttachmentsOptions struct {
	// Logger is told if the kernel cannot be asked.
	Logger *slog.Logger
	// Lasting is how long an address must be unseen before that is believed.
	// Where pods are routed, the route of one that starts or ends is missing for
	// a moment. 10 seconds if it is 0; see also absentFactor.
	Lasting time.Duration
	// Interval is the time after which is looked without a cause: nobody tells of
	// changes of routes. 30 seconds if it is 0.
	Interval time.Duration
	// Observe is called after every look, one call at a time, with what has
	// lasted, sorted by address.
	Observe func([]Unseen)
}

// Attachments find the pods of this node whose packets do not pass its hooks.
// Want and Run may be called at the same time.
type Attachments struct {
	options AttachmentsOptions
	links   *links
	changed chan struct{}

	mu   sync.Mutex
	pods []netip.Addr

	// What follows belongs to Run: since when addresses are unseen, and the
	// devices by their indices, which the kernel does not give out twice.
	since   map[netip.Addr]time.Time
	devices map[int]device
	failed  bool
}

// NewAttachments returns Attachments for the network namespace of the caller,
// which do nothing before Run. It fails if there is no netlink.
func NewAttachments(o AttachmentsOptions) (*Attachments, error) {
	if o.Lasting == 0 {
		o.Lasting = 10 * time.Second
	}
	if o.Interval == 0 {
		o.Interval = 30 * time.Second
	}
	l, err := newLinks()
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return &Attachments{options: o, links: l, changed: make(chan struct{}, 1), since: make(map[netip.Addr]time.Time)}, nil
}

// Want says which addresses the pods of this node have, hostNetwork pods left
// out.
func (a *Attachments) Want(pods []netip.Addr) {
	a.mu.Lock()
	same := slices.Equal(a.pods, pods)
	a.pods = slices.Clone(pods)
	a.mu.Unlock()
	if same {
		return
	}
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// Run looks after each Want, and at intervals, until ctx ends.
func (a *Attachments) Run(ctx context.Context) error {
	for {
		interval := a.options.Interval
		if len(a.since) > 0 {
			interval = min(interval, a.options.Lasting/2)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.changed:
		case <-time.After(interval):
		}
		a.mu.Lock()
		pods := a.pods
		a.mu.Unlock()
		found, err := a.look(pods, time.Now())
		if err != nil && !a.failed {
			a.options.Logger.Warn("cannot tell how the pods are attached", "err", err)
		}
		a.failed = err != nil
		if err == nil {
			a.options.Observe(found)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(pace, interval)):
		}
	}
}

// look asks for the route to every pod and returns those that are unseen for
// long enough.
func (a *Attachments) look(pods []netip.Addr, now time.Time) ([]Unseen, error) {
	since, devices := make(map[netip.Addr]time.Time), make(map[int]device, len(a.devices))
	var found []Unseen
	for _, pod := range pods {
		route, err := a.links.route(pod)
		if err != nil {
			return nil, fmt.Errorf("ask for the route to %s: %w", pod, err)
		}
		d, err := a.device(devices, route.index)
		if errors.Is(err, unix.ENODEV) { // it went away meanwhile
			d, err = device{}, nil
		}
		if err != nil {
			return nil, fmt.Errorf("ask for the interface to %s: %w", pod, err)
		}
		if a.passes(devices, route, d) {
			continue
		}
		from, ok := a.since[pod]
		if !ok {
			from = now
		}
		since[pod] = from
		wait := a.options.Lasting
		if route.index == 0 || route.gateway {
			wait *= absentFactor
		}
		if now.Sub(from) >= wait {
			found = append(found, Unseen{Addr: pod, Device: d.name, Kind: d.kind})
		}
	}
	a.since, a.devices = since, devices
	slices.SortFunc(found, func(a, b Unseen) int { return a.Addr.Compare(b.Addr) })
	return found, nil
}

// device looks a device up among those in use, and keeps it there.
func (a *Attachments) device(inUse map[int]device, index int) (device, error) {
	if d, ok := inUse[index]; ok || index == 0 {
		return d, nil
	}
	d, ok := a.devices[index]
	if !ok {
		var err error
		if d, err = a.links.device(index); err != nil {
			return d, err
		}
	}
	inUse[index] = d
	return d, nil
}

// passes tells whether packets to and from a pod pass the hook `forward` of this
// node, or can be made to by br_netfilter.
func (a *Attachments) passes(inUse map[int]device, r route, d device) bool {
	switch {
	case r.index == 0, r.local, r.gateway:
		return false
	case d.kind == "bridge":
		return true
	case d.kind == "vlan" || d.kind == "macvlan": // on top of a bridge, see links.under
		parent, err := a.device(inUse, d.parent)
		return err == nil && parent.kind == "bridge"
	case d.kind == "veth" || d.kind == "netkit" || d.kind == "tun":
		// A device of that kind that leads to a subnet is the node's uplink,
		// in a node that is a container, or somebody else's router.
		return r.host
	}
	return false
}

// route is the way to an address.
type route struct {
	index int  // of the interface; 0 if there is no route
	local bool // the address is the node's own
	// gateway says that it is reached by another machine, host that the route
	// is for this address alone.
	gateway, host bool
}

// device is a network interface.
type device struct {
	name, kind string
	parent     int
}

// route asks the kernel how a packet to an address would go.
func (l *links) route(addr netip.Addr) (route, error) {
	routes, err := l.handle.RouteGetWithOptions(addr.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	for _, none := range []error{
		unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, // fib_props in net/ipv4/fib_semantics.c
		unix.EAFNOSUPPORT, unix.EOPNOTSUPP, // no IPv6 in this kernel
	} {
		if errors.Is(err, none) {
			return route{}, nil
		}
	}
	if err != nil || len(routes) == 0 {
		return route{}, err
	}
	found := routes[0]
	r := route{index: found.LinkIndex, local: found.Type == unix.RTN_LOCAL, gateway: found.Gw != nil || found.Via != nil}
	if len(found.MultiPath) > 0 {
		r.index, r.gateway = found.MultiPath[0].LinkIndex, true
	}
	if found.Dst != nil {
		ones, bits := found.Dst.Mask.Size()
		r.host = ones == bits
	}
	switch found.Type {
	case unix.RTN_UNREACHABLE, unix.RTN_BLACKHOLE, unix.RTN_PROHIBIT: // of IPv6, see ip6_null_entry
		r = route{}
	}
	return r, nil
}

// device reads the name and the kind of an interface. The netlink library's own
// LinkByIndex reads all that there is, for some microseconds more each.
func (l *links) device(index int) (device, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return device{}, err
	}
	for _, m := range messages {
		if len(m) < unix.SizeofIfInfomsg {
			continue
		}
		attrs, err := nl.ParseRouteAttrAsMap(m[unix.SizeofIfInfomsg:])
		if err != nil {
			return device{}, err
		}
		info, err := nl.ParseRouteAttrAsMap(attrs[unix.IFLA_LINKINFO].Value)
		if err != nil {
			return device{}, err
		}
		d := device{name: unix.ByteSliceToString(attrs[unix.IFLA_IFNAME].Value), kind: unix.ByteSliceToString(info[nl.IFLA_INFO_KIND].Value)}
		if parent := attrs[unix.IFLA_LINK].Value; len(parent) == 4 {
			d.parent = int(nl.NativeEndian().Uint32(parent))
		}
		return d, nil
	}
	return device{}, fmt.Errorf("no answer about link %d", index)
}

// Exists tells whether this network namespace has an interface of that name.
func Exists(name string) (bool, error) {
	_, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	return err == nil, err
}
