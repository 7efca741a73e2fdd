package policy

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
)

// DenyAction is what happens to a packet that policy denies.
type DenyAction string

// PodToNode is what applies to traffic from a pod to its own node.
type PodToNode string

// The settings.
const (
	// DenyDrop drops silently.
	DenyDrop DenyAction = "drop"
	// DenyReject answers with a TCP reset or an ICMP message.
	DenyReject DenyAction = "reject"

	// PodToNodeAllow always lets a pod talk to its node, as the API's
	// documentation says.
	PodToNodeAllow PodToNode = "allow"
	// PodToNodePolicy subjects such traffic to the pod's egress policies.
	PodToNodePolicy PodToNode = "policy"
)

// DefaultMarkMask are the bits of the conntrack mark that hold the generation.
// They are chosen from those that none of these uses in packet or conntrack
// marks, since many setups copy the one into the other: kube-proxy 0x4000 and
// 0x8000, flannel 0x4000, Calico 0xffff0000, Cilium 0x0f00, Istio 0x539 and
// 0x53a. That leaves bits 2, 6, 7, 12 and 13: 31 generations.
const DefaultMarkMask MarkMask = 0x30c4

// DefaultSharedAbove is the number of pods above which a selector becomes a
// shared set with a rule of its own, instead of elements in the sets of peers
// of the signatures that allow it.
const DefaultSharedAbove = 1024

// MarkMask are the bits of the conntrack mark that hold the generation. They
// need not be adjacent.
type MarkMask uint32

// Max is the greatest generation that fits. Generations count from 1; 0 is
// what a flow carries that was never judged.
func (m MarkMask) Max() uint32 { return uint32(1)<<bits.OnesCount32(uint32(m)) - 1 }

// Mark spreads generation gen over the bits of the mask.
func (m MarkMask) Mark(gen uint32) Mark {
	mark := Mark{Mask: uint32(m)}
	for rest := uint32(m); rest != 0 && gen != 0; rest &= rest - 1 {
		if gen&1 != 0 {
			mark.Value |= rest & -rest
		}
		gen >>= 1
	}
	return mark
}

// Generation gathers a generation from the bits of a mark: the reverse of Mark.
func (m MarkMask) Generation(mark uint32) uint32 {
	var gen uint32
	for rest, i := uint32(m), 0; rest != 0; rest, i = rest&(rest-1), i+1 {
		if mark&(rest&-rest) != 0 {
			gen |= 1 << i
		}
	}
	return gen
}

// Next is the generation after gen. After Max comes 1.
func (m MarkMask) Next(gen uint32) uint32 {
	if gen >= m.Max() {
		return 1
	}
	return gen + 1
}

// Config is what the compilation depends on besides the cluster's objects.
type Config struct {
	// NodeName is the node whose pods are isolated.
	NodeName   string
	MarkMask   MarkMask
	DenyAction DenyAction
	PodToNode  PodToNode
	// SharedAbove: see DefaultSharedAbove.
	SharedAbove int
	// Log says that the kernel can log samples of what is denied: without it that is
	// counted only.
	Log bool
	// Masquerade says that the kernel can masquerade: without it no pool's
	// NATOutgoing has an effect.
	Masquerade bool
	// NoMasquerade are blocks of addresses, masked: what goes there keeps its source.
	NoMasquerade []netip.Prefix
	// ServiceCIDRs are the blocks of Services' addresses, masked, as far as no object
	// of the API tells of them.
	ServiceCIDRs []netip.Prefix
	// Generation is the one to start with; 0 means 1. An agent that finds its
	// tables in the kernel goes on with theirs.
	Generation uint32
}

// DefaultConfig returns the defaults for a node.
func DefaultConfig(node string) Config {
	return Config{
		NodeName:    node,
		MarkMask:    DefaultMarkMask,
		DenyAction:  DenyDrop,
		PodToNode:   PodToNodeAllow,
		SharedAbove: DefaultSharedAbove,
		Log:         true,
		Masquerade:  true,
	}
}

// Validate says what is wrong with the configuration, all at once.
func (c Config) Validate() error {
	var errs []error
	if c.NodeName == "" {
		errs = append(errs, errors.New("the node's name is empty"))
	}
	if bits.OnesCount32(uint32(c.MarkMask)) < 2 {
		errs = append(errs, fmt.Errorf("the mark mask %#x has fewer than 2 bits: the generation before the current one could not be told from it", uint32(c.MarkMask)))
	}
	if c.DenyAction != DenyDrop && c.DenyAction != DenyReject {
		errs = append(errs, fmt.Errorf("the deny action is %q, neither %q nor %q", c.DenyAction, DenyDrop, DenyReject))
	}
	if c.PodToNode != PodToNodeAllow && c.PodToNode != PodToNodePolicy {
		errs = append(errs, fmt.Errorf("pod to node is %q, neither %q nor %q", c.PodToNode, PodToNodeAllow, PodToNodePolicy))
	}
	if c.SharedAbove < 0 {
		errs = append(errs, fmt.Errorf("the selector size above which sets are shared is negative: %d", c.SharedAbove))
	}
	if c.Generation > c.MarkMask.Max() {
		errs = append(errs, fmt.Errorf("generation %d does not fit into the mark mask %#x", c.Generation, uint32(c.MarkMask)))
	}
	errs = append(errs, validateBlocks("to keep the source of what goes to", c.NoMasquerade)...)
	errs = append(errs, validateBlocks("for Services", c.ServiceCIDRs)...)
	return errors.Join(errs...)
}

func validateBlocks(purpose string, blocks []netip.Prefix) (errs []error) {
	for _, b := range blocks {
		switch {
		case !b.IsValid() || b.Addr().Is4In6():
			errs = append(errs, fmt.Errorf("the block %s is no block of IPv4 or IPv6 addresses", purpose))
		case b != b.Masked():
			errs = append(errs, fmt.Errorf("the block %s %s has bits of a host: it would be %s", purpose, b, b.Masked()))
		}
	}
	return errs
}
