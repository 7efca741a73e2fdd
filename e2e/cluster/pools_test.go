package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
	"github.com/selvage-net/selvage/policy"
)

const (
	// poolCRD and poolKind are what deploy/pools installs.
	poolCRD  = "deploy/pools/selvage.dev_ippools.yaml"
	poolKind = "ippools.selvage.dev"
	// outsideAddress is in no pool, and no node's as far as the API knows.
	outsideAddress = "198.51.100.1"
	// outsidePort is where the control server of a pod at that address is; the next
	// one is its TCP server.
	outsidePort = 9300
)

// pools are the cluster's IPPools.
type pools struct {
	*env
	api dynamic.ResourceInterface
}

// pools brings the kind IPPool, which stays, without what checks pools against others.
// The pools are gone when the spec has ended. To take the kind away each time would test
// how long client-go waits between its lists of what comes and goes.
func (e *env) pools(ctx context.Context) *pools {
	GinkgoHelper()
	e.bringPoolKind(ctx)
	DeferCleanup(func(ctx context.Context) {
		e.kubectl(ctx, "delete", "-f", "deploy/pools/admission.yaml", "--ignore-not-found")
		e.kubectl(ctx, "delete", "ipp", "--all")
		e.poolsInForce(ctx, policy.OriginSelvage, 0)
	}, NodeTimeout(time.Minute))
	client, err := dynamic.NewForConfig(e.rest)
	Expect(err).NotTo(HaveOccurred())
	return &pools{e, client.Resource(v1alpha1.GroupVersion.WithResource("ippools"))}
}

func (e *env) bringPoolKind(ctx context.Context) {
	GinkgoHelper()
	e.kubectl(ctx, "apply", "-f", poolCRD)
	e.kubectl(ctx, "wait", "--for=condition=Established", "crd/"+poolKind, "--timeout=30s")
}

// spec is the spec of an IPPool.
type spec = map[string]any

// newPool returns an IPPool.
func newPool(name string, of spec) *unstructured.Unstructured {
	// The client wants values of JSON.
	text, err := json.Marshal(spec{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": "IPPool", "metadata": spec{"name": name}, "spec": of,
	})
	Expect(err).NotTo(HaveOccurred())
	p := &unstructured.Unstructured{}
	Expect(p.UnmarshalJSON(text)).To(Succeed())
	return p
}

// create makes a pool.
func (p *pools) create(ctx context.Context, name string, of spec) {
	GinkgoHelper()
	_, err := p.api.Create(ctx, newPool(name, of), metav1.CreateOptions{})
	Expect(err).NotTo(HaveOccurred())
}

func (p *pools) delete(ctx context.Context, name string) {
	GinkgoHelper()
	Expect(p.api.Delete(ctx, name, metav1.DeleteOptions{})).To(Succeed())
}

// refusal is what the API server says to a pool that it would not take, or "".
func (p *pools) refusal(ctx context.Context, name string, of spec) string {
	_, err := p.api.Create(ctx, newPool(name, of), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return errorText(err)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// podCIDR is the block of addresses that a node gives to pods.
func (e *env) podCIDR(ctx context.Context, node string) string {
	GinkgoHelper()
	n, err := e.kube.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	Expect(err).NotTo(HaveOccurred())
	Expect(n.Spec.PodCIDR).NotTo(BeEmpty())
	return n.Spec.PodCIDR
}

// poolCase is an entry of deploy/testdata/ippools.yaml.
type poolCase struct {
	What    string `json:"what"`
	Name    string `json:"name"`
	Spec    spec   `json:"spec"`
	Then    spec   `json:"then"`
	Field   string `json:"field"`
	Refused string `json:"refused"`
}

func poolCases() []poolCase {
	GinkgoHelper()
	text, err := os.ReadFile(filepath.Join(os.Getenv("SELVAGE_REPO"), "deploy", "testdata", "ippools.yaml"))
	Expect(err).NotTo(HaveOccurred())
	text, err = yaml.YAMLToJSONStrict(text)
	Expect(err).NotTo(HaveOccurred())
	var cases []poolCase
	Expect(utiljson.Unmarshal(text, &cases)).To(Succeed())
	Expect(cases).NotTo(BeEmpty())
	return cases
}

// judge returns what the API server has to say of a case.
func (p *pools) judge(ctx context.Context, c poolCase) string {
	GinkgoHelper()
	name := cmp.Or(c.Name, "judged")
	if c.Then == nil {
		return p.refusal(ctx, name, c.Spec)
	}
	made, err := p.api.Create(ctx, newPool(name, c.Spec), metav1.CreateOptions{})
	Expect(err).NotTo(HaveOccurred())
	defer p.delete(ctx, name)
	then := newPool(name, c.Then)
	then.SetResourceVersion(made.GetResourceVersion())
	_, err = p.api.Update(ctx, then, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
	return errorText(err)
}

// counts waits until the agents of all nodes have some number in a metric of pools.
func (e *env) counts(ctx context.Context, metric, label string, n int) {
	GinkgoHelper()
	want := fmt.Sprintf("%s{%s} %d", metric, label, n)
	for _, node := range nodes() {
		Eventually(ctx, func() []string {
			lines := strings.Split(e.metrics(ctx, node), "\n")
			return slices.DeleteFunc(lines, func(l string) bool { return !strings.HasPrefix(l, metric) })
		}).WithTimeout(settle).WithPolling(pollEvery).Should(ContainElement(want), node)
	}
}

// poolProblems waits until all agents have so many problems of a kind with pools.
func (e *env) poolProblems(ctx context.Context, reason policy.PoolReason, n int) {
	GinkgoHelper()
	e.counts(ctx, "selvage_pool_problems", fmt.Sprintf("reason=%q", reason), n)
}

// poolsInForce waits until all agents have so many pools of an origin in force.
func (e *env) poolsInForce(ctx context.Context, origin policy.Origin, n int) {
	GinkgoHelper()
	e.counts(ctx, "selvage_pools", fmt.Sprintf("origin=%q", origin), n)
}

// event waits for an Event on a pool.
func (p *pools) event(ctx context.Context, pool, reason, note string) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		list, err := p.kube.EventsV1().Events(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "reason=" + reason})
		g.Expect(err).NotTo(HaveOccurred())
		var found []string
		for _, ev := range list.Items {
			if ev.Regarding.Kind == "IPPool" && ev.Regarding.Name == pool {
				found = append(found, ev.Note)
			}
		}
		g.Expect(found).To(ContainElement(ContainSubstring(note)), fmt.Sprintf("Events %s on the pool %s", reason, pool))
	}).WithTimeout(30 * time.Second).WithPolling(pollEvery).Should(Succeed())
}

func (e *env) describePools() {
	Describe("IPPools", Label(serial), Serial, func() {
		It("are taken or refused by the API server, with a message that helps", func(ctx SpecContext) {
			p := e.pools(ctx)
			var wrong []string
			for _, c := range poolCases() {
				said := p.judge(ctx, c)
				right := said == ""
				if c.Refused != "" {
					right = strings.Contains(said, c.Field+": ") && strings.Contains(said, c.Refused)
				}
				if !right {
					wrong = append(wrong, fmt.Sprintf("%s %v, then %v: %q, want %q at %q", c.What, c.Spec, c.Then, said, c.Refused, c.Field))
				}
			}
			Expect(wrong).To(BeEmpty())
			p.create(ctx, "listed", spec{"cidrs": []string{"10.250.0.0/16"}, "bandwidth": spec{"egress": "10M"}})
			Expect(strings.Fields(e.kubectl(ctx, "get", "ipp"))).To(HaveExactElements(
				"NAME", "CIDRS", "NAT", "DISABLED", "AGE", "listed", `["10.250.0.0/16"]`, "false", "false", Not(BeEmpty())))
			Expect(strings.Fields(e.kubectl(ctx, "get", "ipp", "-o", "wide"))).To(ContainElements("INGRESS", "EGRESS", "10M"))

			By("what comes with the kind refuses pools that contradict others, nodes or Services")
			e.kubectl(ctx, "apply", "-k", "deploy/pools")
			e.kubectl(ctx, "apply", "-f", "deploy/examples/ippool.yaml", "--dry-run=server")
			for _, c := range []struct{ cidr, want string }{
				{"10.250.7.0/24", "10.250.7.0/24 overlaps 10.250.0.0/16 of the IPPool listed: give each pool addresses of its own"},
				{"10.248.0.0/14", "10.248.0.0/14 overlaps 10.250.0.0/16 of the IPPool listed"},
				{e.machine(n2).IP.String() + "/32", "holds the address " + e.machine(n2).IP.String() + " of the node n2: leave the nodes' addresses out of the pools"},
				{"10.96.4.0/24", "10.96.4.0/24 overlaps 10.96.0.0/16, where Services have their addresses: leave those out of the pools"},
				{"10.64.0.0/10", "10.64.0.0/10 overlaps 10.96.0.0/16"},
			} {
				Eventually(ctx, func() string { return p.refusal(ctx, "other", spec{"cidrs": []string{"fd00:1::/64", c.cidr}}) }).
					WithTimeout(settle).WithPolling(pollEvery).Should(ContainSubstring(c.want))
			}
			Expect(p.refusal(ctx, "other", spec{"cidrs": []string{"10.251.0.0/16", "fd00:1::/64"}})).To(BeEmpty())
			Expect(p.refusal(ctx, "listed", spec{"cidrs": []string{"10.250.7.0/24"}})).To(ContainSubstring("already exists"))
			e.kubectl(ctx, "annotate", "ipp", "listed", "example.com/note=it can still be changed")
		}, SpecTimeout(3*time.Minute))

		It("come and go with their kind while the agents run, and what contradicts is told", func(ctx SpecContext) {
			p := e.pools(ctx)
			e.poolsInForce(ctx, policy.OriginNode, len(nodes()))
			p.create(ctx, "all", spec{"cidrs": []string{"10.244.0.0/16"}, "disabled": true})
			e.poolsInForce(ctx, policy.OriginSelvage, 1)
			e.poolsInForce(ctx, policy.OriginNode, 0)
			p.event(ctx, "all", "PoolDisabledInUse", "addresses")

			By("the kind goes, and all pools with it")
			e.kubectl(ctx, "delete", "crd", poolKind)
			e.poolsInForce(ctx, policy.OriginSelvage, 0)
			e.poolsInForce(ctx, policy.OriginNode, len(nodes()))
			e.awaitAgents(ctx, time.Minute)

			By("it is there again; pools contradict each other, nodes and Services")
			e.bringPoolKind(ctx)
			node := e.machine(n3).IP.String()
			p.create(ctx, "first", spec{"cidrs": []string{e.cast[n1].IP + "/32", "fd00:1::/64"}})
			p.create(ctx, "second", spec{"cidrs": []string{"10.244.0.0/16", "fd00:2::/64"}})
			p.create(ctx, "on-node", spec{"cidrs": []string{node + "/32"}})
			p.create(ctx, "services", spec{"cidrs": []string{"10.96.128.0/17"}})
			p.create(ctx, "invalid", spec{"cidrs": []string{"fd00:3::/64"}, "nodeSelector": spec{"matchLabels": spec{"zone": "no value"}}})
			p.event(ctx, "second", "PoolOverlap", "10.244.0.0/16 overlaps "+e.cast[n1].IP+"/32 of the pool first")
			p.event(ctx, "on-node", "PoolHoldsNode", node+" of the node n3")
			p.event(ctx, "services", "PoolHoldsServices", "10.96.128.0/17 overlaps 10.96.0.0/16")
			p.event(ctx, "invalid", "PoolInvalid", "nodeSelector")
			p.event(ctx, "first", "PoolNearlyFull", "1 of the 1 IPv4 addresses")
			for _, r := range policy.PoolReasons() {
				e.poolProblems(ctx, r, 1)
			}
			// first, second by its other block, and invalid.
			e.poolsInForce(ctx, policy.OriginSelvage, 3)

			By("the older one goes")
			p.delete(ctx, "first")
			e.poolProblems(ctx, policy.PoolOverlap, 0)
			e.poolsInForce(ctx, policy.OriginSelvage, 2)
		}, SpecTimeout(4*time.Minute))

		It("have what leaves them masqueraded as long as they say so, and nothing else", func(ctx SpecContext) {
			p, s := e.pools(ctx), e.stage(ctx, "pools")
			inside, peer, host := s.pod("inside", n2), s.pod("peer", n3), s.pod("outside", n3, inHostNetwork(outsidePort))
			s.start(ctx, inside, peer, host)
			outside := e.outside(ctx, inside, host)
			own, translated := inside.IP, e.machine(n2).IP.String()
			seen := func(want string) {
				GinkgoHelper()
				Eventually(ctx, func() string { return seenFrom(ctx, from(inside), outside) }).
					WithTimeout(settle).WithPolling(pollEvery).Should(Equal(want))
				Expect(seenFrom(ctx, from(inside), tcp(peer, 80))).To(Equal(own))
			}
			seen(own)
			live := append(flows(ctx, inside, outside, 0, probe.TCP), flows(ctx, inside, tcp(peer, 80), 0, anyKind()...)...)

			p.create(ctx, "cluster", spec{"cidrs": []string{"10.244.0.0/16"}, "natOutgoing": true})
			seen(translated)

			By("other nodes are selected")
			p.patch(ctx, "cluster", spec{"nodeSelector": spec{"matchLabels": spec{"kubernetes.io/hostname": n3}}})
			seen(own)
			p.patch(ctx, "cluster", spec{"nodeSelector": nil})
			seen(translated)

			By("the switch is turned off and on")
			p.patch(ctx, "cluster", spec{"natOutgoing": false})
			seen(own)
			p.patch(ctx, "cluster", spec{"natOutgoing": true})
			seen(translated)

			By("the pool goes, and its chain with it")
			p.delete(ctx, "cluster")
			seen(own)
			for _, node := range nodes() {
				Eventually(ctx, func() string { return e.sh(ctx, node, "nft list table ip selvage") }).
					WithTimeout(settle).WithPolling(pollEvery).ShouldNot(Or(ContainSubstring("postrouting"), ContainSubstring("pools-v4")), node)
			}
			lossless(ctx, live)
		}, SpecTimeout(4*time.Minute))

		It("are what policies can select pods by", func(ctx SpecContext) {
			p, s := e.pools(ctx), e.stage(ctx, "pools")
			server, friend := s.pod("server", n2), s.pod("friend", n3)
			// Nobody gives himself another pool.
			foe := s.pod("foe", n1, labelled(policy.PoolLabel, "edge"))
			s.start(ctx, server, friend, foe)
			s.policy(ctx, "server", selectingPod(server), isolates(ingress), allowIngress(podsOf(nil, policy.PoolLabel, "edge")))
			all := []target{tcp(server, 80), udp(server, 80)}
			e.reach(ctx, denied(from(friend), all...), denied(from(foe), all...))

			By("there is such a pool")
			p.create(ctx, "edge", spec{"cidrs": []string{e.podCIDR(ctx, n3)}})
			e.reach(ctx, allowed(from(friend), all...), denied(from(foe), all...))
			live := flows(ctx, friend, all[0], 0, probe.TCP, probe.UDP)
			answering(ctx, live)

			By("another one does not matter to live connections")
			p.create(ctx, "core", spec{"cidrs": []string{e.podCIDR(ctx, n1), e.podCIDR(ctx, n2)}})
			e.poolsInForce(ctx, policy.OriginSelvage, 2)
			e.reach(ctx, allowed(from(friend), all...), denied(from(foe), all...))
			answering(ctx, live)

			By("pods of that one are selected")
			s.policy(ctx, "core", selecting(policy.PoolLabel, "core"), isolates(ingress))
			e.reach(ctx, denied(from(friend), tcp(foe, 80)), allowed(from(foe), tcp(friend, 80)), allowed(from(friend), all...))

			By("the pool goes: live connections end")
			p.delete(ctx, "edge")
			silent(ctx, 2*time.Second, live)
			e.reach(ctx, denied(from(friend), all...), denied(from(foe), all...))
		}, SpecTimeout(4*time.Minute))
	})
}

// patch changes the spec of a pool.
func (p *pools) patch(ctx context.Context, name string, change spec) {
	GinkgoHelper()
	text, err := json.Marshal(spec{"spec": change})
	Expect(err).NotTo(HaveOccurred())
	_, err = p.api.Patch(ctx, name, mergePatch, text, metav1.PatchOptions{})
	Expect(err).NotTo(HaveOccurred())
}

// outside returns the TCP server of a pod in the network of its node, by an address
// of that node that the API does not know of. Nobody but Selvage masquerades what the
// other pod sends there.
func (e *env) outside(ctx context.Context, from, server *pod) target {
	GinkgoHelper()
	undo := func(machine, line string) {
		DeferCleanup(func(ctx context.Context) { e.sh(ctx, machine, line) }, NodeTimeout(10*time.Second))
	}
	e.sh(ctx, server.Node, "ip address add "+outsideAddress+"/32 dev lo")
	undo(server.Node, "ip address del "+outsideAddress+"/32 dev lo")
	way := fmt.Sprintf("%s/32 via %s", outsideAddress, e.machine(server.Node).IP)
	e.sh(ctx, from.Node, "ip route add "+way)
	undo(from.Node, "ip route del "+way)
	// flanneld writes its rules when it starts, and never again.
	const chain = "rule ip flannel-ipv4 postrtg "
	handle := e.sh(ctx, from.Node, fmt.Sprintf("nft -a -e insert %s ip saddr %s ip daddr %s accept | sed -n 's/.*# handle //p'", chain, from.IP, outsideAddress))
	undo(from.Node, "nft delete "+chain+"handle "+handle)
	return target{
		name: "a place outside", kind: probe.TCP, at: []*pod{server},
		to: net.JoinHostPort(outsideAddress, strconv.Itoa(outsidePort+1)),
	}
}
