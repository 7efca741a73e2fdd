package cluster

import (
	"context"
	"os"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/selvage-net/selvage/e2e/lab"
)

func (e *env) describeUninstall() {
	Describe("Selvage", func() {
		It("is removed from all nodes by what the documentation says", Label(uninstall), Serial, func(ctx SpecContext) {
			s := e.stage(ctx, "uninstall")
			server := s.pod("server", n2, annotated(ingressBandwidth, "100M", egressBandwidth, "100M"))
			s.policy(ctx, "server", isolates(ingress))
			s.start(ctx, server)
			e.reach(ctx, denied(from(e.cast[n1]), tcp(server, 80)))
			Eventually(ctx, func() string { return e.queues(ctx, n2) }).WithTimeout(settle).WithPolling(pollEvery).
				Should(And(ContainSubstring("rate 100Mbit"), ContainSubstring("dev selve-")))
			live := flows(ctx, e.cast[n1], tcp(e.cast[n3], 80), 0, anyKind()...)

			e.kubectl(ctx, "delete", "-k", "deploy/overlays/flannel")
			By("without an agent the rules stay")
			still(ctx, denied(from(e.cast[n1]), tcp(server, 80)))
			Expect(e.queues(ctx, n2)).NotTo(BeEmpty())
			e.kubectl(ctx, "apply", "-k", "deploy/cleanup")
			e.kubectl(ctx, "-n", agentNamespace, "rollout", "status", "daemonset/selvage-cleanup", "--timeout=90s")
			e.kubectl(ctx, "delete", "-k", "deploy/cleanup")

			By("nothing is left in the kernel, nor of what was deployed")
			for _, node := range nodes() {
				Expect(e.sh(ctx, node, "nft list tables")).NotTo(ContainSubstring("selvage"), node)
				Expect(e.queues(ctx, node)).To(BeEmpty(), node)
				Expect(e.sh(ctx, node, "ip -o link")).NotTo(MatchRegexp(`\bselv[ie]-`), node)
				Expect(e.sh(ctx, node, "tc qdisc show")).NotTo(ContainSubstring("clsact"), node)
			}
			Expect(e.kubectl(ctx, "get", "namespaces,clusterroles,clusterrolebindings", "-o", "name")).NotTo(ContainSubstring("/selvage"))
			e.reach(ctx, allowed(from(e.cast[n1]), tcp(server, 80), udp(server, 80)))
			lossless(ctx, live)
		}, SpecTimeout(4*time.Minute))
	})
}

// kubectl runs kubectl in the root of the repository, and returns what it says.
func (e *env) kubectl(ctx context.Context, args ...string) string {
	GinkgoHelper()
	cmd := e.lab.NetCommand(ctx, lab.Fabric, append([]string{"kubectl"}, args...)...)
	root, err := filepath.Abs(os.Getenv("SELVAGE_REPO"))
	Expect(err).NotTo(HaveOccurred())
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), "kubectl %v: %s", args, out)
	return string(out)
}
