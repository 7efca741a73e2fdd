package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

const (
	// outage is how long the API server is away.
	outage = 2 * time.Minute
	// rediscovery is how long agents may take to find out that it is back, and to
	// read everything: they ask every ten seconds at most. How long it took goes
	// into the report.
	rediscovery = 30 * time.Second
)

func (e *env) describeOutage() {
	Describe("the API server", func() {
		It("may be away for two minutes, and agents may be killed meanwhile", Label(away), Serial, func(ctx SpecContext) {
			s := e.stage(ctx, "outage")
			server, friend, foe, local := s.pod("server", n2), s.pod("friend", n1), s.pod("foe", n3), s.pod("local", n2)
			mute := s.pod("mute", n3)
			s.start(ctx, server, friend, foe, local, mute)
			svc := s.service(ctx, "web")
			s.label(ctx, server, "app", "web")
			s.policy(ctx, "server", selectingPod(server), isolates(ingress), allowIngress(pods(friend, local)))
			s.policy(ctx, "mute", selectingPod(mute), isolates(egress), allowEgress(pods(foe)))
			claims := [][]check{
				allowed(from(friend), tcp(server, 80), udp(server, 80), clusterIP(svc, probe.TCP, server)),
				allowed(from(local), tcp(server, 80)), allowed(from(mute), tcp(foe, 80)),
				denied(from(foe), tcp(server, 80), udp(server, 80), clusterIP(svc, probe.TCP, server)),
				denied(from(mute), tcp(friend, 80), udp(local, 80)),
			}
			e.reach(ctx, claims...)
			good := append(flows(ctx, friend, tcp(server, 80), 0, anyKind()...), flows(ctx, local, tcp(server, 80), 0, anyKind()...)...)
			bad := append(flows(ctx, foe, tcp(server, 80), 0, anyNew()...), flows(ctx, mute, tcp(friend, 80), 0, anyNew()...)...)

			Expect(e.lab.Stop(ctx, n1, "kube-apiserver")).To(Succeed())
			DeferCleanup(e.recover)
			began := time.Now()
			_, err := e.kube.Discovery().ServerVersion()
			Expect(err).To(HaveOccurred(), "the API server is away")
			still(ctx, claims...)

			By("each agent is killed; the kubelets start them again without an API server")
			for _, node := range nodes() {
				e.restartAlone(ctx, node)
				still(ctx, claims...)
			}

			By("until the two minutes are over nothing changes, whatever happens to the agents")
			for i := 0; time.Since(began) < outage; i++ {
				still(ctx, claims...)
				if i == 3 {
					// This time the kubelet takes its time: nobody is at home for 10 s.
					e.killAgent(ctx, n2)
				}
				time.Sleep(min(2*time.Second, max(0, outage-time.Since(began))))
			}
			answering(ctx, good)
			AddReportEntry("agents while the API server is away", s.states(ctx))

			By("the API server is back: what is new comes into force, and the agents are ready")
			Expect(e.lab.Start(ctx, n1, "kube-apiserver")).To(Succeed())
			back := time.Now()
			s.afterOutage(ctx, foe, friend)
			AddReportEntry("from the API server's return to a policy made then in force on all nodes", time.Since(back).Round(10*time.Millisecond).String())
			e.awaitAgents(ctx, rediscovery)
			AddReportEntry("from the API server's return to all agents ready", time.Since(back).Round(10*time.Millisecond).String())
			lossless(ctx, good)
			never(ctx, bad)
		}, SpecTimeout(5*time.Minute))
	})
}

// recover brings the API server back, if it is away, and starts the parts of
// Kubernetes anew that would take up to a minute to ask for it again.
func (e *env) recover(ctx context.Context) {
	GinkgoHelper()
	if _, err := e.kube.Discovery().ServerVersion(); err != nil {
		Expect(e.lab.Start(ctx, n1, "kube-apiserver")).To(Succeed())
	}
	restart := func(node, process string) {
		Expect(e.lab.Stop(ctx, node, process)).To(Succeed())
		Expect(e.lab.Start(ctx, node, process)).To(Succeed())
	}
	restart(n1, "kube-controller-manager")
	restart(n1, "kube-scheduler")
	for _, node := range nodes() {
		restart(node, "kubelet")
		restart(node, "kube-proxy")
	}
}

// label gives a pod a label.
func (s *stage) label(ctx context.Context, p *pod, key, value string) {
	GinkgoHelper()
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, key, value)
	_, err := s.kube.CoreV1().Pods(s.namespace).Patch(ctx, p.Name, mergePatch, []byte(patch), metav1.PatchOptions{})
	Expect(err).NotTo(HaveOccurred())
}

// restartAlone kills a node's agent and waits until another one lives, which the
// kubelet has started without an API server. It cannot be ready, as it knows of
// no objects.
func (e *env) restartAlone(ctx context.Context, node string) {
	GinkgoHelper()
	before := e.agentProcess(ctx, node)
	e.killAgent(ctx, node)
	Eventually(ctx, func(g Gomega) {
		now := e.agentProcess(ctx, node)
		g.Expect(now).NotTo(BeEmpty())
		g.Expect(now).NotTo(Equal(before))
		status, body, err := e.get(ctx, node, "/readyz")
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(status).NotTo(Equal(200), "an agent without objects is not ready: %s", body)
	}).WithTimeout(40 * time.Second).WithPolling(pollEvery).Should(Succeed())
}

// states are what the agents say of themselves.
func (s *stage) states(ctx context.Context) string {
	var all []string
	for _, node := range nodes() {
		status, body, err := s.get(ctx, node, "/readyz")
		all = append(all, fmt.Sprintf("%s: %d %s %v", node, status, strings.TrimSpace(body), err))
	}
	return strings.Join(all, "\n")
}

// afterOutage makes policies as soon as that is possible, and waits until they
// are in force on each node.
func (s *stage) afterOutage(ctx context.Context, foe, friend *pod) {
	GinkgoHelper()
	Eventually(ctx, func() error {
		_, err := s.kube.Discovery().ServerVersion()
		return err
	}).WithTimeout(30 * time.Second).WithPolling(pollEvery).Should(Succeed())
	s.policy(ctx, "foe", selectingPod(foe), isolates(ingress), allowIngress(address("198.51.100.1")))
	s.policy(ctx, "friend", selectingPod(friend), isolates(ingress), allowIngress(address("198.51.100.1")))
	s.policy(ctx, "local", selecting("name", "local"), isolates(ingress))
	from := fromEach(s.cast)
	began := time.Now()
	for {
		wrong := verify(ctx, append(denied(from[n2], tcp(foe, 80)), denied(from[n3], tcp(friend, 80))...), patience)
		if len(wrong) == 0 {
			return
		}
		Expect(time.Since(began)).To(BeNumerically("<", rediscovery), strings.Join(wrong, "\n"))
	}
}

func fromEach(cast map[string]*pod) map[string]asker {
	all := map[string]asker{}
	for node, p := range cast {
		all[node] = from(p)
	}
	return all
}
