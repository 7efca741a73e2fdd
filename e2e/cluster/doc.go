// Package cluster holds the project's own tests of Selvage on a real cluster:
// what upstream's NetworkPolicy suite does not look at. Its specs run against the
// lab of package e2e/lab, with Selvage deployed, as a ginkgo suite:
//
//	SELVAGE_LAB=.cache/lab SELVAGE_REPO=. ginkgo --procs 2 --label-filter '!(serial || outage || uninstall)' bin/cluster.test
//	SELVAGE_LAB=.cache/lab SELVAGE_REPO=. ginkgo --label-filter 'serial && !(outage || uninstall)' bin/cluster.test
//	SELVAGE_LAB=.cache/lab SELVAGE_REPO=. ginkgo --label-filter 'outage' bin/cluster.test
//	SELVAGE_LAB=.cache/lab SELVAGE_REPO=. ginkgo --label-filter 'uninstall' bin/cluster.test
//
// Specs labelled serial disturb the whole cluster: they reboot a node, put
// kube-proxy into another mode, roll the agents. Nothing else may run beside them.
// After the one labelled outage, which stops the API server, CoreDNS needs a
// minute to find it again; the one labelled uninstall takes Selvage away: these
// two come last.
//
// # How a spec is made
//
// A spec has a stage: a namespace of its own with a few pods in it, each of which
// runs package probe and is driven by its control server from its own node. What
// a spec claims is a list of checks, "allowed from here to there" and "denied
// from here to there", which must all come true, and then stay true. Claims about
// time are flows: numbered requests that go on while the world changes.
//
// Denied means that nothing was answered, and that nothing arrived: the servers
// are asked. An answer that is only slow does not pass for a denied one.
//
// The cast are pods without policies, one on each node, that all specs share as
// peers. Nobody changes their labels or their namespace.
package cluster
