package main

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/informer/link/isolate"
)

const poolsWorld = `
apiVersion: v1
kind: Node
metadata: {name: worker, labels: {zone: ZONE}}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: web-1}
spec: {nodeName: worker, containers: [{name: web, image: web}]}
status: {phase: Running, podIP: 10.244.1.2, podIPs: [{ip: 10.244.1.2}]}
`

const aPool = `
apiVersion: selvage.dev/v1alpha1
kind: IPPool
metadata: {name: pods}
spec: {cidrs: [10.244.0.0/16], natOutgoing: true, nodeSelector: {matchLabels: {zone: a}}, bandwidth: {ingress: RATE}}
`

// TestAgentPools has pools come into force, change and go while the agent runs, and
// stay as they are over a restart.
func TestAgentPools(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	manifests := bandwidthWorld(t)
	node := func(zone string) { write(t, manifests, "cluster.yaml", strings.ReplaceAll(poolsWorld, "ZONE", zone)) }
	pool := func(rate string) { write(t, manifests, "pool.yaml", strings.ReplaceAll(aPool, "RATE", rate)) }
	shows := func(command, want string) func() bool {
		return func() bool { return strings.Contains(isolate.Sh(t, command), want) }
	}
	not := func(f func() bool) func() bool { return func() bool { return !f() } }
	const chain, queues = "nft list table ip selvage", "tc qdisc show"
	args := []string{"agent", "--node-name=worker", "--manifests=" + manifests, "--no-masquerade-cidrs=203.0.113.0/24", "--service-cidrs=10.96.0.0/12"}
	node("a")
	a := startAgentWith(t, args...)
	eventually(t, "ready", isReady)
	if shows(chain, "postrouting")() || shows(queues, "rate")() {
		t.Error("something is in force without pools")
	}
	eventually(t, "counted", func() bool { return isMetric(t, `selvage_pools{origin="node"}`, 1) })
	expectMetrics(t, map[string]float64{`selvage_pool_allocated_addresses{family="IPv4",pool="(podCIDRs)"}`: 1, "selvage_pods_outside_pools": 0})

	pool("10M")
	eventually(t, "masqueraded", shows(chain, "counter packets 0 bytes 0 masquerade fully-random"))
	eventually(t, "shaped", shows(queues, "rate 10Mbit"))
	for _, want := range []string{"type nat hook postrouting priority srcnat + 10", "10.244.0.0/16", "203.0.113.0/24", "10.96.0.0/12"} {
		if !shows(chain, want)() {
			t.Errorf("no %q in\n%s", want, isolate.Sh(t, chain))
		}
	}
	pool("12M")
	eventually(t, "another rate", shows(queues, "rate 12Mbit"))
	node("b")
	eventually(t, "not meant for this node", not(shows(queues, "rate")))
	eventually(t, "not masqueraded", not(shows(chain, "postrouting")))
	node("a")
	eventually(t, "meant for it again", func() bool { return shows(queues, "rate 12Mbit")() && shows(chain, "masquerade")() })

	// The next agent finds everything as it should be, and takes nothing away even for a
	// moment: the queue has counted what the pod was sent.
	const counted = "tc -s qdisc show dev veth2 root"
	send(t, "10.244.1.2:9")
	eventually(t, "sent", not(shows(counted, "Sent 0 bytes")))
	if err := a.end(t, os.Interrupt); err != nil {
		t.Errorf("ended with %v", err)
	}
	rules := ruleset(t)
	a = startAgentWith(t, args...)
	eventually(t, "ready", isReady)
	eventually(t, "shaped", func() bool { return isMetric(t, "selvage_shaped_pods", 1) })
	if !shows(counted, "rate 12Mbit")() || shows(counted, "Sent 0 bytes")() {
		t.Errorf("a new agent made the queue anew:\n%s", isolate.Sh(t, counted))
	}
	if got := ruleset(t); got != rules {
		t.Errorf("a new agent changed the rules:\n%s\nwere\n%s", got, rules)
	}

	write(t, manifests, "another.yaml", strings.NewReplacer("name: pods", "name: zebra", "RATE", "1M").Replace(aPool))
	eventually(t, "in doubt", func() bool { return isMetric(t, `selvage_pool_problems{reason="overlap"}`, 1) })
	if err := os.Remove(filepath.Join(manifests, "another.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no longer in doubt", func() bool { return isMetric(t, `selvage_pool_problems{reason="overlap"}`, 0) })
	if err := os.Remove(filepath.Join(manifests, "pool.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "not shaped", not(shows(queues, "rate")))
	eventually(t, "not masqueraded", not(shows(chain, "postrouting")))
	if err := a.end(t, os.Interrupt); err != nil {
		t.Errorf("ended with %v", err)
	}
	if log := a.log.String(); strings.Count(log, "reason=PoolOverlap kind=IPPool name=-/zebra") != 1 || strings.Count(log, "pool is no longer in doubt") != 1 {
		t.Error("the overlap was not told of once, and its end once")
	}
}

// TestAgentTellsOfPools has an API server with a pool that cannot come into force, and
// one that flannel's rules contradict.
func TestAgentTellsOfPools(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	world(t)
	isolate.Sh(t, `nft add table ip flannel-ipv4; nft add chain ip flannel-ipv4 postrtg
		nft add rule ip flannel-ipv4 postrtg ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random`)
	server := newKeeper(t)
	server.lists = map[string]string{
		"/version":           `{"gitVersion": "v1.36.0"}`,
		"/api/v1/namespaces": `{"kind": "NamespaceList", "apiVersion": "v1", "items": []}`,
		"/api/v1/pods":       `{"kind": "PodList", "apiVersion": "v1", "items": []}`,
		"/api/v1/nodes":      `{"kind": "NodeList", "apiVersion": "v1", "items": [{"metadata": {"name": "worker"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}}]}`,
		"/apis/networking.k8s.io/v1/networkpolicies": `{"kind": "NetworkPolicyList", "apiVersion": "networking.k8s.io/v1", "items": []}`,
		"/apis/selvage.dev/v1alpha1/ippools": `{"kind": "IPPoolList", "apiVersion": "selvage.dev/v1alpha1", "items": [
			{"metadata": {"name": "pods", "uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"cidrs": ["10.244.0.0/16"]}},
			{"metadata": {"name": "late", "uid": "2", "creationTimestamp": "2026-02-01T00:00:00Z"}, "spec": {"cidrs": ["10.244.8.0/24"]}}]}`,
	}
	a := startAgentWith(t, "agent", "--node-name=worker", "--kubeconfig="+kubeconfigOf(t, server.URL))
	eventually(t, "ready", isReady)
	want := map[string]int{"IPPool late PoolOverlap": 1, "Node worker BaseCNIMasquerades": 1}
	eventually(t, "told by Events", func() bool { return maps.Equal(server.reasons(), want) })
	eventually(t, "shown", func() bool { return isMetric(t, `selvage_base_masquerade{by="flannel",family="IPv4"}`, 1) })
	expectMetrics(t, map[string]float64{`selvage_conditions{reason="BaseCNIMasquerades"}`: 1, `selvage_pools{origin="selvage"}`: 1})
	if err := a.end(t, os.Interrupt); err != nil {
		t.Errorf("ended with %v", err)
	}
}

// send sends a datagram.
func send(t *testing.T, to string) {
	t.Helper()
	c, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
}
