package shaping

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"slices"
	"strings"
)

// Interface is what the traffic of a pod passes.
type Interface struct {
	// NetNS is a file that leads to the network namespace of the interface; empty
	// for that of the node.
	NetNS string
	// NetNSInode tells namespaces apart that had the same file one after the other.
	NetNSInode uint64
	Index      int
	Name       string
	// Frame is the size of the largest frame, with its header, in bytes.
	Frame int
}

// EthernetHeader is the size of a frame's header in bytes, without a VLAN tag: what an
// interface's MTU leaves out of Frame.
const EthernetHeader = 14

// nodeEnd says that the interface is on the node, the other end of a pod's veth:
// what is sent by it goes to the pod. Otherwise it is in the pod.
func (i Interface) nodeEnd() bool { return i.NetNS == "" }

// Place is where the traffic of one direction can be made to wait.
type Place uint8

// The places.
const (
	// AtRoot is the root of the interface, for all that it sends.
	AtRoot Place = iota
	// Arriving is an IFB that gets what arrives by the interface.
	Arriving
	// Leaving is an IFB that gets what the interface is about to send.
	Leaving
)

// String returns a word for the place.
func (p Place) String() string { return [...]string{"root", "arriving", "leaving"}[p] }

// Queue is a token bucket filter and what is below it.
type Queue struct {
	Bucket Bucket
	Leaf   Leaf
	// What follows is of one that was read. Empty says that nothing waits in it, Sent
	// counts the bytes that it has sent.
	Empty bool
	Sent  uint64
	// Stuck says that it waits for being empty and will not become so.
	Stuck bool
}

// Same tells whether a queue read from the kernel is this one, as far as the kernel
// tells.
func (q Queue) Same(read Queue) bool { return q.Bucket.same(read.Bucket) && q.Leaf.same(read.Leaf) }

// Shaped is one direction of a pod's traffic at its place.
type Shaped struct {
	Direction Direction
	Place     Place
	Queue     Queue
	// IFB names the IFB; empty at the root.
	IFB string
}

// Plan is how a pod's traffic shall be shaped at an interface.
type Plan struct {
	Pod       Pod
	Interface Interface
	// Shaped are the directions that are limited, in their order.
	Shaped []Shaped
	// Exclude are blocks of addresses: what comes from there to the pod, or goes
	// there from it, is not held to anything. Sorted.
	Exclude []netip.Prefix
}

// Options are what all plans of a node have in common.
type Options struct {
	// Exclude, see Plan.
	Exclude []netip.Prefix
	// FQCodel says whether the kernel has fq_codel.
	FQCodel bool
}

// NewPlan returns how a pod is to be shaped.
func NewPlan(pod Pod, limits Limits, at Interface, o Options) Plan {
	p := Plan{Pod: pod, Interface: at}
	if limits.Any() {
		p.Exclude = Blocks(o.Exclude)
	}
	for _, d := range Directions() {
		if limits[d].Rate == 0 {
			continue
		}
		s := Shaped{Direction: d, Place: place(d, at.nodeEnd(), len(p.Exclude) > 0)}
		if s.Place != AtRoot {
			s.IFB = IFBName(pod, d)
		}
		s.Queue.Bucket = NewBucket(limits[d], at.Frame)
		s.Queue.Leaf = NewLeaf(s.Queue.Bucket, at.Frame, o.FQCodel)
		p.Shaped = append(p.Shaped, s)
	}
	return p
}

// DirectionAt returns which direction passes a place of the interface.
func (i Interface) DirectionAt(p Place) Direction {
	if (p == Arriving) == i.nodeEnd() {
		return Egress
	}
	return Ingress
}

// place is where a direction waits. Traffic that is left out must not come to the
// root, where everything waits.
func place(d Direction, nodeEnd, exclude bool) Place {
	switch {
	case (d == Egress) == nodeEnd:
		return Arriving
	case exclude:
		return Leaving
	}
	return AtRoot
}

// at returns what is shaped at a place.
func (p Plan) at(place Place) (Shaped, bool) {
	for _, s := range p.Shaped {
		if s.Place == place {
			return s, true
		}
	}
	return Shaped{}, false
}

// Blocks returns prefixes masked, sorted and each once, without those that another
// one covers.
func Blocks(prefixes []netip.Prefix) []netip.Prefix {
	sorted := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		sorted = append(sorted, p.Masked())
	}
	slices.SortFunc(sorted, netip.Prefix.Compare)
	var kept []netip.Prefix
	for _, p := range sorted {
		covered := func(k netip.Prefix) bool { return k.Bits() <= p.Bits() && k.Contains(p.Addr()) }
		if !slices.ContainsFunc(kept, covered) {
			kept = append(kept, p)
		}
	}
	return kept
}

// ifbPrefix begins the names of all IFBs, of which 15 bytes are significant.
const ifbPrefix = "selv"

// IFBName returns the name of the IFB for a direction of a pod. It follows from the
// pod's UID, so that every agent finds it again, and tells a pod from the one
// before that had its name.
func IFBName(p Pod, d Direction) string {
	id := p.UID
	if id == "" { // as in a manifest
		id = p.Key.String()
	}
	sum := sha256.Sum256([]byte(id))
	hash := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))
	return ifbPrefix + map[Direction]string{Ingress: "i", Egress: "e"}[d] + "-" + hash[:9]
}

// IsIFBName tells whether IFBName could have made a name.
func IsIFBName(name string) bool {
	return len(name) == 15 && strings.HasPrefix(name, ifbPrefix) && (name[4] == 'i' || name[4] == 'e') && name[5] == '-'
}
