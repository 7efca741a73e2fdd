package cluster

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
)

// agentPod is a pod on n2 with the image of the agents, and what they are
// allowed. Its network is its own, so that nothing that it does wrong can touch
// the node's.
func (e *env) agentPod(ctx context.Context, namespace, name string, change func(*corev1.PodSpec, *corev1.Container)) *corev1.Pod {
	GinkgoHelper()
	set, err := e.kube.AppsV1().DaemonSets(agentNamespace).Get(ctx, agentName, metav1.GetOptions{})
	Expect(err).NotTo(HaveOccurred())
	spec := *set.Spec.Template.Spec.DeepCopy()
	spec.NodeName, spec.NodeSelector, spec.PriorityClassName = n2, nil, ""
	spec.HostNetwork, spec.RestartPolicy = false, corev1.RestartPolicyNever
	second := int64(1)
	spec.TerminationGracePeriodSeconds = &second
	c := &spec.Containers[0]
	c.Ports, c.StartupProbe, c.ReadinessProbe, c.LivenessProbe = nil, nil, nil, nil
	change(&spec, c)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name + "-" + rand.String(5)}, Spec: spec}
	p, err = e.kube.CoreV1().Pods(namespace).Create(ctx, p, metav1.CreateOptions{})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func(ctx context.Context) error {
		return e.kube.CoreV1().Pods(namespace).Delete(ctx, p.Name, metav1.DeleteOptions{})
	})
	return p
}

// setFlag replaces a flag of the agent.
func setFlag(c *corev1.Container, flag string) {
	name, _, _ := strings.Cut(flag, "=")
	for i, a := range c.Args {
		if strings.HasPrefix(a, name+"=") {
			c.Args[i] = flag
			return
		}
	}
	c.Args = append(c.Args, flag)
}

// lastWords waits until the pod's agent has ended, with an error, and returns
// what it logged.
func (e *env) lastWords(ctx context.Context, p *corev1.Pod) []string {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		now, err := e.kube.CoreV1().Pods(p.Namespace).Get(ctx, p.Name, metav1.GetOptions{})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(now.Status.ContainerStatuses).To(HaveLen(1))
		end := now.Status.ContainerStatuses[0].State.Terminated
		g.Expect(end).NotTo(BeNil())
		g.Expect(end.ExitCode).To(BeEquivalentTo(1))
		// `kubectl describe` shows it, too.
		g.Expect(end.Message).NotTo(BeEmpty())
	}).WithTimeout(startTimeout).WithPolling(pollEvery).Should(Succeed())
	log, err := e.kube.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{}).DoRaw(ctx)
	Expect(err).NotTo(HaveOccurred())
	return strings.Split(strings.TrimSpace(string(log)), "\n")
}

// readyzOf waits until the pod's agent answers that it is not ready for a
// reason that matches.
func (e *env) readyzOf(ctx context.Context, p *corev1.Pod, reason string) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		now, err := e.kube.CoreV1().Pods(p.Namespace).Get(ctx, p.Name, metav1.GetOptions{})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(now.Status.PodIP).NotTo(BeEmpty())
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(now.Status.PodIP, "9470")+"/readyz", nil)
		g.Expect(err).NotTo(HaveOccurred())
		resp, err := e.http[n2].Do(req)
		g.Expect(err).NotTo(HaveOccurred())
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(resp.StatusCode).NotTo(Equal(http.StatusOK))
		g.Expect(string(body)).To(ContainSubstring(reason))
	}).WithTimeout(startTimeout).WithPolling(pollEvery).Should(Succeed())
}

func (e *env) describeBadInput() {
	Describe("an agent", func() {
		It("without NET_ADMIN says so in one line and ends", func(ctx SpecContext) {
			p := e.agentPod(ctx, agentNamespace, "powerless", func(_ *corev1.PodSpec, c *corev1.Container) {
				c.SecurityContext.Capabilities.Add = nil
			})
			log := e.lastWords(ctx, p)
			Expect(log[len(log)-1]).To(ContainSubstring("CAP_NET_ADMIN"))
			Expect(len(log)).To(BeNumerically("<=", 2), "lines: %q", log)
		}, SpecTimeout(2*time.Minute))

		It("whose account may not list says which kind, and whom to give what", func(ctx SpecContext) {
			s := e.stage(ctx, "norbac")
			p := e.agentPod(ctx, s.namespace, "forbidden", func(spec *corev1.PodSpec, c *corev1.Container) {
				spec.ServiceAccountName = "default"
				setFlag(c, "--http-address=:9470")
			})
			e.readyzOf(ctx, p, "the API server does not let the agent list and watch")
			e.readyzOf(ctx, p, "system:serviceaccount:"+s.namespace+":default")
		}, SpecTimeout(2*time.Minute))

		It("with the name of no node says so", func(ctx SpecContext) {
			p := e.agentPod(ctx, agentNamespace, "stranger", func(_ *corev1.PodSpec, c *corev1.Container) {
				setFlag(c, "--node-name=elsewhere")
				setFlag(c, "--http-address=:9470")
			})
			e.readyzOf(ctx, p, "the source has no Node named elsewhere")
		}, SpecTimeout(2*time.Minute))

		It("that finds another one on its node leaves that alone, says so and ends", func(ctx SpecContext) {
			before := e.agentProcess(ctx, n2)
			p := e.agentPod(ctx, agentNamespace, "second", func(spec *corev1.PodSpec, c *corev1.Container) {
				spec.HostNetwork = true
				setFlag(c, "--http-address=")
			})
			log := e.lastWords(ctx, p)
			Expect(log[len(log)-1]).To(ContainSubstring("an agent runs already on this node"))
			Expect(e.agentProcess(ctx, n2)).To(Equal(before))
			Expect(e.readiness(ctx, n2)).To(Succeed())
			e.event(ctx, n2, "SecondAgent", "")
		}, SpecTimeout(2*time.Minute))
	})
}

// event waits for an Event on a Node.
func (e *env) event(ctx context.Context, node, reason, note string) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		list, err := e.kube.EventsV1().Events(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "reason=" + reason})
		g.Expect(err).NotTo(HaveOccurred())
		var found []string
		for _, ev := range list.Items {
			if ev.Regarding.Kind == "Node" && ev.Regarding.Name == node {
				found = append(found, ev.Note)
			}
		}
		g.Expect(found).To(ContainElement(ContainSubstring(note)), fmt.Sprintf("Events %s on Node %s", reason, node))
	}).WithTimeout(30 * time.Second).WithPolling(pollEvery).Should(Succeed())
}
