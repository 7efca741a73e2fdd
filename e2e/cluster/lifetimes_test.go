package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

func (e *env) describeTermination() {
	Describe("a pod that is being deleted", func() {
		It("keeps its policies and stays a peer until it ends", func(ctx SpecContext) {
			s := e.stage(ctx, "ending")
			slowly := []option{gracefully(60), flags("--linger", "9s"), labelled("app", "web")}
			server := s.pod("server", n2, slowly...)
			friend := s.pod("friend", n3, gracefully(60), flags("--linger", "9s"))
			keeper := s.pod("keeper", n1)
			s.start(ctx, server, friend, keeper)
			svc := s.service(ctx, "web")
			foe := e.cast[n2]
			s.policy(ctx, "web", selectingPod(server), isolates(ingress), allowIngress(pods(friend, keeper)))
			s.policy(ctx, "friend", selectingPod(friend), isolates(ingress))
			s.policy(ctx, "keeper", selectingPod(keeper), isolates(ingress), allowIngress(pods(friend)))
			claims := [][]check{
				allowed(from(friend), tcp(server, 80), udp(server, 80), tcp(keeper, 80)),
				allowed(from(keeper), tcp(server, 80), clusterIP(svc, probe.TCP, server)),
				denied(from(foe), tcp(server, 80), udp(server, 80), clusterIP(svc, probe.UDP, server)),
				denied(from(keeper), tcp(friend, 80)),
			}
			e.reach(ctx, claims...)
			good := append(flows(ctx, keeper, tcp(server, 80), 20*time.Millisecond, anyKind()...),
				flows(ctx, friend, tcp(keeper, 80), 20*time.Millisecond, anyKind()...)...)
			bad := append(flows(ctx, foe, tcp(server, 80), 20*time.Millisecond, probe.NewTCP, probe.NewUDP),
				flows(ctx, keeper, tcp(friend, 80), 20*time.Millisecond, probe.NewTCP, probe.NewUDP)...)

			s.remove(ctx, server, friend)
			for _, p := range []*pod{server, friend} {
				Expect(s.getPod(ctx, p.Name).DeletionTimestamp).NotTo(BeNil())
			}
			By("both are told to end, and go on for 9 s")
			for began := time.Now(); time.Since(began) < 3*time.Second; {
				still(ctx, claims...)
			}
			lossless(ctx, good)
			never(ctx, bad)
			for _, p := range []*pod{server, friend} {
				Expect(s.getPod(ctx, p.Name).DeletionTimestamp).NotTo(BeNil(), "that %s still ends is what this was about", p)
			}
		}, SpecTimeout(3*time.Minute))
	})
}

// lastReserved is where host-local notes which address of a node's range it has
// given out last. The next pod gets the next one that is free.
const lastReserved = "/var/lib/cni/networks/cbr0/last_reserved_ip.0"

// reserve makes addr the next address that a pod of the node gets, unless
// somebody is faster.
func (e *env) reserve(ctx context.Context, node string, addr netip.Addr) {
	GinkgoHelper()
	e.sh(ctx, node, fmt.Sprintf("printf %%s %s > %s", addr.Prev(), lastReserved))
}

func (e *env) describeReuse() {
	Describe("an address of a completed Job", func() {
		It("brings the pod that has it next neither policies nor peers", func(ctx SpecContext) {
			s := e.stage(ctx, "reuse")
			server := s.pod("server", n1)
			s.start(ctx, server)
			s.policy(ctx, "server", selectingPod(server), isolates(ingress), allowIngress(podsIn(s.namespace, "role", "job")))
			s.policy(ctx, "jobs", selecting("role", "job"), isolates(ingress, egress), allowEgress(pods(server)))
			heir, old := s.inherit(ctx)

			By("the Job's pod is still there, has completed, and claims the address")
			Expect(s.getPod(ctx, old).Status.Phase).To(Equal(corev1.PodSucceeded))
			Expect(s.getPod(ctx, old).Status.PodIP).To(Equal(heir.IP))
			e.reach(ctx,
				denied(from(heir), tcp(server, 80), udp(server, 80)),                               // no peer, as the Job's pod was
				allowed(from(e.cast[n1]), tcp(heir, 80)), allowed(from(e.cast[n2]), udp(heir, 80)), // not isolated
				allowed(from(heir), tcp(e.cast[n2], 80)))

			By("what the pod has of its own counts")
			s.label(ctx, heir, "role", "job")
			e.reach(ctx,
				allowed(from(heir), tcp(server, 80), udp(server, 80)),
				denied(from(e.cast[n2]), tcp(heir, 80)), denied(from(heir), tcp(e.cast[n2], 80)))

			By("that the Job goes does not matter")
			now := metav1.DeletePropagationForeground
			Expect(s.kube.BatchV1().Jobs(s.namespace).DeleteCollection(ctx, metav1.DeleteOptions{PropagationPolicy: &now}, metav1.ListOptions{})).To(Succeed())
			Eventually(ctx, func() ([]corev1.Pod, error) {
				l, err := s.kube.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{LabelSelector: "batch.kubernetes.io/job-name"})
				return l.Items, err
			}).WithTimeout(30 * time.Second).WithPolling(pollEvery).Should(BeEmpty())
			e.reach(ctx, allowed(from(heir), tcp(server, 80)), denied(from(e.cast[n2]), tcp(heir, 80)))
		}, SpecTimeout(3*time.Minute))
	})
}

// inherit runs a Job on n2 until it has completed, and starts a pod with its
// address. Others start pods at the same time, and one of them may get the
// address: then it all begins anew.
func (s *stage) inherit(ctx context.Context) (heir *pod, jobPod string) {
	GinkgoHelper()
	for i := range 5 {
		job := s.job(ctx, fmt.Sprintf("job%d", i), n2)
		addr, err := netip.ParseAddr(job.Status.PodIP)
		Expect(err).NotTo(HaveOccurred())
		// The address is free once the sandbox is gone, which nobody tells.
		Eventually(ctx, func() string {
			return s.sh(ctx, n2, fmt.Sprintf("ls /var/lib/cni/networks/cbr0/%s 2>/dev/null; true", addr))
		}).WithTimeout(30 * time.Second).WithPolling(pollEvery).Should(BeEmpty())
		heir = s.pod(fmt.Sprintf("heir%d", i), n2)
		s.reserve(ctx, n2, addr)
		s.start(ctx, heir)
		if heir.IP == addr.String() {
			return heir, job.Name
		}
	}
	Fail("somebody else was faster each time")
	return nil, ""
}

// job runs a Job on a node and returns its pod once that has succeeded.
func (s *stage) job(ctx context.Context, name, node string) *corev1.Pod {
	GinkgoHelper()
	template := s.pod(name, node, labelled("role", "job"))
	template.spec.Spec.RestartPolicy = corev1.RestartPolicyNever
	// It lives for long enough to be seen with its address.
	template.spec.Spec.Containers[0].Args = []string{"finish", "--after", "1s"}
	j := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: template.spec.Labels}, Spec: template.spec.Spec,
		}},
	}
	_, err := s.kube.BatchV1().Jobs(s.namespace).Create(ctx, j, metav1.CreateOptions{})
	Expect(err).NotTo(HaveOccurred())
	var done corev1.Pod
	Eventually(ctx, func(g Gomega) {
		l, err := s.kube.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{LabelSelector: "name=" + name})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(l.Items).To(HaveLen(1))
		done = l.Items[0]
		g.Expect(done.Status.Phase).To(Equal(corev1.PodSucceeded))
		g.Expect(done.Status.PodIP).NotTo(BeEmpty())
	}).WithTimeout(startTimeout).WithPolling(pollEvery).Should(Succeed())
	return &done
}
