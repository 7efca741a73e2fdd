// Package pools tests what IP pools do to real packets, on nodes of package world with
// an agent on each: what leaves the pools and what stays inside, with and without
// flannel's own masquerade, what policy sees of it, policies that name pools, and
// pools that come and go under load.
package pools
