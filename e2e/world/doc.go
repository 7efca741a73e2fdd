// Package world builds small clusters out of network namespaces and sends real
// packets through them: nodes that route, pods on a bridge in flannel's way or
// behind a routed veth, an underlay between the nodes, Services as DNAT rules,
// and probes that say what became of a packet.
//
// It needs root. Nothing touches the network namespace that the process was
// started in: every link is made inside a namespace of the world, and sockets
// are opened by a thread that enters the namespace for the moment of opening
// (a socket stays where it was opened). So a whole test is one process.
//
// A world is removed by Close. Names carry the process that made them; Sweep
// removes what a killed process left behind.
package world
