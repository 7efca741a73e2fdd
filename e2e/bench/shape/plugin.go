package shape

import (
	"errors"
	"fmt"
	"math"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/shaping"
)

// plugin does what the CNI's bandwidth plugin does (github.com/containernetworking/
// plugins, plugins/meta/bandwidth): a token bucket filter at the node's end of the
// veth for what goes to the pod; for what comes from it a redirect to an IFB with
// such a filter.
type plugin struct {
	netlink *netlink.Handle
	veth    netlink.Link
}

// The plugin's parameters. The burst is what containerd passes, in bits, for a pod that
// has a bandwidth annotation (toCNIBandWidth in internal/cri/server/sandbox_run.go of
// v2.2.9); a pod cannot give another.
const (
	pluginBurstBits = math.MaxUint32
	pluginLatency   = 0.025 // seconds
)

const pluginIFB = "bwp0"

func (p *plugin) limit(r shaping.Rate) error {
	if err := p.remove(); err != nil {
		return fmt.Errorf("remove what was there: %w", err)
	}
	if r == 0 {
		return nil
	}
	ifb := &netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: pluginIFB, Flags: net.FlagUp, MTU: p.veth.Attrs().MTU}}
	if err := p.netlink.LinkAdd(ifb); err != nil {
		return fmt.Errorf("add an IFB: %w", err)
	}
	hook := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: p.veth.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}
	if err := p.netlink.QdiscAdd(hook); err != nil {
		return fmt.Errorf("add ingress: %w", err)
	}
	redirect := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: p.veth.Attrs().Index, Parent: hook.Handle, Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		ClassId: netlink.MakeHandle(1, 1), RedirIndex: ifb.Index,
		Actions: []netlink.Action{&netlink.MirredAction{MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: ifb.Index}},
	}
	if err := p.netlink.FilterAdd(redirect); err != nil {
		return fmt.Errorf("add a redirect: %w", err)
	}
	return errors.Join(p.addTBF(p.veth.Attrs().Index, r), p.addTBF(ifb.Index, r))
}

// addTBF computes as the plugin does. The burst becomes microseconds and then
// ticks, both in 32 bits: under 16 Mbit/s the ticks overflow, and the kernel gets
// what is left of them.
func (p *plugin) addTBF(index int, r shaping.Rate) error {
	const burst = pluginBurstBits / 8
	rate := uint64(r) / 8
	micros := uint32(float64(burst) * netlink.TIME_UNITS_PER_SEC / float64(rate))
	tbf := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Limit:      uint32(float64(rate)*pluginLatency) + burst,
		Buffer:     uint32(uint64(float64(micros) * netlink.TickInUsec())),
	}
	if err := p.netlink.QdiscAdd(tbf); err != nil {
		return fmt.Errorf("add tbf: %w", err)
	}
	return nil
}

func (p *plugin) remove() error {
	qdiscs, err := p.netlink.QdiscList(p.veth)
	if err != nil {
		return err
	}
	for _, q := range qdiscs {
		if q.Type() == "tbf" || q.Type() == "ingress" {
			if err := p.netlink.QdiscDel(q); err != nil {
				return err
			}
		}
	}
	ifb, err := p.netlink.LinkByName(pluginIFB)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.netlink.LinkDel(ifb)
}

func (p *plugin) close() error {
	p.netlink.Close()
	return nil
}
