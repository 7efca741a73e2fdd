package cluster

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The names of what deploy/ installs.
const (
	agentNamespace = "selvage-system"
	agentName      = "selvage"
	agentSelector  = "app.kubernetes.io/name=selvage"
	// otherEngine is the table of a policy engine that is known by it.
	otherEngine = "kube-network-policies"
)

func (e *env) describeAgents() {
	Describe("agents", func() {
		It("are rolled, deleted and killed under traffic, and nothing is lost or let through", Label(serial), Serial, func(ctx SpecContext) {
			s := e.stage(ctx, "agents")
			server, friend, foe, local := s.pod("server", n2), s.pod("friend", n1), s.pod("foe", n3), s.pod("local", n2)
			s.start(ctx, server, friend, foe, local)
			s.policy(ctx, "server", selectingPod(server), isolates(ingress), allowIngress(pods(friend, local)))
			s.policy(ctx, "foe", selectingPod(foe), isolates(egress), allowEgress(pods(friend)))
			e.reach(ctx, allowed(from(friend), tcp(server, 80)), denied(from(foe), tcp(server, 80), tcp(local, 80)), denied(from(e.cast[n2]), udp(server, 80)))
			const interval = 4 * time.Millisecond
			good := append(flows(ctx, friend, tcp(server, 80), interval, anyKind()...), flows(ctx, local, tcp(server, 80), interval, anyKind()...)...)
			bad := append(flows(ctx, foe, tcp(local, 80), interval, anyNew()...), flows(ctx, e.cast[n2], tcp(server, 80), interval, anyNew()...)...)

			By("the DaemonSet is rolled; one of the new agents finds what another policy engine has left behind")
			e.sh(ctx, n1, "nft add table inet "+otherEngine)
			DeferCleanup(func(ctx SpecContext) {
				e.sh(ctx, n1, "nft add table inet "+otherEngine+"; nft delete table inet "+otherEngine)
			}, NodeTimeout(10*time.Second))
			began := time.Now()
			e.roll(ctx)
			AddReportEntry("rolling three agents, one after the other", time.Since(began).Round(10*time.Millisecond).String())
			e.changesGoOn(ctx, s, 0)
			e.event(ctx, n1, "OtherPolicyEngine", otherEngine)
			e.sh(ctx, n1, "nft delete table inet "+otherEngine)

			By("all agents are killed; the kubelets start them again")
			for _, node := range nodes() {
				e.killAgent(ctx, node)
			}
			e.changesGoOn(ctx, s, 1)

			By("all agents are deleted at once, without grace")
			now := int64(0)
			Expect(e.kube.CoreV1().Pods(agentNamespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now},
				metav1.ListOptions{LabelSelector: agentSelector})).To(Succeed())
			e.changesGoOn(ctx, s, 2)
			e.awaitAgents(ctx, time.Minute)
			lossless(ctx, good)
			never(ctx, bad)
		}, SpecTimeout(4*time.Minute))
	})
}

// roll restarts the DaemonSet as `kubectl rollout restart` does, and waits until
// all of its pods are new, and ready.
func (e *env) roll(ctx context.Context) {
	GinkgoHelper()
	sets := e.kube.AppsV1().DaemonSets(agentNamespace)
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`, time.Now().Format(time.RFC3339Nano))
	_, err := sets.Patch(ctx, agentName, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	Expect(err).NotTo(HaveOccurred())
	Eventually(ctx, func(g Gomega) {
		d, err := sets.Get(ctx, agentName, metav1.GetOptions{})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(d.Status.ObservedGeneration).To(Equal(d.Generation))
		g.Expect(d.Status.UpdatedNumberScheduled).To(BeEquivalentTo(len(nodes())))
		g.Expect(d.Status.NumberReady).To(BeEquivalentTo(len(nodes())))
		g.Expect(d.Status.NumberUnavailable).To(BeZero())
	}).WithTimeout(2 * time.Minute).WithPolling(pollEvery).Should(Succeed())
}

// changesGoOn makes sure that the agents of all nodes put a change in force: the
// pods of the stage are closed, and opened again, to a port that only this is
// about.
func (e *env) changesGoOn(ctx context.Context, s *stage, round int) {
	GinkgoHelper()
	e.awaitAgents(ctx, time.Minute)
	name := fmt.Sprintf("fresh%d", round)
	p := s.pod(name, nodes()[round%len(nodes())])
	s.policy(ctx, name, selectingPod(p), isolates(ingress), allowIngress(pods(e.cast[n1])))
	s.start(ctx, p)
	e.reach(ctx, allowed(from(e.cast[n1]), tcp(p, 80)), denied(from(e.cast[n2]), tcp(p, 80)))
}
