package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

// The annotations.
const (
	ingressBandwidth = "kubernetes.io/ingress-bandwidth"
	egressBandwidth  = "kubernetes.io/egress-bandwidth"
)

// band are bounds of what a TCP connection carries, in bits per second.
type band struct{ least, most float64 }

const mbit = 1e6

// heldTo is what a limit leaves of a connection. A connection carries less than the
// limit, which counts whole frames; how much less on a machine under load is not what
// this is about. Not much more may come through in a few seconds.
func heldTo(rate float64) band { return band{rate / 2, rate * 11 / 10} }

// unlimited is clearly more than any limit that the specs set, but for those that set
// one for comparison.
func unlimited() band { return band{60 * mbit, 1e12} }

// line is a direction of traffic between two pods, and the port of the one that is
// asked.
type line struct {
	from, to *pod
	asked    *pod
	port     int
}

func (l line) String() string { return fmt.Sprintf("from %s to %s", l.from, l.to) }

// lines returns what goes to a pod from others, and what comes from it to them.
func lines(ctx context.Context, p *pod, others ...*pod) (in, out []line) {
	GinkgoHelper()
	port, err := p.probe.Bulk(ctx)
	Expect(err).NotTo(HaveOccurred())
	for _, o := range others {
		in, out = append(in, line{from: o, to: p, asked: p, port: port}), append(out, line{from: p, to: o, asked: p, port: port})
	}
	return in, out
}

// transfer sends along a line for a while.
func (l line) transfer(ctx context.Context, length time.Duration) (probe.TransferResult, error) {
	asks, down := l.from, false
	if l.from == l.asked {
		asks, down = l.to, true
	}
	return asks.probe.Transfer(ctx, probe.Transfer{
		To: net.JoinHostPort(l.asked.IP, strconv.Itoa(l.port)), Down: down, Length: length,
	})
}

// carries waits until each line carries what it should, one after the other.
func carries(ctx context.Context, want band, all ...line) {
	GinkgoHelper()
	measure := func(l line) (float64, error) {
		r, err := l.transfer(ctx, time.Second)
		if err == nil {
			GinkgoWriter.Printf("%s: %v\n", l, r)
		}
		return r.Rate(), err
	}
	within := And(BeNumerically(">=", want.least), BeNumerically("<=", want.most))
	for _, l := range all {
		Eventually(ctx, func() (float64, error) { return measure(l) }).
			WithTimeout(settle).WithPolling(pollEvery).Should(within, l.String())
	}
}

// annotations is a patch that sets annotations; an empty value removes one.
func annotations(kv []string) []byte {
	set := map[string]any{}
	for key, value := range pairs(kv) {
		set[key] = value
		if value == "" {
			set[key] = nil
		}
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": set}})
	Expect(err).NotTo(HaveOccurred())
	return patch
}

// annotate sets annotations of a pod that runs.
func (s *stage) annotate(ctx context.Context, p *pod, kv ...string) {
	GinkgoHelper()
	_, err := s.kube.CoreV1().Pods(s.namespace).Patch(ctx, p.Name, mergePatch, annotations(kv), metav1.PatchOptions{})
	Expect(err).NotTo(HaveOccurred())
}

// annotateAll sets annotations of the stage's namespace.
func (s *stage) annotateAll(ctx context.Context, kv ...string) {
	GinkgoHelper()
	_, err := s.kube.CoreV1().Namespaces().Patch(ctx, s.namespace, mergePatch, annotations(kv), metav1.PatchOptions{})
	Expect(err).NotTo(HaveOccurred())
}

// annotated gives the pod annotations from the beginning.
func annotated(kv ...string) option {
	return func(p *corev1.Pod) { p.Annotations = pairs(kv) }
}

// same makes sure that a pod is the one that it was, and that nothing in it was
// started anew.
func (s *stage) same(ctx context.Context, p *pod, before *corev1.Pod) {
	GinkgoHelper()
	now := s.getPod(ctx, p.Name)
	Expect(now.UID).To(Equal(before.UID))
	Expect(now.Status.ContainerStatuses).To(HaveLen(1))
	Expect(now.Status.ContainerStatuses[0].RestartCount).To(BeZero())
}

func (e *env) describeBandwidth() {
	Describe("bandwidth", func() {
		It("of a pod that runs follows its annotations, in both directions, wherever the other end is", func(ctx SpecContext) {
			s := e.stage(ctx, "bandwidth")
			p, near, far := s.pod("limited", n2), s.pod("near", n2), s.pod("far", n3)
			s.start(ctx, p, near, far)
			before := s.getPod(ctx, p.Name)
			in, out := lines(ctx, p, near, far)
			carries(ctx, unlimited(), append(in, out...)...)

			By("a limit for one direction leaves the other alone")
			s.annotate(ctx, p, ingressBandwidth, "10M")
			carries(ctx, heldTo(10*mbit), in...)
			carries(ctx, unlimited(), out[0])

			By("a limit for the other one")
			s.annotate(ctx, p, egressBandwidth, "10M")
			carries(ctx, heldTo(10*mbit), append(in, out...)...)

			By("another rate")
			s.annotate(ctx, p, ingressBandwidth, "30M", egressBandwidth, "20M")
			carries(ctx, heldTo(30*mbit), in...)
			carries(ctx, heldTo(20*mbit), out...)

			By("none any more")
			s.annotate(ctx, p, ingressBandwidth, "", egressBandwidth, "")
			carries(ctx, unlimited(), append(in, out...)...)
			s.same(ctx, p, before)
		}, SpecTimeout(4*time.Minute))

		It("of a pod that starts is what its annotations say, and for the rest what those of its namespace do", func(ctx SpecContext) {
			s := e.stage(ctx, "bandwidth")
			s.annotateAll(ctx, ingressBandwidth, "10M", egressBandwidth, "10M")
			plain, own := s.pod("plain", n2), s.pod("own", n3, annotated(ingressBandwidth, "40M"))
			s.start(ctx, plain, own)
			toPlain, fromPlain := lines(ctx, plain, e.cast[n1])
			toOwn, fromOwn := lines(ctx, own, e.cast[n1])
			carries(ctx, heldTo(10*mbit), append(toPlain, fromPlain...)...)
			carries(ctx, heldTo(40*mbit), toOwn...)
			carries(ctx, heldTo(10*mbit), fromOwn...)

			By("the namespace changes its mind")
			s.annotateAll(ctx, ingressBandwidth, "20M", egressBandwidth, "")
			carries(ctx, heldTo(20*mbit), toPlain...)
			carries(ctx, heldTo(40*mbit), toOwn...)
			carries(ctx, unlimited(), fromPlain[0], fromOwn[0])
		}, SpecTimeout(4*time.Minute))

		It("stays what it was when an annotation cannot be used, and an Event says what could", func(ctx SpecContext) {
			s := e.stage(ctx, "bandwidth")
			p := s.pod("limited", n2)
			s.start(ctx, p)
			in, _ := lines(ctx, p, e.cast[n1])
			s.annotate(ctx, p, ingressBandwidth, "10M")
			carries(ctx, heldTo(10*mbit), in...)

			s.annotate(ctx, p, ingressBandwidth, "10Mbit")
			s.podEvent(ctx, p, "InvalidBandwidth", "annotation "+ingressBandwidth+`: not a quantity: "10Mbit": give bits per second from 1k to 1P, as in 10M or 1500k`)
			Eventually(ctx, func() string { return e.metrics(ctx, n2) }).WithTimeout(settle).WithPolling(pollEvery).
				Should(MatchRegexp(`(?m)^selvage_invalid_bandwidth_annotations [1-9]`))
			carries(ctx, heldTo(10*mbit), in...)

			By("it is put right")
			s.annotate(ctx, p, ingressBandwidth, "20M")
			carries(ctx, heldTo(20*mbit), in...)
			Eventually(ctx, func() string { return e.metrics(ctx, n2) }).WithTimeout(settle).WithPolling(pollEvery).
				Should(MatchRegexp(`(?m)^selvage_invalid_bandwidth_annotations 0$`))
		}, SpecTimeout(3*time.Minute))

		It("and policy hold together", func(ctx SpecContext) {
			s := e.stage(ctx, "bandwidth")
			p, friend, foe := s.pod("limited", n2), s.pod("friend", n3), s.pod("foe", n1)
			s.start(ctx, p, friend, foe)
			s.policy(ctx, "limited", selectingPod(p), isolates(ingress, egress), allowIngress(pods(friend)), allowEgress(pods(friend)))
			claims := [][]check{
				allowed(from(friend), tcp(p, 80), udp(p, 80)), allowed(from(p), tcp(friend, 80), udp(friend, 80)),
				denied(from(foe), tcp(p, 80), udp(p, 80)), denied(from(p), tcp(foe, 80), udp(foe, 80)),
			}
			e.reach(ctx, claims...)
			s.annotate(ctx, p, ingressBandwidth, "10M", egressBandwidth, "10M")
			in, out := lines(ctx, p, friend)
			carries(ctx, heldTo(10*mbit), append(in, out...)...)
			still(ctx, claims...)

			By("a denied peer stays denied while the queues are full")
			bad := append(flows(ctx, foe, tcp(p, 80), 20*time.Millisecond, anyNew()...), flows(ctx, p, tcp(foe, 80), 20*time.Millisecond, anyNew()...)...)
			carries(ctx, heldTo(10*mbit), append(in, out...)...)
			never(ctx, bad)

			By("a new policy ends the connections of a pod that is limited")
			live := flows(ctx, friend, tcp(p, 80), 0, probe.TCP, probe.UDP)
			answering(ctx, live)
			s.policy(ctx, "limited", selectingPod(p), isolates(ingress, egress))
			silent(ctx, 2*time.Second, live)
			e.reach(ctx, denied(from(friend), tcp(p, 80)), denied(from(p), tcp(friend, 80)))
		}, SpecTimeout(4*time.Minute))

		It("stays in force while there is no agent, and the next one goes on from there", Label(serial), Serial, func(ctx SpecContext) {
			s := e.stage(ctx, "bandwidth")
			p := s.pod("limited", n2, annotated(ingressBandwidth, "10M", egressBandwidth, "10M"))
			s.start(ctx, p)
			in, out := lines(ctx, p, e.cast[n1])
			both := append(in, out...)
			carries(ctx, heldTo(10*mbit), both...)
			// Pods of other specs may still be ending.
			Eventually(ctx, func() int { return strings.Count(e.queues(ctx, n2), "qdisc tbf ") }).
				WithTimeout(time.Minute).WithPolling(time.Second).Should(Equal(2))
			queues := e.queues(ctx, n2)

			By("the agent is killed, and comes back, while both directions are full")
			type result struct {
				line
				probe.TransferResult
				err error
			}
			const length = 6 * time.Second
			results := make(chan result, len(both))
			for _, l := range both {
				go func() {
					r, err := l.transfer(ctx, length)
					results <- result{l, r, err}
				}()
			}
			time.Sleep(time.Second) // both have begun
			e.killAgent(ctx, n2)
			for range both {
				r := <-results
				Expect(r.err).NotTo(HaveOccurred(), r.line.String())
				GinkgoWriter.Printf("%s: %v\n", r.line, r.TransferResult)
				Expect(r.Rate()).To(BeNumerically("<=", heldTo(10*mbit).most), r.line.String())
				Expect(r.Rate()).To(BeNumerically(">=", heldTo(10*mbit).least), r.line.String())
			}
			e.awaitAgents(ctx, time.Minute, n2)
			Expect(e.queues(ctx, n2)).To(Equal(queues), "the queues of before are still there, and no others")
			Expect(e.metrics(ctx, n2)).To(MatchRegexp(`(?m)^selvage_shaping_repaired_total 0$`), "there was nothing to put right")

			By("all agents are new, and follow what changes")
			e.roll(ctx)
			e.awaitAgents(ctx, time.Minute)
			Expect(e.queues(ctx, n2)).To(Equal(queues))
			s.annotate(ctx, p, ingressBandwidth, "20M", egressBandwidth, "")
			carries(ctx, heldTo(20*mbit), in...)
			carries(ctx, unlimited(), out...)
		}, SpecTimeout(4*time.Minute))
	})
}

// queues are the queues of Selvage on a node, as tc lists them without counters: by
// their devices, with rate, burst and what is below.
func (e *env) queues(ctx context.Context, node string) string {
	GinkgoHelper()
	return e.sh(ctx, node, "tc qdisc show | grep -E ' 5e1[ab]: ' | sort")
}

// metrics are those of a node's agent.
func (e *env) metrics(ctx context.Context, node string) string {
	GinkgoHelper()
	_, body, err := e.get(ctx, node, "/metrics")
	Expect(err).NotTo(HaveOccurred())
	return body
}

// podEvent waits for an Event on a pod.
func (s *stage) podEvent(ctx context.Context, p *pod, reason, note string) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		list, err := s.kube.EventsV1().Events(s.namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=" + reason})
		g.Expect(err).NotTo(HaveOccurred())
		var found []string
		for _, ev := range list.Items {
			if ev.Regarding.Kind == "Pod" && ev.Regarding.Name == p.Name {
				found = append(found, ev.Note)
			}
		}
		g.Expect(found).To(ContainElement(ContainSubstring(note)), fmt.Sprintf("Events %s on %s", reason, p))
	}).WithTimeout(30 * time.Second).WithPolling(pollEvery).Should(Succeed())
}
