package policy

import (
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
)

// PoolLabel is a key that selectors in policies can use as if every pod that has an
// address in a pool had a label of this key whose value is the pool's name. A label
// that a pod really has under it does not count.
const PoolLabel = "selvage.dev/pool"

// Origin is where a pool comes from. Of pools that overlap, one of a lesser Origin
// goes first.
type Origin uint8

// The origins.
const (
	// OriginSelvage is an IPPool of selvage.dev.
	OriginSelvage Origin = iota
	// OriginCalico is an IPPool of crd.projectcalico.org.
	OriginCalico
	// OriginNode is a node's podCIDRs. They are pools if there are no others, without
	// settings, and not known to PoolLabel.
	OriginNode
)

// String returns a word for the origin.
func (o Origin) String() string {
	switch o {
	case OriginSelvage:
	case OriginCalico:
		return "calico"
	case OriginNode:
		return "node"
	}
	return "selvage"
}

// Pool is a range of addresses that pods have.
type Pool struct {
	Meta
	Origin Origin
	// Created is metadata.creationTimestamp in Unix seconds: of what contradicts
	// each other, the older stays.
	Created int64
	// CIDRs are its blocks, masked.
	CIDRs []netip.Prefix
	// NATOutgoing has what leaves for a place outside of all pools masqueraded.
	NATOutgoing bool
	// Disabled pools are to give no more addresses to pods. What has one keeps the
	// pool's settings.
	Disabled bool
	// Nodes selects the nodes on which NATOutgoing, Ingress and Egress apply; nil
	// selects all.
	Nodes labels.Selector
	// Ingress and Egress are the pods' default bandwidth in bits per second, 0 for none.
	Ingress, Egress uint64
	// Err says what of the object could not be understood, and is left out above.
	Err error
}

// ServiceCIDR is a range of addresses that Services have.
type ServiceCIDR struct {
	Meta
	Created int64
	CIDRs   []netip.Prefix
}

// On tells whether the pool's settings apply on a node with these labels.
func (p *Pool) On(node Labels) bool { return p.Nodes == nil || p.Nodes.Matches(node) }

// Contains tells whether an address is in one of the pool's blocks.
func (p *Pool) Contains(a netip.Addr) bool { return containsAddr(p.CIDRs, a) }

// Compare orders pools by precedence: whose addresses they are where they overlap.
func (p *Pool) Compare(o *Pool) int {
	switch {
	case p.Origin != o.Origin:
		return int(p.Origin) - int(o.Origin)
	case p.Created != o.Created:
		if p.Created < o.Created {
			return -1
		}
		return 1
	}
	return strings.Compare(p.Name, o.Name)
}
