// Package shaping decides how the traffic of pods is held to their bandwidth: the
// annotations and defaults become Limits, the Limits of a pod and the interface
// that its traffic passes become a Plan, and the difference of a Plan to what is
// there becomes Steps. It is pure: nothing here knows the kernel, the clock or the
// API; package tc carries the steps out.
//
// Directions are the pod's: ingress is what goes to the pod, egress is what comes
// from it. On the node's end of a pod's veth both are turned round: what the node
// sends by it goes to the pod, what arrives by it comes from the pod.
//
// # How a direction is shaped
//
// What an interface sends waits in a token bucket filter (tc-tbf(8)) at its root.
// What arrives by an interface has no queue, and so it is redirected to an IFB, an
// interface that sends what it is given back to where it came from, with a token
// bucket filter at the root of that. Some traffic can be left out: then what is
// sent goes by an IFB as well, because a queue at the root takes everything.
package shaping
