// Package bandwidth tests what the agent's shaping does to real traffic, on nodes of
// package world: TCP and UDP, IPv4 and IPv6, pods on a bridge, routed and of macvlan,
// limits that change in mid-transfer, and pods that come and go under load.
//
// The bounds are wide: what is tested is that a limit is the one that was asked for,
// on a machine that has other things to do. `make bench-shaping` has the exact figures.
package bandwidth
