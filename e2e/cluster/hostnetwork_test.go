package cluster

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

// hostPort is the control port of the first pod in a node's network; each takes
// two ports.
const hostPort = 19100

func (e *env) describeHostNetwork() {
	Describe("pods in the host's network", func() {
		It("are peers by their node's address, never by their labels", func(ctx SpecContext) {
			s := e.stage(ctx, "hostnet")
			server := s.pod("server", n2)
			own, far, plain := s.pod("own", n2, inHostNetwork(hostPort)), s.pod("far", n3, inHostNetwork(hostPort)), s.pod("plain", n3)
			s.start(ctx, server, own, far, plain)
			all := []target{tcp(server, 80), udp(server, 80)}
			seen := seenFrom(ctx, from(far), tcp(server, 80))
			AddReportEntry("address by which a node reaches pods of another", seen)

			By("selected by its labels: the pod is, the pods in the host's network are not; the own node always gets through")
			s.policy(ctx, "server", selectingPod(server), isolates(ingress), allowIngress(pods(plain, far)))
			e.reach(ctx, allowed(from(plain), all...), denied(from(far), all...), denied(e.fromMachine(n1), all...), allowed(from(own), all...))

			By("selected by its address")
			s.policy(ctx, "server", selectingPod(server), isolates(ingress), allowIngress(address(seen)))
			e.reach(ctx, allowed(from(far), all...), denied(from(plain), all...), denied(e.fromMachine(n1), all...), allowed(from(own), all...))

			By("towards them: the own node always, the other by its address")
			s.policy(ctx, "server", selectingPod(server), isolates(egress), allowEgress(pods(far, own)))
			e.reach(ctx, allowed(from(server), tcp(own, hostPort+1)), denied(from(server), tcp(far, hostPort+1), tcp(plain, 80)))
			s.policy(ctx, "server", selectingPod(server), isolates(egress),
				allowEgress(address(e.machine(n3).IP.String()), port(corev1.ProtocolTCP, hostPort+1)))
			e.reach(ctx, allowed(from(server), tcp(own, hostPort+1), tcp(far, hostPort+1)), denied(from(server), tcp(plain, 80)))
		}, SpecTimeout(3*time.Minute))

		It("are not isolated by policies that select them", func(ctx SpecContext) {
			s := e.stage(ctx, "hostnet")
			host, plain := s.pod("host", n1, inHostNetwork(hostPort+10)), s.pod("plain", n1)
			s.start(ctx, host, plain)
			s.policy(ctx, "deny-all", isolates(ingress, egress))
			e.reach(ctx,
				denied(from(e.cast[n2]), tcp(plain, 80)), // the policy is in force
				allowed(from(e.cast[n1]), tcp(host, hostPort+11)), allowed(from(e.cast[n2]), tcp(host, hostPort+11)),
				allowed(from(host), tcp(e.cast[n1], 80), tcp(e.cast[n2], 80), udp(e.cast[n3], 80)),
				allowed(from(host), tcp(plain, 80)), allowed(from(plain), tcp(host, hostPort+11)))
		}, SpecTimeout(3*time.Minute))
	})
}

const (
	dnsAddress = "10.96.0.10"
	// kubernetesService is the API server by its Service.
	kubernetesService = "10.96.0.1"
	apiServerPort     = 6443
)

func (e *env) describeAPIServer() {
	Describe("the API server", func() {
		It("is reached through its Service from its own node, whatever the policy, and from another one if that allows it", func(ctx SpecContext) {
			s := e.stage(ctx, "apiserver")
			near, far := s.pod("near", n1), s.pod("far", n2)
			s.start(ctx, near, far)
			service := target{name: "the API server by its Service", kind: probe.TLS, to: kubernetesService + ":443"}
			itself := target{name: "the API server", kind: probe.TLS, to: e.machine(n1).IP.String() + ":6443"}
			e.reach(ctx, allowed(from(near), service, itself), allowed(from(far), service, itself))

			By("ingress policies do not matter")
			s.policy(ctx, "deny", isolates(ingress))
			e.reach(ctx, denied(from(e.cast[n1]), tcp(near, 80)), denied(from(e.cast[n1]), tcp(far, 80)),
				allowed(from(near), service, itself), allowed(from(far), service, itself))

			By("egress that allows nothing: the own node only")
			s.policy(ctx, "deny", isolates(ingress, egress))
			e.reach(ctx, allowed(from(near), service, itself), denied(from(far), service, itself),
				denied(from(near), tcp(e.cast[n1], 80)))

			By("egress to the Service's address means nothing, since the node behind it is what is judged")
			s.policy(ctx, "deny", isolates(ingress, egress), allowEgress(address(kubernetesService)))
			e.reach(ctx, allowed(from(near), service), denied(from(far), service))

			By("egress to the node")
			s.policy(ctx, "deny", isolates(ingress, egress),
				allowEgress(address(e.machine(n1).IP.String()), port(corev1.ProtocolTCP, apiServerPort)))
			e.reach(ctx, allowed(from(near), service, itself), allowed(from(far), service, itself),
				denied(from(far), tcp(e.cast[n1], 80)))
		}, SpecTimeout(3*time.Minute))
	})
}
