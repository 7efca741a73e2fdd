package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

func (e *env) describeReboot() {
	Describe("a node that reboots", func() {
		It("has its policies in force once its pods are known again", Label(serial), Serial, func(ctx SpecContext) {
			s := e.stage(ctx, "reboot")
			friend, foe := s.pod("friend", n1), s.pod("foe", n2)
			s.start(ctx, friend, foe)
			server, talker := s.pod("server", n3), s.pod("talker", n3)
			// What comes back talks with its first instruction.
			talk := talksTo(talker, foe)
			s.policy(ctx, "server", selectingPod(server), isolates(ingress), allowIngress(pods(friend)))
			s.policy(ctx, "talker", selectingPod(talker), isolates(egress), allowEgress(pods(friend)))
			e.inForce(ctx, s)
			s.start(ctx, server, talker)
			claims := func() [][]check {
				return [][]check{
					allowed(from(friend), tcp(server, 80)), denied(from(foe), tcp(server, 80), udp(server, 80)),
					allowed(from(talker), tcp(friend, 80)), denied(from(talker), tcp(foe, 80)),
				}
			}
			e.reach(ctx, claims()...)

			aimed := e.hammer(ctx, foe, n3, 40)
			began := time.Now()
			ready := e.whenReady(ctx, n3)
			// The cast's pod on this node gets another address, too.
			DeferCleanup(func(ctx SpecContext) {
				e.refresh(ctx)
				s.awaitCast(ctx, began)
			}, NodeTimeout(startTimeout))
			Expect(e.lab.Reboot(ctx, n3)).To(Succeed())
			e.refresh(ctx)
			s.awaitAgain(ctx, began, server, talker)
			AddReportEntry("from the power's failure to the pods' running", time.Since(began).Round(10*time.Millisecond).String())
			var inForce time.Time
			Eventually(ctx, ready).WithTimeout(time.Minute).Should(Receive(&inForce))
			AddReportEntry("from the power's failure to the agent's saying that all is in force", inForce.Sub(began).Round(10*time.Millisecond).String())
			e.reach(ctx, claims()...)
			known := time.Now()
			Consistently(ctx, func() []string { return verify(ctx, slices.Concat(claims()...), patience) }).
				WithTimeout(2 * time.Second).Should(BeEmpty())
			s.judgeBoot(ctx, inForce, known, talk, aimed, server)

			By("the flows were aimed well: as soon as the policy is gone they arrive")
			s.withdraw(ctx, "server")
			Eventually(ctx, func(g Gomega) {
				arrived, err := arrivals(ctx, []*pod{server})
				g.Expect(err).NotTo(HaveOccurred())
				for token, f := range aimed {
					if f.To == server.IP+":80" {
						g.Expect(arrived[token].Last).To(BeTemporally(">", inForce), f.To)
					}
				}
			}).WithTimeout(settle).WithPolling(pollEvery).Should(Succeed())
		}, SpecTimeout(4*time.Minute))
	})
}

// judgeBoot makes sure that nothing that is denied arrived once the node's pods
// were known again. What got through before goes into the report: a node that
// boots has no rules until its agent has started, which is when its other pods
// start; and pods get other addresses then, so that one may be taken for the one
// that had its address before until the kubelet has reported it.
func (s *stage) judgeBoot(ctx context.Context, inForce, known time.Time, talk []*flow, aimed map[string]probe.Flow, server *pod) {
	GinkgoHelper()
	var early uint64
	var first, last time.Time
	note := func(what string, a probe.Arrival) {
		if a.Count == 0 {
			return
		}
		Expect(a.Last).To(BeTemporally("<", known), "a packet arrived although the pods were known: "+what)
		early += a.Count
		if first.IsZero() || a.First.Before(first) {
			first = a.First
		}
		if a.Last.After(last) {
			last = a.Last
		}
	}
	for _, f := range talk {
		arrived, err := arrivals(ctx, f.to.at)
		Expect(err).NotTo(HaveOccurred())
		note(f.String(), arrived[f.Token])
	}
	arrived, err := arrivals(ctx, []*pod{server})
	Expect(err).NotTo(HaveOccurred())
	hit := 0
	for token, f := range aimed {
		note(fmt.Sprintf("%s to %s", f.Kind, f.To), arrived[token])
		if f.To == server.IP+":80" {
			hit++
		}
	}
	Expect(hit).To(BeNumerically(">", 0), "flows that are aimed at %s, which has come back as %s", server, server.IP)
	what := fmt.Sprint(early)
	if early > 0 {
		what += fmt.Sprintf(", from %v to %v after all was in force", first.Sub(inForce).Round(time.Millisecond), last.Sub(inForce).Round(time.Millisecond))
	}
	AddReportEntry("denied packets that got through while the node booted", what)
}

// whenReady watches the agent of a node that is about to reboot, and sends when
// it was ready again.
func (e *env) whenReady(ctx context.Context, node string) <-chan time.Time {
	ready := make(chan time.Time, 1)
	go func() {
		for gone := false; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			if info, err := e.lab.Info(ctx); err == nil {
				e.mu.Lock()
				e.info = info
				e.mu.Unlock()
			}
			switch err := e.readiness(ctx, node); {
			case err != nil:
				gone = true
			case gone:
				ready <- time.Now()
				return
			}
		}
	}()
	return ready
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
