package cluster

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// grpcPort is where pods with gRPC probes serve health checks.
const grpcPort = 5000

// watched gives the pod startup, readiness and liveness probes of one kind, with
// as little patience as the API allows.
func watched(by corev1.ProbeHandler) option {
	return func(p *corev1.Pod) {
		every := func(failures int32) *corev1.Probe {
			return &corev1.Probe{ProbeHandler: by, PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: failures}
		}
		c := &p.Spec.Containers[0]
		c.StartupProbe, c.ReadinessProbe, c.LivenessProbe = every(30), every(1), every(2)
	}
}

// handlers are the kinds of the kubelet's probes. HTTP asks the control server.
func handlers() map[string]corev1.ProbeHandler {
	return map[string]corev1.ProbeHandler{
		"http": {HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt(controlPort)}},
		"tcp":  {TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(80)}},
		"grpc": {GRPC: &corev1.GRPCAction{Port: grpcPort}},
		"exec": {Exec: &corev1.ExecAction{Command: []string{"/probe", "check", "--address", "127.0.0.1:80"}}},
	}
}

func (e *env) describeKubeletProbes() {
	Describe("the kubelet's probes", func() {
		It("reach pods that nobody else may talk to", func(ctx SpecContext) {
			s := e.stage(ctx, "probes")
			s.policy(ctx, "deny-all", isolates(ingress, egress))
			var all []*pod
			for kind, h := range handlers() {
				all = append(all, s.pod(kind, n2, watched(h), flags("--grpc", "5000")))
			}
			s.start(ctx, all...)

			By("nobody else gets through")
			for _, p := range all {
				e.reach(ctx, denied(from(e.cast[n1]), tcp(p, 80), udp(p, 80), tcp(p, grpcPort)),
					denied(from(e.cast[n2]), tcp(p, controlPort)), denied(from(p), tcp(e.cast[n3], 80)))
			}

			By("the pods stay ready for 20 s, without a restart")
			s.keepWell(ctx, 20*time.Second, all...)
		}, SpecTimeout(3*time.Minute))

		It("reach a pod on each node that turned from open to denied", func(ctx SpecContext) {
			s := e.stage(ctx, "probes")
			http := watched(handlers()["http"])
			a, b, c := s.pod("a", n1, http), s.pod("b", n2, http), s.pod("c", n3, http)
			s.start(ctx, a, b, c)
			e.reach(ctx, allowed(from(e.cast[n1]), tcp(a, 80), tcp(b, 80), tcp(c, 80)))
			s.policy(ctx, "deny-all", isolates(ingress, egress))
			e.reach(ctx, denied(from(e.cast[n1]), tcp(a, 80), tcp(b, 80), tcp(c, 80)))
			s.keepWell(ctx, 5*time.Second, a, b, c)
		}, SpecTimeout(3*time.Minute))
	})
}

// keepWell makes sure that pods are ready all the time, and are never restarted.
func (s *stage) keepWell(ctx context.Context, window time.Duration, pods ...*pod) {
	GinkgoHelper()
	Consistently(ctx, func(g Gomega) {
		for _, p := range pods {
			now := s.getPod(ctx, p.Name)
			g.Expect(ready(now)).To(BeTrue(), "ready: "+p.Name)
			g.Expect(now.Status.ContainerStatuses[0].RestartCount).To(BeZero(), "restarts of "+p.Name)
		}
	}).WithTimeout(window).WithPolling(500 * time.Millisecond).Should(Succeed())
}
