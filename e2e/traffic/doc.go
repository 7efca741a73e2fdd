// Package traffic sends through network namespaces and measures what arrives: a
// TCP stream or UDP datagrams as fast as they go, over IPv4 or IPv6, and beside
// them an echo, for how long a packet waits meanwhile.
//
// What is measured is the network, not the ends. The kernel says when something
// arrived (SO_TIMESTAMPNS in socket(7)), so that a receiver that got no processor
// for a while counts the same. From an echo the time is taken off that the answer
// took to be written.
//
// Rates are those of the link layer: whole frames, with the Ethernet header.
// That is what the kernel's queueing disciplines count.
//
// Sockets are opened by a thread that is in the namespace for that moment, and
// stay there. Nothing is sent outside of the namespaces that are given.
package traffic
