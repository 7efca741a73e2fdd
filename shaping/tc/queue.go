package tc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	gotc "github.com/florianl/go-tc"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/shaping"
)

// linklayerEthernet is TC_LINKLAYER_ETHERNET: with it, the kernel wants no table of
// rates.
const linklayerEthernet = 1

// setQueue puts a queue at the root of a device, or changes the one that is there.
// A change loses nothing that waits: the kernel takes new parameters for the same
// handle (tbf_change in net/sched/sch_tbf.c).
func (c *Conn) setQueue(index int, q shaping.Queue, fresh bool) error {
	if err := c.setTBF(index, q.Bucket, fresh); err != nil {
		return wrap("set tbf", err)
	}
	if !q.Leaf.FQCodel {
		return nil // tbf makes the FIFO itself
	}
	err := c.setFQCodel(index, q.Leaf, false)
	if absent(err) {
		err = c.setFQCodel(index, q.Leaf, true)
	}
	return wrap("set fq_codel", err)
}

func (c *Conn) setTBF(index int, b shaping.Bucket, fresh bool) error {
	if b.Rate > math.MaxUint32 || b.Largest != 0 {
		return c.setOddTBF(index, b, fresh)
	}
	o := &gotc.Object{
		Msg: gotc.Msg{Ifindex: uint32(index), Handle: rootHandle, Parent: parentRoot},
		Attribute: gotc.Attribute{Kind: "tbf", Tbf: &gotc.Tbf{
			Parms: &gotc.TbfQopt{
				Rate:   gotc.RateSpec{Rate: uint32(b.Rate), Linklayer: linklayerEthernet},
				Limit:  b.Limit,
				Buffer: b.Ticks(b.Burst),
			},
			Burst: &b.Burst,
		}},
	}
	if fresh {
		return c.tc.Qdisc().Replace(o) // of what the kernel, or the bandwidth plugin, has put there
	}
	return c.tc.Qdisc().Change(o)
}

// noPeak is a peak rate in bytes per second that holds up nothing: any packet takes 0
// ns. To have a peak rate is the only way to give the largest packet apart from the
// burst (max_size in tbf_change). The kernel tells the peak rate and not that size,
// which therefore is in the rate's lower half.
const noPeak = 1 << 62

// setOddTBF is setTBF for what go-tc has no attributes for: a rate that 32 bits do not
// hold, 34.36 Gbit/s and more, and a largest packet.
func (c *Conn) setOddTBF(index int, b shaping.Bucket, fresh bool) error {
	parms := make([]byte, 36) // struct tc_tbf_qopt, see decodeTBF
	parms[1] = linklayerEthernet
	binary.NativeEndian.PutUint32(parms[8:], uint32(min(b.Rate, math.MaxUint32)))
	if b.Largest != 0 {
		parms[13] = linklayerEthernet
		binary.NativeEndian.PutUint32(parms[20:], math.MaxUint32)
	}
	binary.NativeEndian.PutUint32(parms[24:], b.Limit)
	binary.NativeEndian.PutUint32(parms[28:], b.Ticks(b.Burst))
	ae := netlink.NewAttributeEncoder()
	ae.String(tcaKind, "tbf")
	ae.Nested(tcaOptions, func(o *netlink.AttributeEncoder) error {
		o.Bytes(tcaTbfParms, parms)
		o.Uint64(tcaTbfRate64, b.Rate)
		o.Uint32(tcaTbfBurst, b.Burst)
		if b.Largest != 0 {
			o.Uint64(tcaTbfPrate64, noPeak|uint64(b.Largest))
			o.Uint32(tcaTbfPburst, b.Largest)
		}
		return nil
	})
	attrs, err := ae.Encode()
	if err != nil {
		return err
	}
	var flags netlink.HeaderFlags
	if fresh {
		flags = netlink.Create | netlink.Replace
	}
	_, err = c.ask(unix.RTM_NEWQDISC, flags, append(tcmsg{index: index, handle: rootHandle, parent: parentRoot}.encode(), attrs...))
	return err
}

func (c *Conn) setFQCodel(index int, l shaping.Leaf, fresh bool) error {
	ecn := uint32(1)
	options := &gotc.FqCodel{
		Target: &l.Target, Interval: &l.Interval, MemoryLimit: &l.Memory, Limit: &l.Packets, Quantum: &l.Quantum, ECN: &ecn,
	}
	o := &gotc.Object{
		Msg:       gotc.Msg{Ifindex: uint32(index), Handle: leafHandle, Parent: rootClass},
		Attribute: gotc.Attribute{Kind: "fq_codel", FqCodel: options},
	}
	if fresh {
		options.Flows = &l.Flows
		return c.tc.Qdisc().Replace(o)
	}
	return c.tc.Qdisc().Change(o)
}

// drainTime is how long a queue that is to go may take to send what waits. At a
// slow rate the kernel's timer for the next packet lasts: it is not moved by a
// change.
const drainTime = 100 * time.Millisecond

// removeQueue takes a queue of ours away. What waits in it is sent before, as far as
// that is done in drainTime.
func (c *Conn) removeQueue(index int) error {
	q, err := c.qdisc(index, rootHandle, 0)
	if err != nil || q.kind != "tbf" {
		return err
	}
	if q.stats.Backlog > 0 {
		if err := c.drain(index); err != nil {
			return err
		}
	}
	err = c.tc.Qdisc().Delete(&gotc.Object{
		Msg:       gotc.Msg{Ifindex: uint32(index), Handle: rootHandle, Parent: parentRoot},
		Attribute: gotc.Attribute{Kind: "tbf", Tbf: &gotc.Tbf{Parms: &gotc.TbfQopt{}}},
	})
	if removed(err) {
		return nil
	}
	return wrap("remove tbf", err)
}

// drain lets everything out.
func (c *Conn) drain(index int) error {
	open := shaping.Bucket{Rate: math.MaxUint32, Burst: math.MaxUint32, Limit: 64 << 20}
	if err := c.setTBF(index, open, false); err != nil {
		return wrap("open tbf", err)
	}
	for deadline := time.Now().Add(drainTime); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		q, err := c.qdisc(index, rootHandle, 0)
		if err != nil || q.stats.Backlog == 0 {
			return err
		}
	}
	return nil
}

// ErrGone says that the interface is not there any more.
var ErrGone = errors.New("the interface is gone")

// Do carries out one step of a plan. It can be repeated.
func (c *Conn) Do(p shaping.Plan, s shaping.Step) error {
	err := c.do(p, s)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODEV):
		err = fmt.Errorf("%w: %w", ErrGone, err)
	}
	return fmt.Errorf("%s, at %s: %w", s, p.Interface.Name, err)
}

func (c *Conn) do(p shaping.Plan, s shaping.Step) error {
	index := p.Interface.Index
	device := index
	if s.Device != "" && s.Op != shaping.MakeIFB && s.Op != shaping.MarkIFB && s.Op != shaping.RemoveIFB || s.Op == shaping.SetRedirect {
		name := s.Device
		if s.Op == shaping.SetRedirect {
			name = s.IFB
		}
		l, err := c.ifb(name)
		if err != nil {
			return err
		}
		if device = l.index; device == 0 {
			return fmt.Errorf("IFB %s: %w", name, unix.ENODEV)
		}
	}
	switch s.Op {
	case shaping.MakeIFB:
		return c.makeIFB(s.Device, p.Pod, p.Interface.Frame-shaping.EthernetHeader, s.Hook)
	case shaping.MarkIFB:
		return c.makeIFB(s.Device, p.Pod, p.Interface.Frame-shaping.EthernetHeader, true)
	case shaping.SetQueue:
		return c.setQueue(device, s.Queue, s.Fresh)
	case shaping.RemoveQueue:
		return c.removeQueue(device)
	case shaping.MakeHook:
		return c.makeHook(index)
	case shaping.TakeHook:
		return c.takeHook(index)
	case shaping.SetRedirect:
		return c.setRedirect(p.Interface, s.Place, device, s.Exclude)
	case shaping.RemoveRedirect:
		return c.removeRedirect(index, s.Place)
	case shaping.RemoveHook:
		return c.removeHook(index)
	case shaping.RemoveIFB:
		return c.doomIFB(s.Device)
	}
	return fmt.Errorf("unknown step %q", s.Op)
}
