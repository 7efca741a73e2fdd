// Package link knows where on the node a pod's traffic can be seen.
//
// # Bridges
//
// Two pods on one bridge talk to each other in layer 2: IP's netfilter hooks,
// where the rules are, see nothing of it, unless the bridge hands its packets
// to them (br_netfilter). Bridges sees to that, for the bridges that carry
// this node's pods and for no other: a bridge of virtual machines beside them
// keeps its speed and its rules.
//
// There are two kinds of switches. The sysctls net.bridge.bridge-nf-call-iptables
// and -ip6tables concern all bridges of a network namespace; each bridge has
// the same two of its own (IFLA_BR_NF_CALL_IPTABLES, net/bridge/br_netlink.c).
// A packet is handed over if either says so (br_nf_pre_routing in
// net/bridge/br_netfilter_hooks.c). Only the bridge's own are set here, by
// netlink: /sys and /proc/sys are read-only in a container.
//
// The bridge's own switches can be set while the module br_netfilter is not
// there, and then do nothing. Whether it is there shows in /proc/sys/net/bridge.
package link
