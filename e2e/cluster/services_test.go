package cluster

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
	"github.com/selvage-net/selvage/e2e/lab"
)

// service makes a Service in front of the pods that have the label app=name. Its
// port 8080 leads to their port 80, for TCP and UDP.
func (s *stage) service(ctx context.Context, name string, change ...func(*corev1.ServiceSpec)) *corev1.Service {
	GinkgoHelper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{
				{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 8080, TargetPort: intstr.FromInt(80)},
				{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 8080, TargetPort: intstr.FromInt(80)},
			},
		},
	}
	for _, c := range change {
		c(&svc.Spec)
	}
	svc, err := s.kube.CoreV1().Services(s.namespace).Create(ctx, svc, metav1.CreateOptions{})
	Expect(err).NotTo(HaveOccurred())
	return svc
}

func headless(s *corev1.ServiceSpec) { s.ClusterIP = corev1.ClusterIPNone }

// nodePort opens a port on the nodes.
func nodePort(p corev1.ServiceExternalTrafficPolicy) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) {
		s.Type, s.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, p
	}
}

// clusterIP is the Service by its own address. Each of its pods gets its turn.
func clusterIP(svc *corev1.Service, kind probe.Kind, at ...*pod) target {
	return target{
		name: fmt.Sprintf("Service %s, %s", svc.Name, kind), kind: kind,
		to: net.JoinHostPort(svc.Spec.ClusterIP, "8080"), at: at, tries: 4 * len(at),
	}
}

// onNode is the Service by a port of a node.
func (e *env) onNode(node string, svc *corev1.Service, kind probe.Kind, at ...*pod) target {
	for _, p := range svc.Spec.Ports {
		if p.Name == kind.Network() {
			return target{
				name: fmt.Sprintf("NodePort %s on %s, %s", svc.Name, node, kind), kind: kind,
				to: net.JoinHostPort(e.machine(node).IP.String(), strconv.Itoa(int(p.NodePort))), at: at, tries: 4 * len(at),
			}
		}
	}
	Fail("Service without port " + kind.Network())
	return target{}
}

func (e *env) describeServices() {
	Describe("Services", func() {
		It("lead to whom the policies allow, with kube-proxy in nftables mode", func(ctx SpecContext) {
			e.expectProxyMode(lab.ProxyNFTables)
			e.walkServices(ctx)
		}, SpecTimeout(4*time.Minute))

		It("lead to whom the policies allow, with kube-proxy in iptables mode", Label(serial), Serial, func(ctx SpecContext) {
			DeferCleanup(func(ctx SpecContext) { e.proxyMode(ctx, lab.ProxyNFTables) }, NodeTimeout(time.Minute))
			e.proxyMode(ctx, lab.ProxyIPTables)
			e.walkServices(ctx)
		}, SpecTimeout(4*time.Minute))
	})
}

// proxyMode puts kube-proxy into a mode on all nodes.
func (e *env) proxyMode(ctx context.Context, mode string) {
	GinkgoHelper()
	errs := make(chan error, len(nodes()))
	for _, node := range nodes() {
		go func() { errs <- e.lab.ProxyMode(ctx, node, mode) }()
	}
	for range nodes() {
		Expect(<-errs).To(Succeed())
	}
	e.refresh(ctx)
	e.expectProxyMode(mode)
}

func (e *env) expectProxyMode(mode string) {
	GinkgoHelper()
	for _, node := range nodes() {
		Expect(e.machine(node).ProxyMode).To(Equal(mode), "kube-proxy on "+node)
	}
}

// shop is three servers on three nodes behind Services of all kinds.
type shop struct {
	*stage
	web            map[string]*pod
	servers        []*pod
	cluster, local *corev1.Service
}

func (e *env) shop(ctx context.Context) *shop {
	GinkgoHelper()
	s := &shop{stage: e.stage(ctx, "services"), web: map[string]*pod{}}
	for _, node := range nodes() {
		s.web[node] = s.pod("web-"+node, node, labelled("app", "web"))
		s.servers = append(s.servers, s.web[node])
	}
	s.cluster = s.service(ctx, "cluster", nodePort(corev1.ServiceExternalTrafficPolicyCluster))
	s.local = s.service(ctx, "local", nodePort(corev1.ServiceExternalTrafficPolicyLocal))
	s.service(ctx, "headless", headless)
	s.start(ctx, s.servers...)
	return s
}

// walkServices tries all ways to a Service, with and without policies.
func (e *env) walkServices(ctx context.Context) {
	GinkgoHelper()
	s := e.shop(ctx)
	friend, foe := e.cast[n1], e.cast[n2]

	By("without a policy every way is open")
	e.reach(ctx, s.clusterWays(friend, allowed), s.clusterWays(foe, allowed), s.nodeWays(friend, allowed),
		s.outsideWays(allowed), s.betweenNodes(allowed))

	By("a peer that is allowed by its labels is known behind a cluster IP; who comes by a node has lost its address")
	s.policy(ctx, "web", isolates(ingress), allowIngress(pods(friend)))
	e.reach(ctx, s.clusterWays(friend, allowed), s.clusterWays(foe, denied), s.outsideWays(denied), s.farWays(friend, denied))

	By("a headless Service leads to the same pods by their own addresses")
	s.headlessWays(ctx, friend, foe)

	By("nodes and the outside are allowed by their addresses")
	s.policy(ctx, "web", isolates(ingress), allowIngress(address(e.machine(lab.Fabric).IP.String())))
	e.reach(ctx, s.localFromOutside(allowed), s.clusterWays(friend, denied))
	s.policy(ctx, "web", isolates(ingress), allowIngress(s.nodeBlocks(), port(corev1.ProtocolTCP, 80), port(corev1.ProtocolUDP, 80)))
	e.reach(ctx, s.outsideWays(allowed), s.betweenNodes(allowed), s.clusterWays(friend, denied), s.clusterWays(foe, denied))

	By("a port that is the Service's and not the pod's means nothing")
	s.policy(ctx, "web", isolates(ingress), allowIngress(port(corev1.ProtocolTCP, 8080), port(corev1.ProtocolUDP, 8080)))
	e.reach(ctx, s.clusterWays(friend, denied), s.outsideWays(denied))

	By("who asks is held to its own egress policy, by the pod that serves")
	s.withdraw(ctx, "web")
	s.walkEgress(ctx)
}

// claimer is allowed or denied.
type claimer func(asker, ...target) []check

// clusterWays are the ways by the cluster IP.
func (s *shop) clusterWays(p *pod, claim claimer) []check {
	return claim(from(p), clusterIP(s.cluster, probe.TCP, s.servers...), clusterIP(s.cluster, probe.UDP, s.servers...))
}

// nodeWays are the ways by a port of the pod's own node, and of another one.
func (s *shop) nodeWays(p *pod, claim claimer) []check {
	var targets []target
	for _, node := range nodes() {
		targets = append(targets, s.onNode(node, s.cluster, probe.TCP, s.servers...), s.onNode(node, s.cluster, probe.UDP, s.servers...))
	}
	return claim(from(p), targets...)
}

// farWays are the ways by ports of other nodes, to pods on these: the pod's
// address is masqueraded on the way.
func (s *shop) farWays(p *pod, claim claimer) []check {
	var targets []target
	for _, node := range nodes() {
		if node != p.Node {
			targets = append(targets, s.onNode(node, s.local, probe.TCP, s.web[node]))
		}
	}
	return claim(from(p), targets...)
}

// outsideWays are the ways from outside of the cluster.
func (s *shop) outsideWays(claim claimer) []check {
	return append(s.clusterFromOutside(claim), s.localFromOutside(claim)...)
}

func (s *shop) clusterFromOutside(claim claimer) []check {
	var targets []target
	for _, node := range nodes() {
		targets = append(targets, s.onNode(node, s.cluster, probe.TCP, s.servers...), s.onNode(node, s.cluster, probe.UDP, s.servers...))
	}
	return claim(s.fromMachine(lab.Fabric), targets...)
}

// localFromOutside are the ways that keep the address of who asks.
func (s *shop) localFromOutside(claim claimer) []check {
	var targets []target
	for _, node := range nodes() {
		targets = append(targets, s.onNode(node, s.local, probe.TCP, s.web[node]), s.onNode(node, s.local, probe.UDP, s.web[node]))
	}
	return claim(s.fromMachine(lab.Fabric), targets...)
}

// betweenNodes is the way from one node to a port of another.
func (s *shop) betweenNodes(claim claimer) []check {
	return claim(s.fromMachine(n1), s.onNode(n2, s.local, probe.TCP, s.web[n2]), s.onNode(n3, s.cluster, probe.TCP, s.servers...))
}

// nodeBlocks are the addresses that nodes and the outside ask by: those on the
// fabric and, between nodes, those of flannel's own interfaces, which are the
// first of each node's pod CIDR.
func (s *shop) nodeBlocks() rule {
	r := blocks("172.31.77.0/24")
	for _, p := range s.servers {
		ip := net.ParseIP(p.IP).To4()
		r.peers = append(r.peers, address(net.IPv4(ip[0], ip[1], ip[2], 0).String()).peers...)
	}
	return r
}

// headlessWays looks a headless Service's addresses up, and tries them.
func (s *shop) headlessWays(ctx context.Context, friend, foe *pod) {
	GinkgoHelper()
	dns := net.JoinHostPort(dnsAddress, "53")
	var addrs []string
	Eventually(ctx, func(g Gomega) {
		r, err := friend.probe.Lookup(ctx, probe.Lookups{
			Server: dns, Name: "headless." + s.namespace + ".svc.cluster.local", Count: 1, Timeout: patience,
		})
		g.Expect(err).NotTo(HaveOccurred())
		addrs = r.Addresses
		g.Expect(addrs).To(ConsistOf(s.web[n1].IP, s.web[n2].IP, s.web[n3].IP))
	}).WithTimeout(30 * time.Second).WithPolling(pollEvery).Should(Succeed())
	for _, p := range s.servers {
		still(ctx, allowed(from(friend), tcp(p, 80), udp(p, 80)), denied(from(foe), tcp(p, 80), udp(p, 80)))
	}
}

// walkEgress holds a client to its egress policy.
func (s *shop) walkEgress(ctx context.Context) {
	GinkgoHelper()
	client := s.pod("client", n1)
	s.start(ctx, client)
	s.policy(ctx, "client", selectingPod(client), isolates(egress), allowEgress(podsIn(s.namespace, "app", "web"), port(corev1.ProtocolTCP, 80)))
	s.reach(ctx,
		allowed(from(client), clusterIP(s.cluster, probe.TCP, s.servers...), s.onNode(n1, s.cluster, probe.TCP, s.servers...)),
		denied(from(client), clusterIP(s.cluster, probe.UDP, s.servers...)))
	s.policy(ctx, "client", selectingPod(client), isolates(egress), allowEgress(blocks(s.cluster.Spec.ClusterIP+"/32")))
	s.reach(ctx, s.clusterWays(client, denied))
}
