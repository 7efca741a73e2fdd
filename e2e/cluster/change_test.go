package cluster

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

const mergePatch = types.MergePatchType

func (e *env) describeNamespaces() {
	Describe("a namespace that is relabelled", func() {
		It("makes its pods peers, and ends what they had when it takes that back", func(ctx SpecContext) {
			s, peers := e.stage(ctx, "relabel"), e.stage(ctx, "relabel-peers", "team", "red")
			server, client := s.pod("server", n2), peers.pod("client", n3)
			near := peers.pod("near", n2)
			s.create(ctx, server)
			peers.start(ctx, client, near)
			s.await(ctx, server)
			s.policy(ctx, "server", isolates(ingress), allowIngress(podsOf([]string{"team", "blue"})))
			all := []target{tcp(server, 80), udp(server, 80)}
			e.reach(ctx, denied(from(client), all...), denied(from(near), all...))

			By("the right label is given")
			peers.relabel(ctx, "team", "blue")
			e.reach(ctx, allowed(from(client), all...), allowed(from(near), all...), denied(from(e.cast[n1]), all...))
			live := append(flows(ctx, client, all[0], 0, probe.TCP, probe.UDP), flows(ctx, near, all[0], 0, probe.TCP, probe.UDP)...)
			answering(ctx, live)

			By("another label does not matter to live connections")
			peers.relabel(ctx, "floor", "3")
			answering(ctx, live)

			By("the label is taken away: live connections end")
			peers.relabel(ctx, "team", "")
			silent(ctx, 2*time.Second, live)
			e.reach(ctx, denied(from(client), all...), denied(from(near), all...))
		}, SpecTimeout(3*time.Minute))
	})
}

func (e *env) describeLongLived() {
	Describe("connections that exist", func() {
		It("end where a policy denies them, and live on without a loss where it does not", func(ctx SpecContext) {
			s := e.stage(ctx, "live")
			server, friend, foe := s.pod("server", n2), s.pod("friend", n1), s.pod("foe", n3)
			local := s.pod("local", n2)
			s.start(ctx, server, friend, foe, local)
			to := tcp(server, 80)
			good := append(flows(ctx, friend, to, 0, anyKind()...), flows(ctx, local, to, 0, anyKind()...)...)
			// What the server itself has opened to others.
			good = append(good, flows(ctx, server, tcp(foe, 80), 0, probe.TCP, probe.UDP)...)
			bad := flows(ctx, foe, to, 0, probe.TCP, probe.UDP)
			answering(ctx, good)
			answering(ctx, bad)

			By("a policy comes to pods that have run, and talked, before")
			s.policy(ctx, "server", selectingPod(server), isolates(ingress), allowIngress(pods(friend, local)))
			silent(ctx, 2*time.Second, bad)
			e.reach(ctx, denied(from(foe), tcp(server, 80), udp(server, 80)))
			answering(ctx, good)

			By("it is edited: the one who was denied is allowed, and another one more")
			s.policy(ctx, "server", selectingPod(server), isolates(ingress), allowIngress(pods(friend, local, foe)))
			answering(ctx, bad)
			s.policy(ctx, "server", selectingPod(server), isolates(ingress), allowIngress(pods(friend, local)))
			silent(ctx, 2*time.Second, bad)

			By("it is withdrawn")
			s.withdraw(ctx, "server")
			answering(ctx, bad)
			e.reach(ctx, allowed(from(foe), tcp(server, 80), udp(server, 80)))

			By("egress that denies ends what the other side had opened before, too")
			s.policy(ctx, "foe", selectingPod(foe), isolates(egress), allowEgress(pods(friend)))
			silent(ctx, 2*time.Second, bad)
			answering(ctx, good)
			lossless(ctx, good)
		}, SpecTimeout(3*time.Minute))
	})
}
