package cluster

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

func (e *env) describePodStart() {
	Describe("a pod that starts", func() {
		It("is held to its egress policies from its first packet on", func(ctx SpecContext) {
			s := e.stage(ctx, "start")
			friend := s.pod("friend", n3)
			s.start(ctx, friend)
			s.policy(ctx, "early", selecting("role", "early"), isolates(ingress, egress), allowEgress(pods(friend)))
			e.inForce(ctx, s)
			var early []*pod
			var begun []*flow
			for i, node := range []string{n1, n2, n3, n1, n2, n3} {
				p := s.pod(fmt.Sprintf("early%d", i), node, labelled("role", "early"))
				for _, to := range []*pod{e.cast[node], e.cast[nodes()[(i+1)%3]], friend} {
					begun = append(begun, talksTo(p, to)...)
				}
				early = append(early, p)
			}
			s.start(ctx, early...)
			e.reach(ctx, e.fromAll(early, allowed, tcp(friend, 80)), e.fromAll(early, denied, tcp(e.cast[n1], 80), udp(e.cast[n2], 80)))
			good, bad := split(begun, friend)
			report("from a pod's first instruction to its first answer", firstAnswers(ctx, good))
			never(ctx, bad)
		}, SpecTimeout(3*time.Minute))

		It("is closed to others before anybody knows of it", e.closedFromTheStart, SpecTimeout(3*time.Minute))
	})
}

// closedFromTheStart hammers at the addresses that pods will have, before they
// have them.
func (e *env) closedFromTheStart(ctx SpecContext) {
	s := e.stage(ctx, "start")
	s.policy(ctx, "deny", selecting("role", "closed"), isolates(ingress))
	e.inForce(ctx, s)
	near, far := s.pod("near", n3), s.pod("far", n1)
	s.start(ctx, near, far)
	aimed := e.hammer(ctx, near, n3, 12)
	maps.Copy(aimed, e.hammer(ctx, far, n3, 12))
	var closed []*pod
	for i := range 3 {
		closed = append(closed, s.pod(fmt.Sprintf("closed%d", i), n3, labelled("role", "closed")))
	}
	s.start(ctx, closed...)
	e.reach(ctx, denied(from(near), tcp(closed[0], 80), udp(closed[2], 80)), denied(from(far), tcp(closed[1], 80)))
	hit := 0
	for _, p := range closed {
		arrived, err := p.probe.Arrivals(ctx)
		Expect(err).NotTo(HaveOccurred())
		for token, f := range aimed {
			Expect(arrived[token].Count).To(BeZero(), "%s flow to %s arrived at %s", f.Kind, f.To, p)
			if f.To == p.IP+":80" {
				hit++
			}
		}
	}
	Expect(hit).To(BeNumerically(">=", 4), "flows that were aimed at one of the pods")

	By("the flows were aimed well: as soon as the policy is gone they arrive")
	s.withdraw(ctx, "deny")
	Eventually(ctx, func(g Gomega) {
		n := 0
		for _, p := range closed {
			arrived, err := p.probe.Arrivals(ctx)
			g.Expect(err).NotTo(HaveOccurred())
			for token := range arrived {
				if _, ours := aimed[token]; ours {
					n++
				}
			}
		}
		g.Expect(n).To(Equal(hit))
	}).WithTimeout(settle).WithPolling(pollEvery).Should(Succeed())
}

// inForce waits until the agents know of what was made before: of a policy on a
// pod of this stage, which is here for nothing else.
func (e *env) inForce(ctx context.Context, s *stage) {
	GinkgoHelper()
	s.policy(ctx, "canary", selecting("role", "canary"), isolates(ingress))
	var all []*pod
	for _, node := range nodes() {
		all = append(all, s.pod("canary-"+node, node, labelled("role", "canary")))
	}
	s.start(ctx, all...)
	for _, p := range all {
		e.reach(ctx, denied(from(e.cast[n1]), tcp(p, 80)))
	}
}

func (e *env) fromAll(some []*pod, claim claimer, to ...target) []check {
	var checks []check
	for _, p := range some {
		checks = append(checks, claim(from(p), to...)...)
	}
	return checks
}

// talksTo gives a pod that is not yet made flows to another, which it begins
// with its first instruction.
func talksTo(p, to *pod) []*flow {
	var all []*flow
	for _, kind := range anyNew() {
		f := &flow{
			Flow: probe.Flow{Token: newToken("early"), Kind: kind, To: to.IP + ":80", Interval: 5 * time.Millisecond},
			from: p, to: tcp(to, 80).over(kind),
		}
		talking(f.Flow)(p.spec)
		all = append(all, f)
	}
	return all
}

// split takes apart the flows to a pod, and the others.
func split(all []*flow, to *pod) (those, others []*flow) {
	for _, f := range all {
		if f.to.at[0] == to {
			those = append(those, f)
		} else {
			others = append(others, f)
		}
	}
	return those, others
}

// firstAnswers stops flows that pods began with their first instruction, and
// returns for each pod how long it took until one was answered.
func firstAnswers(ctx context.Context, all []*flow) []time.Duration {
	GinkgoHelper()
	took := map[*pod]time.Duration{}
	for i, p := range stop(ctx, all) {
		Expect(p.Answered).To(BeNumerically(">", 0), "%s: %+v", all[i], p)
		first, ok := took[all[i].from]
		if t := p.FirstAnswer.Sub(p.Began); !ok || t < first {
			took[all[i].from] = t
		}
	}
	return slices.Collect(maps.Values(took))
}

// following is the next address of a /24 that host-local gives out: .1 is the
// bridge's.
func following(a netip.Addr) netip.Addr {
	b := a.As4()
	if b[3] >= 254 {
		b[3] = 1
	}
	b[3]++
	return netip.AddrFrom4(b)
}

// report writes the distribution of some durations into the report.
func report(what string, all []time.Duration) {
	GinkgoHelper()
	Expect(all).NotTo(BeEmpty(), what)
	slices.Sort(all)
	at := func(percent int) time.Duration {
		return all[(len(all)*percent+99)/100-1].Round(100 * time.Microsecond)
	}
	AddReportEntry(what, fmt.Sprintf("p50 %v, p99 %v, most %v, of %d", at(50), at(99), at(100), len(all)))
}
