// Package policy compiles Kubernetes NetworkPolicies for one node into a
// Ruleset: a plain value that describes two nftables tables, `ip selvage` and
// `ip6 selvage`, completely.
//
// The package is pure. It performs no I/O, reads no clock, logs nothing and
// keeps no globals: what comes out is a function of what went in. Package
// policy/nft turns the value into netlink messages; policy/trace walks packets
// through it; policy/oracle says independently what the verdict should be.
//
// Directions are always the pod's: ingress is traffic to the pod, egress is
// traffic from it.
//
// # How a packet is judged
//
// A packet of a flow that was judged under the rules in force is accepted by
// the first rule of `forward`: conntrack knows it, and its mark carries the
// current generation. Every other packet is judged by the addresses of the
// flow it belongs to, taken from conntrack, so that both directions of a flow
// get the same answer, after DNAT and before SNAT: `ct original saddr` is the
// pod that opened the connection, `ct reply saddr` the pod that really serves
// it. Each is looked up once in a verdict map that leads to the chain of that
// pod's signature; whoever may pass returns to `forward`, which stamps the
// generation.
//
// The stamp is a rule of `forward` itself and not of a chain of its own on
// purpose: the kernel exchanges the rules of each chain separately (see
// nf_tables_commit_chain in net/netfilter/nf_tables_api.c), and a packet on its
// way must not be judged by the old rules and stamped with the new generation.
//
// # What is counted
//
// A rule that lets a connection through counts it in a counter that all rules share
// which the same policies have made. What is left at the end of a signature's chain
// goes to a chain of that signature's own, where a sample of it is logged and all of it
// is counted: its name, which is also the counter's and the prefix in the log, stands
// for the policies that isolate the pod. Counter says what a counter counts. Rules come
// and go, and counters stay as long as any rule counts in them.
//
// # What is masqueraded
//
// A pool is a range of addresses that pods have. Resolve decides which pools are in
// force. What leaves a pool with NATOutgoing for a place that is in no pool, and is no
// node's, no Service's and not left alone by configuration, gets the address of the
// node: see renderMasquerade. As long as there is no such pool, the tables hold nothing
// of all that. Selectors see a pod's pool as a label, PoolLabel.
package policy
