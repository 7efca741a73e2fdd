package tc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/shaping"
)

// look finds a queueing discipline of an interface, by its handle or, if that is 0,
// by its parent. If there is none, its kind is empty.
type look func(index int, handle, parent uint32) (qdisc, error)

// Read returns what there is at the interface of a pod, as far as it is ours or in
// our way.
func (c *Conn) Read(p shaping.Plan) (shaping.State, error) { return c.read(p, c.qdisc) }

// read is Read with a look of the caller's choice.
func (c *Conn) read(p shaping.Plan, look look) (shaping.State, error) {
	s := shaping.State{IFBs: make(map[string]shaping.IFB)}
	index := p.Interface.Index
	var err error
	if s.Root, err = rootOf(index, look); err != nil {
		return s, err
	}
	hook, err := look(index, 0, parentHook)
	if err != nil {
		return s, err
	}
	s.Hook = hook.kind
	names := make(map[int]string) // of the IFBs, by their indices
	for _, d := range shaping.Directions() {
		l, err := c.ifb(shaping.IFBName(p.Pod, d))
		if err != nil {
			return s, err
		}
		if l.index == 0 || l.group == doomedGroup {
			continue
		}
		root, err := rootOf(l.index, look)
		if err != nil {
			return s, err
		}
		names[l.index] = l.name
		s.IFBs[l.name] = shaping.IFB{Queue: root.Queue, Marked: l.madeHook, Up: l.up}
		s.HookOurs = s.HookOurs || l.madeHook
	}
	if s.Hook == "" {
		return s, nil
	}
	for _, place := range hooks() {
		if s.Redirects[place], err = c.redirect(p.Interface, place, names); err != nil {
			return s, err
		}
	}
	return s, nil
}

// hooks are the two places that clsact has.
func hooks() [2]shaping.Place { return [2]shaping.Place{shaping.Arriving, shaping.Leaving} }

// hookParents are the parents of the filters there.
func hookParents() map[shaping.Place]uint32 {
	return map[shaping.Place]uint32{shaping.Arriving: hookIngress, shaping.Leaving: hookEgress}
}

// qdisc is a look at the kernel. It answers to the group of those who listen, and to
// who asks only if that is asked for as well (qdisc_get_notify in
// net/sched/sch_api.c): Monitor passes over what comes of it.
func (c *Conn) qdisc(index int, handle, parent uint32) (qdisc, error) {
	answers, err := c.ask(unix.RTM_GETQDISC, netlink.Echo, tcmsg{index: index, handle: handle, parent: parent}.encode())
	if absent(err) {
		return qdisc{}, nil
	}
	if err != nil {
		return qdisc{}, fmt.Errorf("ask for a queueing discipline: %w", err)
	}
	for _, m := range answers {
		if m.Header.Type == unix.RTM_NEWQDISC {
			return decodeQdisc(m.Data)
		}
	}
	return qdisc{}, nil
}

// listing returns a look at a dump of all queueing disciplines: for many interfaces.
// The kernel goes on with a dump by position, and passes over something when an
// interface before it goes away, without a word (tc_dump_qdisc).
func (c *Conn) listing() (look, error) {
	all, err := c.qdiscs()
	if err != nil {
		return nil, err
	}
	of := make(map[int][]qdisc)
	for _, q := range all {
		of[q.index] = append(of[q.index], q)
	}
	return func(index int, handle, parent uint32) (qdisc, error) {
		for _, q := range of[index] {
			if handle != 0 && q.handle == handle || handle == 0 && q.parent == parent {
				return q, nil
			}
		}
		return c.qdisc(index, handle, parent) // it may be there all the same
	}, nil
}

// rootOf tells what the root of an interface is. The kernel's default has no handle.
func rootOf(index int, look look) (shaping.Root, error) {
	q, err := look(index, 0, parentRoot)
	switch {
	case err != nil:
		return shaping.Root{}, err
	case q.kind == "" || q.handle == 0:
		return shaping.Root{}, nil
	case q.handle != rootHandle || q.kind != "tbf":
		return shaping.Root{Foreign: q.kind}, nil
	}
	bucket, err := decodeTBF(q.options)
	if err != nil {
		return shaping.Root{}, fmt.Errorf("options of tbf: %w", err)
	}
	leaf, err := look(index, leafHandle, 0)
	if err != nil {
		return shaping.Root{}, err
	}
	queue := shaping.Queue{Bucket: bucket, Empty: q.stats.Backlog == 0, Sent: q.stats.Bytes}
	if leaf.kind == "fq_codel" {
		if queue.Leaf, err = decodeFQCodel(leaf.options); err != nil {
			return shaping.Root{}, fmt.Errorf("options of fq_codel: %w", err)
		}
	}
	return shaping.Root{Queue: &queue}, nil
}

// decodeTBF reads the options of tbf. The kernel does not return the burst in bytes,
// but the time that it takes (tbf_dump in net/sched/sch_tbf.c).
func decodeTBF(options []byte) (shaping.Bucket, error) {
	ad, err := netlink.NewAttributeDecoder(options)
	if err != nil {
		return shaping.Bucket{}, err
	}
	var b shaping.Bucket
	var ticks uint32
	for ad.Next() {
		switch ad.Type() {
		case tcaTbfParms:
			// struct tc_tbf_qopt: rate and peakrate of 12 bytes each, whose last 4
			// are the rate; then limit, buffer and mtu.
			p := ad.Bytes()
			if len(p) < 36 {
				return b, fmt.Errorf("parameters of %d bytes", len(p))
			}
			if b.Rate == 0 {
				b.Rate = uint64(binary.NativeEndian.Uint32(p[8:]))
			}
			b.Limit, ticks = binary.NativeEndian.Uint32(p[24:]), binary.NativeEndian.Uint32(p[28:])
		case tcaTbfRate64:
			b.Rate = ad.Uint64()
		case tcaTbfPrate64:
			if v := ad.Uint64(); v >= noPeak {
				b.Largest = uint32(v)
			}
		}
	}
	b.Burst = b.FromTicks(ticks)
	return b, ad.Err()
}

func decodeFQCodel(options []byte) (shaping.Leaf, error) {
	ad, err := netlink.NewAttributeDecoder(options)
	if err != nil {
		return shaping.Leaf{}, err
	}
	l := shaping.Leaf{FQCodel: true}
	fields := map[uint16]*uint32{
		tcaFQTarget: &l.Target, tcaFQInterval: &l.Interval, tcaFQMemory: &l.Memory,
		tcaFQLimit: &l.Packets, tcaFQQuantum: &l.Quantum, tcaFQFlows: &l.Flows,
	}
	for ad.Next() {
		if f, ok := fields[ad.Type()]; ok {
			*f = ad.Uint32()
		}
	}
	return l, ad.Err()
}

// redirect reads our filters of one hook. names are the pod's IFBs.
func (c *Conn) redirect(at shaping.Interface, place shaping.Place, names map[int]string) (shaping.Redirect, error) {
	filters, err := c.filters(at.Index, place)
	if err != nil {
		return shaping.Redirect{}, err
	}
	var r shaping.Redirect
	for _, f := range filters {
		r.There = true
		if f.preference == preferencesAt(place).redirect {
			r.IFB = names[f.to]
			continue
		}
		if block, ok := blockOf(f, at, place); ok {
			r.Exclude = append(r.Exclude, block)
		}
	}
	r.Exclude = shaping.Blocks(r.Exclude)
	return r, nil
}

// filter is a filter of ours, as the kernel describes it.
type filter struct {
	preference uint16
	keys       []key
	// to is the index of the interface that it redirects to; 0 if it does not.
	to int
}

// filters lists our filters of one hook.
func (c *Conn) filters(index int, place shaping.Place) ([]filter, error) {
	parent, prefer := hookParents()[place], preferencesAt(place)
	answers, err := c.dump(unix.RTM_GETTFILTER, tcmsg{index: index, parent: parent}.encode())
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	var found []filter
	for _, m := range answers {
		header, ad, err := decodeTcmsg(m.Data)
		if err != nil {
			return nil, err
		}
		// The upper half of info is the preference, the lower the protocol. A dump of
		// an interface without hook is that of its root.
		f := filter{preference: uint16(header.info >> 16)}
		if m.Header.Type != unix.RTM_NEWTFILTER || !prefer.has(f.preference) || header.parent != parent {
			continue
		}
		var kind string
		var options []byte
		for ad.Next() {
			switch ad.Type() {
			case tcaKind:
				kind = ad.String()
			case tcaOptions:
				options = ad.Bytes()
			}
		}
		if kind != "u32" {
			continue
		}
		complete, err := f.decode(options)
		if err := errors.Join(err, ad.Err()); err != nil {
			return nil, fmt.Errorf("filter %d: %w", f.preference, err)
		}
		if complete { // and no hash table of u32
			found = append(found, f)
		}
	}
	return found, nil
}

// decode reads the options of u32. It tells whether that is a filter: a hash table
// has no selector.
func (f *filter) decode(options []byte) (complete bool, err error) {
	ad, err := netlink.NewAttributeDecoder(options)
	if err != nil {
		return false, err
	}
	for ad.Next() {
		switch ad.Type() {
		case tcaU32Sel:
			complete = true
			f.keys = decodeKeys(ad.Bytes())
		case tcaU32Act:
			ad.Nested(func(actions *netlink.AttributeDecoder) error {
				for actions.Next() {
					actions.Nested(f.decodeAction)
				}
				return nil
			})
		}
	}
	return complete, ad.Err()
}

func (f *filter) decodeAction(ad *netlink.AttributeDecoder) error {
	var kind string
	var options []byte
	for ad.Next() {
		switch ad.Type() {
		case tcaActKind:
			kind = ad.String()
		case tcaActOptions:
			options = ad.Bytes()
		}
	}
	if kind != "mirred" {
		return nil
	}
	mirred, err := netlink.NewAttributeDecoder(options)
	if err != nil {
		return err
	}
	for mirred.Next() {
		// struct tc_mirred ends with the index of the interface; -1, or 0, after it
		// has gone.
		if b := mirred.Bytes(); mirred.Type() == tcaMirredParms && len(b) >= 28 {
			f.to = max(0, int(int32(binary.NativeEndian.Uint32(b[24:]))))
		}
	}
	return mirred.Err()
}

// blockOf returns the block of addresses that a filter leaves out.
func blockOf(f filter, at shaping.Interface, place shaping.Place) (netip.Prefix, bool) {
	family := 4
	if f.preference == preferencesAt(place).exclude6 {
		family = 6
	}
	return prefixOf(f.keys, family, at.DirectionAt(place) == shaping.Egress)
}
