package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

const (
	probeImage  = "selvage.test/probe:latest"
	controlPort = 9100
	// startTimeout is how long pods may take to run, on a machine under load.
	startTimeout = 90 * time.Second
	// pollEvery is how often the API server is asked whether something has
	// happened.
	pollEvery = 100 * time.Millisecond
)

// pod is a pod that runs a probe.
type pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Node      string `json:"node"`
	IP        string `json:"ip"`
	Control   int    `json:"control"`
	// Tells is the name that its probe answers by.
	Tells string `json:"tells"`

	probe *probe.Client
	spec  *corev1.Pod
}

func (p *pod) String() string { return p.Name + " on " + p.Node }

// stage is the namespace of a spec. It goes away, in the background, when the
// spec has ended.
type stage struct {
	*env
	namespace string
}

// stage makes a namespace named after a topic.
func (e *env) stage(ctx context.Context, topic string, labels ...string) *stage {
	GinkgoHelper()
	s := &stage{e, topic + "-" + rand.String(5)}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace, Labels: pairs(append(labels, "selvage.test/topic", topic))}}
	_, err := e.kube.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
	Expect(err).NotTo(HaveOccurred())
	// Pods are refused until the namespace has this.
	Eventually(ctx, func() error {
		_, err := e.kube.CoreV1().ServiceAccounts(s.namespace).Get(ctx, "default", metav1.GetOptions{})
		return err
	}).WithTimeout(time.Minute).WithPolling(pollEvery).Should(Succeed())
	DeferCleanup(func(ctx context.Context) {
		if CurrentSpecReport().Failed() {
			s.tell(ctx)
		}
		now := int64(0)
		err := e.kube.CoreV1().Namespaces().Delete(ctx, s.namespace, metav1.DeleteOptions{GracePeriodSeconds: &now})
		Expect(err).NotTo(HaveOccurred())
	}, NodeTimeout(30*time.Second))
	return s
}

// tell writes what may explain a failure into the report.
func (s *stage) tell(ctx context.Context) {
	pods, err := s.kube.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		AddReportEntry("pods", err.Error())
		return
	}
	for _, p := range pods.Items {
		GinkgoWriter.Printf("%s on %s: %s %s\n", p.Name, p.Spec.NodeName, p.Status.Phase, p.Status.PodIP)
		for _, c := range p.Status.ContainerStatuses {
			if state, err := json.Marshal(c.State); err == nil {
				GinkgoWriter.Printf("  %s: %d restarts, %s\n", c.Name, c.RestartCount, state)
			}
		}
	}
	for _, node := range nodes() {
		status, body, err := s.get(ctx, node, "/readyz")
		GinkgoWriter.Printf("agent of %s: %d %s %v\n", node, status, body, err)
	}
}

// pairs makes a map of key, value, key, value.
func pairs(kv []string) map[string]string {
	m := map[string]string{}
	for i := 0; i+1 < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return m
}

// option changes a pod before it is made.
type option func(*corev1.Pod)

// labelled gives the pod labels besides "name", which it always has.
func labelled(kv ...string) option {
	return func(p *corev1.Pod) { maps.Copy(p.Labels, pairs(kv)) }
}

// flags adds flags of `probe serve`.
func flags(args ...string) option {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Args = append(p.Spec.Containers[0].Args, args...) }
}

// talking gives the pod a flow that it begins with its first instruction.
func talking(f probe.Flow) option {
	text, err := json.Marshal(f)
	Expect(err).NotTo(HaveOccurred())
	return flags("--flow", string(text))
}

// inHostNetwork puts the pod into the node's network, with ports that nobody
// else uses there: control is that of its control server, the next one that of
// its TCP server. (A UDP server that listens on all of a node's addresses may
// answer from another one than it was asked at.)
func inHostNetwork(control int) option {
	return func(p *corev1.Pod) {
		p.Spec.HostNetwork = true
		flags("--control", strconv.Itoa(control), "--tcp", strconv.Itoa(control+1), "--udp", "")(p)
	}
}

// gracefully lets the pod go on for some seconds after it was told to end, or
// less if it is done earlier.
func gracefully(seconds int64) option {
	return func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = &seconds }
}

// pod describes a pod on a node, which start makes.
func (s *stage) pod(name, node string, options ...option) *pod {
	no, second := false, int64(1)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name, Labels: map[string]string{"name": name}},
		Spec: corev1.PodSpec{
			// Placed by name: a scheduler has nothing to decide here.
			NodeName:                      node,
			AutomountServiceAccountToken:  &no,
			EnableServiceLinks:            &no,
			TerminationGracePeriodSeconds: &second,
			Containers: []corev1.Container{{
				Name: "probe", Image: probeImage, ImagePullPolicy: corev1.PullNever,
				Args: []string{"serve", "--name", s.namespace + "/" + name},
			}},
		},
	}
	for _, o := range options {
		o(p)
	}
	return &pod{Namespace: s.namespace, Name: name, Node: node, Tells: s.namespace + "/" + name, spec: p}
}

// create makes pods and does not wait for them.
func (s *stage) create(ctx context.Context, pods ...*pod) {
	GinkgoHelper()
	for _, p := range pods {
		_, err := s.kube.CoreV1().Pods(s.namespace).Create(ctx, p.spec, metav1.CreateOptions{})
		Expect(err).NotTo(HaveOccurred())
	}
}

// start makes pods and waits until all are ready and their probes obey.
func (s *stage) start(ctx context.Context, pods ...*pod) {
	GinkgoHelper()
	s.create(ctx, pods...)
	s.await(ctx, pods...)
}

// await waits until pods are ready and their probes obey.
func (s *stage) await(ctx context.Context, pods ...*pod) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		list, err := s.kube.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		g.Expect(err).NotTo(HaveOccurred())
		for _, p := range pods {
			i := slices.IndexFunc(list.Items, func(o corev1.Pod) bool { return o.Name == p.Name })
			g.Expect(i).To(BeNumerically(">=", 0), p.Name)
			g.Expect(ready(&list.Items[i])).To(BeTrue(), "ready: "+p.String())
			p.IP = list.Items[i].Status.PodIP
		}
	}).WithTimeout(startTimeout).WithPolling(pollEvery).Should(Succeed())
	for _, p := range pods {
		p.Control = controlOf(p.spec)
		s.attach(p)
		Eventually(ctx, p.probe.Ping).WithContext(ctx).WithTimeout(startTimeout).WithPolling(pollEvery).
			Should(Succeed(), "control server of "+p.String())
	}
}

// attach makes the client of a pod's control server.
func (e *env) attach(p *pod) {
	p.probe = &probe.Client{
		HTTP: e.http[p.Node],
		URL:  "http://" + net.JoinHostPort(p.IP, strconv.Itoa(p.Control)),
	}
}

// controlOf is the port of a pod's control server.
func controlOf(p *corev1.Pod) int {
	args := p.Spec.Containers[0].Args
	if i := slices.Index(args, "--control"); i >= 0 {
		port, err := strconv.Atoi(args[i+1])
		Expect(err).NotTo(HaveOccurred())
		return port
	}
	return controlPort
}

func ready(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// get returns the pod as the API server has it.
func (s *stage) getPod(ctx context.Context, name string) *corev1.Pod {
	GinkgoHelper()
	p, err := s.kube.CoreV1().Pods(s.namespace).Get(ctx, name, metav1.GetOptions{})
	Expect(err).NotTo(HaveOccurred())
	return p
}

// remove deletes pods with the grace that they ask for, and does not wait.
func (s *stage) remove(ctx context.Context, pods ...*pod) {
	GinkgoHelper()
	for _, p := range pods {
		Expect(s.kube.CoreV1().Pods(s.namespace).Delete(ctx, p.Name, metav1.DeleteOptions{})).To(Succeed())
	}
}

// newToken returns a token that nobody else uses.
func newToken(topic string) string { return fmt.Sprintf("%s-%s", topic, rand.String(8)) }
