// Command demo shows what Selvage does, on one machine, in a minute.
//
// It builds two nodes out of network namespaces, with pods on a bridge, a pod
// behind a routed veth and a Service, runs the real agent for each node on a
// directory of manifests, and walks a story of policies. After every change it
// tries real connections, IPv4 and IPv6, and prints who reaches whom. What is
// seen must be what the story claims (story.go), and what it claims must be
// what the API's prose says (package policy/oracle).
//
// Two acts about bandwidth follow: a pod is held to what its annotations say, and
// that changes while a transfer is under way. What arrives is measured. Then come
// pools of addresses: what leaves them gets the node's address, a policy names one as
// a peer, and `selvage pools` shows how much of them is in use. In the end a mistake in
// a policy is found: by `selvage drops`, `selvage explain` and `selvage status`.
//
// It needs root, and leaves nothing behind.
package main
