// Package probe is what runs in the pods of the cluster's tests, and what the
// tests drive it by: echo servers that remember who reached them, single tries
// and continuous flows to others, DNS lookups, and an HTTP server by which a
// test controls it all.
//
// A test reaches the control server of a pod from the pod's own node, which no
// policy may forbid: it works while everything else is denied, needs no API
// server, and takes a millisecond rather than the 200 of an exec.
//
// Whether something was denied is judged at both ends. The asking side sees that
// no answer came, which on a loaded machine may mean nothing; the serving side
// knows whether it arrived. Everything that is sent therefore begins with a
// token, and a server counts arrivals by token.
//
// Whether something was lost is judged at both ends, too. On a loaded machine a
// process may not run for so long that its UDP socket overflows: what the kernel
// drops there is counted, and told apart from what never came that far.
package probe
