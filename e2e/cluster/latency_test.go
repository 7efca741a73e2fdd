package cluster

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

func (e *env) describeLatency() {
	Describe("a change of policy", func() {
		It("is in force soon after the API server has it", func(ctx SpecContext) {
			const rounds = 25
			s := e.stage(ctx, "latency")
			server := s.pod("server", n2)
			s.start(ctx, server)
			client := e.cast[n3]
			s.policy(ctx, "server", isolates(ingress))
			e.reach(ctx, denied(from(client), udp(server, 80)))
			var opened, closed []time.Duration
			for range rounds {
				o, c := s.openAndClose(ctx, client, server)
				opened, closed = append(opened, o), append(closed, c)
			}
			report("from the request to the API server to the first packet that a policy allows", opened)
			report("from the request to the API server to the last packet before a policy denies", closed)
			report("both", append(opened, closed...))
		}, SpecTimeout(3*time.Minute))
	})
}

// openAndClose allows a client and denies it again, and returns how long it took
// until packets, a millisecond apart, got through, and until they did no more.
func (s *stage) openAndClose(ctx context.Context, client, server *pod) (opened, closed time.Duration) {
	GinkgoHelper()
	f := &flow{
		Flow: probe.Flow{Token: newToken("latency"), Kind: probe.UDP, To: udp(server, 80).to, Interval: time.Millisecond, Timeout: 100 * time.Millisecond},
		from: client, to: udp(server, 80),
	}
	Expect(client.probe.Start(ctx, f.Flow)).To(Succeed())
	began := time.Now()
	s.policy(ctx, "server", isolates(ingress), allowIngress(pods(client)))
	answering(ctx, []*flow{f})
	opened = f.progress(ctx).FirstAnswer.Sub(began)
	began = time.Now()
	s.policy(ctx, "server", isolates(ingress))
	silent(ctx, 150*time.Millisecond, []*flow{f})
	closed = stop(ctx, []*flow{f})[0].LastAnswer.Sub(began)
	return opened, max(closed, 0)
}
