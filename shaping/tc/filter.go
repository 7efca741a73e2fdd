package tc

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	gotc "github.com/florianl/go-tc"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/shaping"
)

// preferences are those of our filters in one hook; the lower one is asked first. One
// preference is for one protocol.
type preferences struct{ exclude4, exclude6, redirect uint16 }

// preferencesAt returns those of a place. Each has its own: u32 has the filters of both
// hooks of an interface in one place, and lists those of a preference for either
// (tc_u_common_ptr in net/sched/cls_u32.c).
func preferencesAt(place shaping.Place) preferences {
	if place == shaping.Leaving {
		return preferences{24083, 24084, 24085}
	}
	return preferences{24080, 24081, 24082}
}

func (p preferences) has(preference uint16) bool {
	return preference >= p.exclude4 && preference <= p.redirect
}

// key is struct tc_u32_key: 32 bits of the packet, at an offset from the network
// header. Mask and value are in the order of the network.
type key struct {
	mask, value [4]byte
	offset      int32
}

// u32Terminal says that what matches is decided here, by the action or, if there is
// none, by going on as if nothing had been asked (TC_U32_TERMINAL).
const u32Terminal = 1

// mirredEgressRedirect is TCA_EGRESS_REDIR.
const mirredEgressRedirect = 1

// setRedirect makes the filters of a hook that lead to an IFB, in place of those
// that there are. exclude are the pod's peers: what it sends has them for its
// destination, what it gets for its source.
func (c *Conn) setRedirect(at shaping.Interface, place shaping.Place, to int, exclude []netip.Prefix) error {
	index, parent, prefer := at.Index, hookParents()[place], preferencesAt(place)
	if err := c.removeRedirect(index, place); err != nil {
		return err
	}
	for _, block := range exclude {
		f := gotc.U32{Sel: selector(keysOf(block, at.DirectionAt(place) == shaping.Egress))}
		preference, protocol := prefer.exclude4, uint16(unix.ETH_P_IP)
		if block.Addr().Is6() {
			preference, protocol = prefer.exclude6, unix.ETH_P_IPV6
		}
		if err := c.addFilter(index, parent, preference, protocol, f); err != nil {
			return fmt.Errorf("leave out %s: %w", block, err)
		}
	}
	// One key that everything matches: u32 wants one.
	f := gotc.U32{
		Sel: selector([]key{{}}),
		Actions: &[]*gotc.Action{{Kind: "mirred", Mirred: &gotc.Mirred{Parms: &gotc.MirredParam{
			Action: gotc.ActStolen, Eaction: mirredEgressRedirect, IfIndex: uint32(to),
		}}}},
	}
	return c.addFilter(index, parent, prefer.redirect, unix.ETH_P_ALL, f)
}

func (c *Conn) addFilter(index int, parent uint32, preference, protocol uint16, f gotc.U32) error {
	return wrap("make a filter", c.tc.Filter().Add(&gotc.Object{
		Msg:       gotc.Msg{Ifindex: uint32(index), Parent: parent, Info: filterInfo(preference, protocol)},
		Attribute: gotc.Attribute{Kind: "u32", U32: &f},
	}))
}

// filterInfo is a filter's preference, and its protocol in the order of the network.
func filterInfo(preference, protocol uint16) uint32 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], protocol)
	return uint32(preference)<<16 | uint32(binary.NativeEndian.Uint16(b[:]))
}

// removeRedirect removes all our filters of a hook. That which redirects goes first:
// without the others it would take what they leave out.
func (c *Conn) removeRedirect(index int, place shaping.Place) error {
	prefer := preferencesAt(place)
	for _, preference := range []uint16{prefer.redirect, prefer.exclude4, prefer.exclude6} {
		// Without a protocol, all of a preference go.
		err := c.tc.Filter().Delete(&gotc.Object{
			Msg:       gotc.Msg{Ifindex: uint32(index), Parent: hookParents()[place], Info: filterInfo(preference, 0)},
			Attribute: gotc.Attribute{Kind: "u32"},
		})
		if err != nil && !removed(err) {
			return wrap("remove a filter", err)
		}
	}
	return nil
}

// makeHook makes clsact. One that is there by now is somebody else's: that is an error,
// which has everything read anew.
func (c *Conn) makeHook(index int) error {
	return wrap("make clsact", c.tc.Qdisc().Add(hookObject(index, "clsact")))
}

// takeHook puts clsact in the place of ingress. The filters of that go with it.
func (c *Conn) takeHook(index int) error {
	if err := c.tc.Qdisc().Delete(hookObject(index, "ingress")); err != nil && !removed(err) {
		return wrap("remove ingress", err)
	}
	return c.makeHook(index)
}

// removeHook removes clsact, unless there are filters in it.
func (c *Conn) removeHook(index int) error {
	for _, parent := range hookParents() {
		answers, err := c.dump(unix.RTM_GETTFILTER, tcmsg{index: index, parent: parent}.encode())
		if err != nil && !absent(err) {
			return fmt.Errorf("list filters: %w", err)
		}
		for _, m := range answers {
			if header, _, err := decodeTcmsg(m.Data); err != nil || header.parent == parent {
				return err
			}
		}
	}
	err := c.tc.Qdisc().Delete(hookObject(index, "clsact"))
	if removed(err) {
		return nil
	}
	return wrap("remove clsact", err)
}

func hookObject(index int, kind string) *gotc.Object {
	return &gotc.Object{
		Msg:       gotc.Msg{Ifindex: uint32(index), Handle: hookHandle, Parent: parentHook},
		Attribute: gotc.Attribute{Kind: kind},
	}
}

// keysOf matches packets to a block (destination), or from it.
func keysOf(block netip.Prefix, destination bool) []key {
	offset := addressOffset(block.Addr().Is4(), destination)
	addr := block.Masked().Addr().AsSlice()
	keys := []key{}
	for i, bits := 0, block.Bits(); i < len(addr) && (bits > 0 || i == 0); i, bits = i+4, bits-32 {
		k := key{offset: offset + int32(i)}
		binary.BigEndian.PutUint32(k.mask[:], ^uint32(0)<<(32-max(0, min(bits, 32))))
		copy(k.value[:], addr[i:])
		keys = append(keys, k)
	}
	return keys
}

// prefixOf is keysOf, turned round. ok is false if these are not such keys.
func prefixOf(keys []key, family int, destination bool) (p netip.Prefix, ok bool) {
	addr := make([]byte, map[int]int{4: 4, 6: 16}[family])
	bits := 0
	for _, k := range keys {
		i := int(k.offset - addressOffset(family == 4, destination))
		if i < 0 || i+4 > len(addr) {
			return netip.Prefix{}, false
		}
		copy(addr[i:], k.value[:])
		for m := binary.BigEndian.Uint32(k.mask[:]); m != 0; m <<= 1 {
			bits++
		}
	}
	a, _ := netip.AddrFromSlice(addr)
	p = netip.PrefixFrom(a, bits)
	return p, p.IsValid() && p == p.Masked()
}

// addressOffset is where an address is in its header.
func addressOffset(v4, destination bool) int32 {
	switch {
	case v4 && destination:
		return 16
	case v4:
		return 12
	case destination:
		return 24
	}
	return 8
}

// selector is struct tc_u32_sel.
func selector(keys []key) *gotc.U32Sel {
	s := &gotc.U32Sel{Flags: u32Terminal, NKeys: uint8(len(keys))}
	for _, k := range keys {
		s.Keys = append(s.Keys, gotc.U32Key{
			Mask: binary.NativeEndian.Uint32(k.mask[:]), Val: binary.NativeEndian.Uint32(k.value[:]), Off: uint32(k.offset),
		})
	}
	return s
}

// decodeKeys reads the keys of struct tc_u32_sel, which follow its 16 bytes.
func decodeKeys(sel []byte) []key {
	const head, size = 16, 16
	if len(sel) < head {
		return nil
	}
	var keys []key
	for b := sel[head:]; len(b) >= size && len(keys) < int(sel[2]); b = b[size:] {
		keys = append(keys, key{mask: [4]byte(b), value: [4]byte(b[4:]), offset: int32(binary.NativeEndian.Uint32(b[8:]))})
	}
	return keys
}
