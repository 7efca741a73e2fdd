package cluster

import (
	"context"
	"net/netip"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

func (e *env) describeReboot() {
	Describe("a node that reboots", func() {
		It("comes back with its policies in force from the first packet on", Label(serial), Serial, func(ctx SpecContext) {
			s := e.stage(ctx, "reboot")
			friend, foe := s.pod("friend", n1), s.pod("foe", n2)
			s.start(ctx, friend, foe)
			// What comes back talks at once, to one that it may not talk to, and one
			// that it may. Its name for its flows tells its lives apart.
			token := newToken("early")
			var own []option
			for _, kind := range anyNew() {
				own = append(own, talking(probe.Flow{Token: token + "-" + string(kind), Kind: kind, To: foe.IP + ":80", Interval: 2 * time.Millisecond}))
			}
			server, talker := s.pod("server", n3), s.pod("talker", n3, own...)
			s.policy(ctx, "server", selectingPod(server), isolates(ingress), allowIngress(pods(friend)))
			s.policy(ctx, "talker", selectingPod(talker), isolates(egress), allowEgress(pods(friend)))
			e.inForce(ctx, s)
			s.start(ctx, server, talker)
			e.reach(ctx, allowed(from(friend), tcp(server, 80)), denied(from(foe), tcp(server, 80), udp(server, 80)),
				allowed(from(talker), tcp(friend, 80)), denied(from(talker), tcp(foe, 80)))

			aimed := e.hammer(ctx, foe, n3, 40)
			began := time.Now()
			Expect(e.lab.Reboot(ctx, n3)).To(Succeed())
			e.refresh(ctx)
			AddReportEntry("from the power's failure to the node's being Ready", time.Since(began).Round(10*time.Millisecond).String())
			s.awaitAgain(ctx, began, server, talker)
			AddReportEntry("to its pods' running", time.Since(began).Round(10*time.Millisecond).String())
			e.awaitAgents(ctx, time.Minute, n3)
			AddReportEntry("to its agent's being ready", time.Since(began).Round(10*time.Millisecond).String())

			e.reach(ctx, allowed(from(friend), tcp(server, 80)), denied(from(foe), tcp(server, 80), udp(server, 80)),
				allowed(from(talker), tcp(friend, 80)), denied(from(talker), tcp(foe, 80)))
			arrived, err := arrivals(ctx, []*pod{foe})
			Expect(err).NotTo(HaveOccurred())
			for _, kind := range anyNew() {
				Expect(arrived[token+"-"+string(kind)].Count).To(BeZero(), "%s packets of a pod that may not talk to %s", kind, foe)
			}
			arrived, err = arrivals(ctx, []*pod{server})
			Expect(err).NotTo(HaveOccurred())
			hit := 0
			for token, f := range aimed {
				Expect(arrived[token].Count).To(BeZero(), "%s packets to %s, which may not hear of %s", f.Kind, server, foe)
				if f.To == server.IP+":80" {
					hit++
				}
			}
			Expect(hit).To(BeNumerically(">", 0), "of the flows, some are aimed at %s, which has come back as %s", server, server.IP)

			By("the flows were aimed well: as soon as the policy is gone they arrive")
			s.withdraw(ctx, "server")
			Eventually(ctx, func(g Gomega) {
				arrived, err := arrivals(ctx, []*pod{server})
				g.Expect(err).NotTo(HaveOccurred())
				for token, f := range aimed {
					if f.To == server.IP+":80" {
						g.Expect(arrived[token].Count).To(BeNumerically(">", 0), f.Kind)
					}
				}
			}).WithTimeout(settle).WithPolling(pollEvery).Should(Succeed())
			s.awaitCast(ctx, began)
		}, SpecTimeout(4*time.Minute))
	})
}

// hammer begins flows from a pod to the addresses that pods of a node get next:
// nobody knows who else gets one, so that a number of them is tried. The flows
// are returned by their tokens.
func (e *env) hammer(ctx context.Context, from *pod, node string, number int) map[string]probe.Flow {
	GinkgoHelper()
	next, err := netip.ParseAddr(e.sh(ctx, node, "cat "+lastReserved))
	Expect(err).NotTo(HaveOccurred())
	aimed := map[string]probe.Flow{}
	for range number {
		next = following(next)
		for _, kind := range []probe.Kind{probe.NewUDP, probe.NewTCP} {
			f := probe.Flow{
				Token: newToken("hammer"), Kind: kind, To: netip.AddrPortFrom(next, 80).String(),
				Interval: 20 * time.Millisecond, Timeout: 300 * time.Millisecond,
			}
			Expect(from.probe.Start(ctx, f)).To(Succeed())
			aimed[f.Token] = f
		}
	}
	return aimed
}

// awaitAgain waits until pods run that the kubelet has made again since.
func (s *stage) awaitAgain(ctx context.Context, since time.Time, again ...*pod) {
	GinkgoHelper()
	for _, p := range again {
		Eventually(ctx, func(g Gomega) {
			now := s.getPod(ctx, p.Name)
			g.Expect(ready(now)).To(BeTrue(), "ready: "+p.Name)
			started := now.Status.ContainerStatuses[0].State.Running
			g.Expect(started).NotTo(BeNil())
			// The API has seconds.
			g.Expect(started.StartedAt.Time).To(BeTemporally(">=", since.Truncate(time.Second)), p.Name)
			p.IP = now.Status.PodIP
			s.attach(p)
			g.Expect(p.probe.Ping(ctx)).To(Succeed(), p.Name)
		}).WithTimeout(startTimeout).WithPolling(pollEvery).Should(Succeed())
	}
}

// awaitCast waits for the cast's pod on a node that was rebooted.
func (s *stage) awaitCast(ctx context.Context, since time.Time) {
	GinkgoHelper()
	cast := s.cast[n3]
	other := &stage{s.env, cast.Namespace}
	other.awaitAgain(ctx, since, cast)
}
