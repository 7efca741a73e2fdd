package tc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/shaping"
)

// The groups of our IFBs, as `ip link show group 24090` takes them. Those that are to
// go are moved to the second one: to remove a group takes the kernel as long as to
// remove one, some 40 ms, because it waits for all processors once
// (unregister_netdevice_many in net/core/dev.c).
const (
	ifbGroup    = 24090
	doomedGroup = 24091
)

// aliasPrefix begins the alias of an IFB of ours; aliasHook is in it if we made the
// hook that leads there.
const (
	aliasPrefix = "selvage "
	aliasHook   = "clsact=own "
	// maxAlias is what the kernel keeps of it (IFALIASZ).
	maxAlias = 255
)

// Attributes of links that x/sys does not have.
const (
	iflaInfoKind         = 1
	iflaIfalias          = 20
	iflaInet6AddrGenMode = 8
	addrGenModeNone      = 1 // IN6_ADDR_GEN_MODE_NONE
)

// ifb is an IFB of ours as the kernel describes it.
type ifb struct {
	index    int
	name     string
	up       bool
	group    uint32
	madeHook bool
}

// ifb asks for an IFB of ours by its name. If there is none, its index is 0. It is
// an error if the name is that of something else.
func (c *Conn) ifb(name string) (ifb, error) {
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.IFLA_IFNAME, name)
	attrs, err := ae.Encode()
	if err != nil {
		return ifb{}, err
	}
	answers, err := c.ask(unix.RTM_GETLINK, 0, append(ifinfomsg(0, 0, 0), attrs...))
	if errors.Is(err, unix.ENODEV) {
		return ifb{}, nil
	}
	if err != nil {
		return ifb{}, fmt.Errorf("ask for interface %s: %w", name, err)
	}
	if len(answers) == 0 {
		return ifb{}, fmt.Errorf("no answer about interface %s", name)
	}
	l, ours, err := decodeIFB(answers[0].Data)
	if err != nil {
		return ifb{}, fmt.Errorf("interface %s: %w", name, err)
	}
	if !ours {
		return ifb{}, fmt.Errorf("interface %s has our name, but we did not make it: rename or remove it", name)
	}
	return l, nil
}

// listIFBs returns all IFBs of ours.
func (c *Conn) listIFBs() ([]ifb, error) {
	answers, err := c.dump(unix.RTM_GETLINK, ifinfomsg(0, 0, 0))
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var all []ifb
	for _, m := range answers {
		l, ok, err := decodeIFB(m.Data)
		if err != nil {
			return nil, fmt.Errorf("list interfaces: %w", err)
		}
		if ok {
			all = append(all, l)
		}
	}
	return all, nil
}

// decodeIFB reads a message about a link, and tells whether it is an IFB of ours.
func decodeIFB(data []byte) (l ifb, ok bool, err error) {
	if len(data) < unix.SizeofIfInfomsg {
		return l, false, fmt.Errorf("a message of %d bytes", len(data))
	}
	l.index = int(int32(binary.NativeEndian.Uint32(data[4:])))
	l.up = binary.NativeEndian.Uint32(data[8:])&unix.IFF_UP != 0
	ad, err := netlink.NewAttributeDecoder(data[unix.SizeofIfInfomsg:])
	if err != nil {
		return l, false, err
	}
	var alias, kind string
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			l.name = ad.String()
		case iflaIfalias:
			alias = ad.String()
		case unix.IFLA_GROUP:
			l.group = ad.Uint32()
		case unix.IFLA_LINKINFO:
			ad.Nested(func(info *netlink.AttributeDecoder) error {
				for info.Next() {
					if info.Type() == iflaInfoKind {
						kind = info.String()
					}
				}
				return nil
			})
		}
	}
	// One that lacks its alias was left by an agent that ended at that moment, or was
	// given another one: the group was given with the making.
	mine := strings.HasPrefix(alias, aliasPrefix) || l.group == ifbGroup || l.group == doomedGroup
	l.madeHook = strings.Contains(alias, aliasHook)
	return l, kind == "ifb" && mine && shaping.IsIFBName(l.name), ad.Err()
}

// makeIFB makes an IFB for a pod and sets it up, or puts one right that is there. mtu
// is that of the interface whose packets it gets. hook says that the hook is ours.
func (c *Conn) makeIFB(name string, pod shaping.Pod, mtu int, hook bool) error {
	l, err := c.ifb(name)
	if err != nil {
		return err
	}
	if l.index == 0 {
		if l, err = c.newIFB(name, mtu); err != nil {
			return wrap("make IFB "+name, err)
		}
	}
	if !l.up {
		if err := c.silence(l.index); err != nil {
			return wrap("silence IFB "+name, err)
		}
	}
	return wrap("mark IFB "+name, c.link(unix.RTM_SETLINK, 0, ifinfomsg(l.index, unix.IFF_UP, unix.IFF_UP), func(ae *netlink.AttributeEncoder) {
		ae.String(iflaIfalias, aliasOf(pod, hook))
		ae.Uint32(unix.IFLA_GROUP, ifbGroup)
	}))
}

// newIFB makes an IFB that is down.
func (c *Conn) newIFB(name string, mtu int) (ifb, error) {
	err := c.link(unix.RTM_NEWLINK, netlink.Create|netlink.Excl, ifinfomsg(0, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, name)
		ae.Uint32(unix.IFLA_GROUP, ifbGroup)
		ae.Uint32(unix.IFLA_MTU, uint32(mtu))
		ae.Nested(unix.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
			info.String(iflaInfoKind, "ifb")
			return nil
		})
	})
	if err != nil {
		return ifb{}, err
	}
	return c.ifb(name)
}

// silence has an IFB that is down never get a link-local address. Without one it sends
// nothing of its own, which would be counted as the pod's.
func (c *Conn) silence(index int) error {
	err := c.link(unix.RTM_SETLINK, 0, ifinfomsg(index, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.Nested(unix.IFLA_AF_SPEC, func(families *netlink.AttributeEncoder) error {
			families.Nested(unix.AF_INET6, func(v6 *netlink.AttributeEncoder) error {
				v6.Uint8(iflaInet6AddrGenMode, addrGenModeNone)
				return nil
			})
			return nil
		})
	})
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) { // no IPv6, no address
		return nil
	}
	return err
}

// aliasOf tells people whose IFB it is, and agents whose the hook is. No zero byte
// ends it: the kernel adds one.
func aliasOf(pod shaping.Pod, hook bool) string {
	alias := aliasPrefix
	if hook {
		alias += aliasHook
	}
	alias += pod.Key.String() + " " + pod.UID
	return alias[:min(len(alias), maxAlias)]
}

// doomIFB has an IFB go with the next removeDoomed.
func (c *Conn) doomIFB(name string) error {
	l, err := c.ifb(name)
	if err != nil || l.index == 0 || l.group == doomedGroup {
		return err
	}
	return wrap("mark IFB "+name, c.link(unix.RTM_SETLINK, 0, ifinfomsg(l.index, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.Uint32(unix.IFLA_GROUP, doomedGroup)
	}))
}

// removeDoomed removes all IFBs of the doomed group at once, or one by one should
// somebody else have put an interface into that group.
func (c *Conn) removeDoomed() error {
	answers, err := c.dump(unix.RTM_GETLINK, ifinfomsg(0, 0, 0))
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var doomed []int
	strangers := false
	for _, m := range answers {
		l, ours, err := decodeIFB(m.Data)
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		switch {
		case l.group != doomedGroup:
		case ours:
			doomed = append(doomed, l.index)
		default:
			strangers = true
		}
	}
	if len(doomed) == 0 {
		return nil
	}
	if !strangers {
		return c.removeLinks(0)
	}
	var errs []error
	for _, index := range doomed {
		errs = append(errs, c.removeLinks(index))
	}
	return errors.Join(errs...)
}

// removeLinks removes the link of an index or, if that is 0, the doomed group.
func (c *Conn) removeLinks(index int) error {
	message := ifinfomsg(index, 0, 0)
	if index == 0 {
		ae := netlink.NewAttributeEncoder()
		ae.Uint32(unix.IFLA_GROUP, doomedGroup)
		attrs, err := ae.Encode()
		if err != nil {
			return err
		}
		message = append(message, attrs...)
	}
	_, err := c.ask(unix.RTM_DELLINK, 0, message)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return wrap("remove IFBs", err)
}

// link makes or changes a link.
func (c *Conn) link(kind uint16, flags netlink.HeaderFlags, message []byte, attributes func(*netlink.AttributeEncoder)) error {
	ae := netlink.NewAttributeEncoder()
	attributes(ae)
	attrs, err := ae.Encode()
	if err != nil {
		return err
	}
	_, err = c.ask(kind, flags, append(message, attrs...))
	return err
}

// ifinfomsg is struct ifinfomsg.
func ifinfomsg(index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(int32(index)))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}
