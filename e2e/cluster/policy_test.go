package cluster

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// clause is a part of a policy.
type clause func(*networkingv1.NetworkPolicySpec)

// rule is a part of a rule of a policy: peers, or ports.
type rule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

// selecting makes the policy select pods by labels; without it all pods of the
// namespace are selected.
func selecting(kv ...string) clause {
	return func(s *networkingv1.NetworkPolicySpec) { s.PodSelector.MatchLabels = pairs(kv) }
}

// selectingPod makes the policy select one pod.
func selectingPod(p *pod) clause { return selecting("name", p.Name) }

// isolates names the directions; what no other clause allows is denied.
func isolates(directions ...networkingv1.PolicyType) clause {
	return func(s *networkingv1.NetworkPolicySpec) { s.PolicyTypes = directions }
}

const (
	ingress = networkingv1.PolicyTypeIngress
	egress  = networkingv1.PolicyTypeEgress
)

// allowIngress adds a rule of what may come in: all of its parts together.
func allowIngress(parts ...rule) clause {
	return func(s *networkingv1.NetworkPolicySpec) {
		peers, ports := merge(parts)
		s.Ingress = append(s.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers, Ports: ports})
	}
}

// allowEgress adds a rule of what may go out.
func allowEgress(parts ...rule) clause {
	return func(s *networkingv1.NetworkPolicySpec) {
		peers, ports := merge(parts)
		s.Egress = append(s.Egress, networkingv1.NetworkPolicyEgressRule{To: peers, Ports: ports})
	}
}

func merge(parts []rule) (peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
	for _, p := range parts {
		peers, ports = append(peers, p.peers...), append(ports, p.ports...)
	}
	return peers, ports
}

// pods are peers: single pods, by their names and namespaces.
func pods(some ...*pod) rule {
	var r rule
	for _, p := range some {
		r.peers = append(r.peers, podsIn(p.Namespace, "name", p.Name).peers...)
	}
	return r
}

// podsIn are peers: the pods of a namespace with some labels.
func podsIn(namespace string, labels ...string) rule {
	return podsOf([]string{corev1.LabelMetadataName, namespace}, labels...)
}

// podsOf are peers: the pods of the namespaces with some labels, with labels of
// their own.
func podsOf(namespaces []string, labels ...string) rule {
	return rule{peers: []networkingv1.NetworkPolicyPeer{{
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: pairs(namespaces)},
		PodSelector:       &metav1.LabelSelector{MatchLabels: pairs(labels)},
	}}}
}

// blocks are peers by address: single addresses, or CIDRs.
func blocks(cidrs ...string) rule {
	var r rule
	for _, c := range cidrs {
		r.peers = append(r.peers, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: c}})
	}
	return r
}

// address is the block of one IPv4 address.
func address(ip string) rule { return blocks(ip + "/32") }

// port is a port of a protocol.
func port(protocol corev1.Protocol, number int) rule {
	n := intstr.FromInt(number)
	return rule{ports: []networkingv1.NetworkPolicyPort{{Protocol: &protocol, Port: &n}}}
}

// policy makes a policy, or gives the one with this name other clauses. It is
// not yet in force when this returns.
func (s *stage) policy(ctx context.Context, name string, clauses ...clause) {
	GinkgoHelper()
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name}}
	for _, c := range clauses {
		c(&p.Spec)
	}
	policies := s.kube.NetworkingV1().NetworkPolicies(s.namespace)
	old, err := policies.Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		p.ResourceVersion = old.ResourceVersion
		_, err = policies.Update(ctx, p, metav1.UpdateOptions{})
	} else {
		_, err = policies.Create(ctx, p, metav1.CreateOptions{})
	}
	Expect(err).NotTo(HaveOccurred())
}

// withdraw deletes a policy.
func (s *stage) withdraw(ctx context.Context, name string) {
	GinkgoHelper()
	Expect(s.kube.NetworkingV1().NetworkPolicies(s.namespace).Delete(ctx, name, metav1.DeleteOptions{})).To(Succeed())
}

// relabel sets labels of the stage's namespace; an empty value removes one.
func (s *stage) relabel(ctx context.Context, kv ...string) {
	GinkgoHelper()
	Eventually(ctx, func() error {
		ns, err := s.kube.CoreV1().Namespaces().Get(ctx, s.namespace, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for k, v := range pairs(kv) {
			if v == "" {
				delete(ns.Labels, k)
				continue
			}
			ns.Labels[k] = v
		}
		_, err = s.kube.CoreV1().Namespaces().Update(ctx, ns, metav1.UpdateOptions{})
		return err
	}).WithTimeout(10 * time.Second).Should(Succeed())
}
