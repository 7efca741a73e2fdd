package cluster

import (
	"fmt"
	"net"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

func (e *env) describeDNS() {
	Describe("DNS", func() {
		It("answers A and AAAA from one socket, without a loss, under egress that allows DNS alone", func(ctx SpecContext) {
			const count = 1500
			s := e.stage(ctx, "dns")
			// With one on each node some ask a server on their own bridge, others
			// across nodes; the cast asks the same beside them, without policies.
			asking := map[string]*pod{}
			var all []*pod
			for _, node := range nodes() {
				asking["under policy, "+node] = s.pod("dns-"+node, node)
				all = append(all, asking["under policy, "+node])
			}
			s.start(ctx, all...)
			s.policy(ctx, "dns", isolates(ingress, egress),
				allowEgress(podsIn("kube-system", "k8s-app", "kube-dns"), port(corev1.ProtocolUDP, 53), port(corev1.ProtocolTCP, 53)))
			e.reach(ctx, denied(from(all[0]), tcp(e.cast[n2], 80)), denied(from(all[1]), udp(e.cast[n3], 80)), denied(from(all[2]), tcp(e.cast[n1], 80)))
			asking["without policy, "+n1], asking["without policy, "+n2] = e.cast[n1], e.cast[n2]

			results := map[string]probe.LookupResult{}
			var mu sync.Mutex
			var wg sync.WaitGroup
			for who, p := range asking {
				wg.Go(func() {
					defer GinkgoRecover()
					r, err := p.probe.Lookup(ctx, probe.Lookups{
						Server: net.JoinHostPort(dnsAddress, "53"), Name: "kubernetes.default.svc.cluster.local",
						Count: count, Parallel: 4, Timeout: 4 * time.Second,
					})
					Expect(err).NotTo(HaveOccurred())
					mu.Lock()
					defer mu.Unlock()
					results[who] = r
				})
			}
			wg.Wait()
			for who, r := range results {
				AddReportEntry("lookups "+who, fmt.Sprintf("%d, lost %d of A and %d of AAAA, p50 %v, p99 %v", r.Done, r.LostA, r.LostAAAA, r.P50, r.P99))
			}
			for who, r := range results {
				Expect(r.Done).To(Equal(count), who)
				Expect(r.Errors).To(BeEmpty(), who)
				Expect(r.LostA+r.LostAAAA).To(BeZero(), "lost %s; all: %+v", who, results)
			}
		}, SpecTimeout(3*time.Minute))
	})
}
