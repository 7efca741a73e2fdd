package main

import (
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy/nflog"
)

// drop is a denied packet, or some that differ in nothing that is said here but when
// they came. It is for programs, too: what is there keeps its name and meaning.
//
// It tells of the connection: Source is who opened it, as far as that can be told, even
// if the packet was an answer.
type drop struct {
	// Time is when the packet was denied, the last one if there are several.
	Time time.Time `json:"time"`
	Node string    `json:"node"`
	// Direction is that of the rule, from the view of the pod that it isolates: ingress
	// or egress. It is empty if that cannot be told.
	Direction   string     `json:"direction,omitempty"`
	Reason      dropReason `json:"reason"`
	Source      dropEnd    `json:"source"`
	Destination dropEnd    `json:"destination"`
	// Protocol is TCP, UDP, SCTP, ICMP, ICMPv6 or a number, Port that of the destination,
	// and ICMPType the type of an ICMP message. Those that there are not, or that the
	// packet did not tell, are left out.
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port,omitempty"`
	ICMPType *uint8 `json:"icmpType,omitempty"`
	// Reply says that the packet went from the destination to the source.
	Reply     bool   `json:"reply,omitempty"`
	Interface string `json:"interface,omitempty"`
	// Policies are those that isolate the pod: none of them allows the connection.
	Policies []dropPolicy `json:"policies"`
	// Count is how many packets this tells of, of those that the rules have passed on:
	// two a second of each pod.
	Count int `json:"count"`
}

// dropEnd is one side of a connection. Only what no pod has is without a name.
type dropEnd struct {
	Namespace string     `json:"namespace,omitempty"`
	Pod       string     `json:"pod,omitempty"`
	Address   netip.Addr `json:"address"`
}

// dropPolicy is a NetworkPolicy.
type dropPolicy struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// dropReason is why a packet was denied.
type dropReason string

const (
	// dropPolicyDenies: the pod is isolated, and no policy allows it.
	dropPolicyDenies dropReason = "Policy"
	// dropUnknownPod: the address is one of the node's pods, but no pod is known to have
	// it; it may just be about to start.
	dropUnknownPod dropReason = "UnknownPod"
)

// The directions of a drop.
const (
	dropIngress = "ingress"
	dropEgress  = "egress"
)

// The chains whose names the packets bring begin like this.
const (
	denyPrefix  = "deny-"
	denyUnknown = denyPrefix + "unknown"
)

// firstEphemeral is the first of the ports that Linux gives those who open a connection.
const firstEphemeral = 32768

// resolve finds the names of what a packet tells.
func (d *drops) resolve(p nflog.Packet) drop {
	n := drop{
		Time: p.Time.UTC(), Node: d.node, Direction: directionOf(p.Prefix), Reason: dropPolicyDenies,
		Source: d.end(p.Source), Destination: d.end(p.Destination), Protocol: protocolName(p.Protocol), Port: p.DestinationPort,
		Interface: p.Interface, Policies: []dropPolicy{}, Count: 1,
	}
	if p.HasICMP {
		kind := p.ICMPType
		n.ICMPType = &kind
	}
	for _, p := range d.lookup.Isolating(p.Prefix) {
		n.Policies = append(n.Policies, dropPolicy(p))
	}
	if n.isReply(p) {
		n.Reply, n.Port = true, p.SourcePort
		n.Source, n.Destination = n.Destination, n.Source
	}
	if strings.HasPrefix(p.Prefix, denyUnknown) {
		n.Reason = dropUnknownPod
		if n.Direction == "" && (n.Source.Pod == "") != (n.Destination.Pod == "") {
			n.Direction = dropIngress
			if n.Source.Pod == "" {
				n.Direction = dropEgress
			}
		}
	}
	return n
}

// end names who has an address.
func (d *drops) end(a netip.Addr) dropEnd {
	namespace, name := d.lookup.Owner(a)
	return dropEnd{Namespace: namespace, Pod: name, Address: a}
}

// directionOf reads the direction from the name of a chain.
func directionOf(chain string) string {
	rest, _ := strings.CutPrefix(chain, denyPrefix)
	for _, direction := range []string{dropIngress, dropEgress} {
		if rest == direction || strings.HasPrefix(rest, direction+"-") {
			return direction
		}
	}
	return ""
}

// isReply tells whether a packet goes to the one who opened the connection. Rules judge
// connections, so that after a policy has become tighter an answer may be what is
// denied first. The packet says so itself, or else the policies, which isolate pods of
// one namespace; between two pods of that one, the ports are what is left.
func (n *drop) isReply(p nflog.Packet) bool {
	switch {
	case p.Protocol == unix.IPPROTO_TCP && p.TCPFlags&nflog.SYN != 0:
		return p.TCPFlags&nflog.ACK != 0
	case p.HasICMP:
		const echoReply, echoReplyV6 = 0, 129
		return p.Protocol == unix.IPPROTO_ICMP && p.ICMPType == echoReply || p.Protocol == unix.IPPROTO_ICMPV6 && p.ICMPType == echoReplyV6
	}
	if len(n.Policies) > 0 {
		pods := n.Policies[0].Namespace
		from, to := n.Source.Namespace == pods, n.Destination.Namespace == pods
		if from != to { // egress isolates who opens, ingress who is the destination
			return to == (n.Direction == dropEgress)
		}
	}
	return p.SourcePort > 0 && p.SourcePort < firstEphemeral && p.DestinationPort >= firstEphemeral
}

func protocolName(protocol uint8) string {
	switch protocol {
	case unix.IPPROTO_TCP:
		return "TCP"
	case unix.IPPROTO_UDP:
		return "UDP"
	case unix.IPPROTO_SCTP:
		return "SCTP"
	case unix.IPPROTO_ICMP:
		return "ICMP"
	case unix.IPPROTO_ICMPV6:
		return "ICMPv6"
	}
	return strconv.Itoa(int(protocol))
}

// String is the pod, or the address if no pod has it.
func (e dropEnd) String() string {
	if e.Pod == "" {
		return e.Address.String()
	}
	return e.Namespace + "/" + e.Pod
}

func (p dropPolicy) String() string { return p.Namespace + "/" + p.Name }

// attrs are what a line in the log says.
func (n *drop) attrs() []slog.Attr {
	all := make([]slog.Attr, 0, 12)
	add := func(more ...slog.Attr) { all = append(all, more...) }
	add(slog.String("source", n.Source.String()), slog.String("destination", n.Destination.String()))
	if n.Source.Pod != "" {
		add(slog.String("sourceAddress", n.Source.Address.String()))
	}
	if n.Destination.Pod != "" {
		add(slog.String("destinationAddress", n.Destination.Address.String()))
	}
	if n.Port > 0 {
		add(slog.Int("port", int(n.Port)))
	}
	add(slog.String("protocol", n.Protocol))
	if n.ICMPType != nil {
		add(slog.Int("icmpType", int(*n.ICMPType)))
	}
	if n.Reply {
		add(slog.Bool("reply", true))
	}
	names := make([]string, 0, len(n.Policies))
	for _, p := range n.Policies {
		names = append(names, p.String())
	}
	add(slog.String("direction", n.Direction), slog.String("reason", string(n.Reason)), slog.Any("policies", names))
	if n.Interface != "" {
		add(slog.String("interface", n.Interface))
	}
	add(slog.Int("count", n.Count))
	return all
}
