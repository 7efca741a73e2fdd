package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/informer/link"
	"github.com/selvage-net/selvage/metrics"
	"github.com/selvage-net/selvage/policy"
)

// localPod is a pod of this node.
func localPod(name string, addrs ...string) policy.Delta {
	p := &policy.Pod{Meta: policy.Meta{Namespace: "shop", Name: name}, Node: "worker"}
	for _, a := range addrs {
		p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
	}
	return policy.Delta{Object: p}
}

func nodeWith(cidrs ...string) policy.Delta {
	n := &policy.Node{Meta: policy.Meta{Name: "worker"}}
	for _, c := range cidrs {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	return policy.Delta{Object: n}
}

// messages are the conditions that hold.
func messages(a *agent) string {
	a.conditions.mu.Lock()
	defer a.conditions.mu.Unlock()
	var all []string
	for _, of := range a.conditions.held {
		for _, h := range of {
			all = append(all, fmt.Sprintf("%s: %s", h.reason, h.message))
		}
	}
	return strings.Join(all, "\n")
}

// TestPodCIDRs tells of a node without pod CIDRs, and of pods outside of them,
// and stays ready.
func TestPodCIDRs(t *testing.T) {
	a, _, _ := newTestAgent()
	for i, step := range []struct {
		b    []policy.Delta
		want []string
	}{
		{[]policy.Delta{nodeWith(), localPod("a", "10.1.0.1")}, []string{"NoPodCIDR", "--allocate-node-cidrs"}},
		{[]policy.Delta{nodeWith("10.1.0.0/24")}, nil},
		{[]policy.Delta{localPod("c", "10.9.0.1"), localPod("b", "10.1.0.2", "fd00::2")}, []string{"PodsOutsidePodCIDR", "2 pods", "shop/b", "[10.1.0.0/24]"}},
		{[]policy.Delta{nodeWith("10.1.0.0/24", "fd00::/64")}, []string{"PodsOutsidePodCIDR", "1 pod ", "shop/c"}},
		{[]policy.Delta{{Object: localPod("c", "10.9.0.1").Object, Deleted: true}}, nil},
	} {
		b := batch(step.b...)
		b.Initial = i == 0
		if err := a.sync(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		got := messages(a)
		if (got == "") != (len(step.want) == 0) {
			t.Errorf("step %d: %q", i, got)
		}
		for _, want := range step.want {
			if !strings.Contains(got, want) {
				t.Errorf("step %d: %q is not in %q", i, want, got)
			}
		}
		if err := a.ready(); err != nil {
			t.Errorf("step %d: not ready: %v", i, err)
		}
	}
}

// TestUnseen ends readiness, and names the device and a pod.
func TestUnseen(t *testing.T) {
	a, _, _ := newTestAgent()
	if err := a.sync(t.Context(), initial(nodeWith("10.1.0.0/24"), localPod("b", "10.1.0.2", "fd00::2"), localPod("a", "10.1.0.1"))); err != nil {
		t.Fatal(err)
	}
	if got := len(a.attachments.(*fakeAttachments).pods); got != 3 {
		t.Errorf("looks at %d addresses, want 3", got)
	}
	unseen := func(addr, device, kind string) link.Unseen {
		return link.Unseen{Addr: netip.MustParseAddr(addr), Device: device, Kind: kind}
	}
	for i, step := range []struct {
		unseen []link.Unseen
		pods   float64
		want   []string // parts of the lines of readiness, in order
	}{
		{nil, 0, nil},
		{[]link.Unseen{unseen("10.1.0.1", "eth0", ""), unseen("10.1.0.2", "eth0", ""), unseen("fd00::2", "eth0", "")}, 2,
			[]string{"for 2 pods of this node, for example shop/a: this node reaches them by eth0 (a physical interface)"}},
		{[]link.Unseen{unseen("10.1.0.1", "antrea-gw0", "openvswitch"), unseen("10.1.0.2", "", "")}, 2,
			[]string{"for 1 pod of this node, for example shop/a: this node reaches them by antrea-gw0 (openvswitch)", "shop/b: this node has no route to them"}},
		{[]link.Unseen{unseen("10.1.0.9", "eth0", "")}, 0, nil}, // a pod that is gone
	} {
		a.observeUnseen(step.unseen)
		text := ""
		if err := a.ready(); err != nil {
			text = err.Error()
		}
		lines := strings.Split(text, "\n")
		if text == "" {
			lines = nil
		}
		if len(lines) != len(step.want) {
			t.Fatalf("step %d: not ready for %q, want %q", i, lines, step.want)
		}
		for j, want := range step.want {
			if !strings.Contains(lines[j], want) {
				t.Errorf("step %d: not ready for %q, want %q", i, lines[j], want)
			}
		}
		if got := gauge(t, a, "selvage_unenforceable_pods"); got != step.pods {
			t.Errorf("step %d: %v pods in the metric, want %v", i, got, step.pods)
		}
	}
}

// gauge is the value of a metric without labels, or the sum of those with some.
func gauge(t *testing.T, a *agent, name string) float64 {
	t.Helper()
	return metricSum(t, a.metrics, name)
}

func metricSum(t *testing.T, m *metrics.Metrics, name string) (sum float64) {
	t.Helper()
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetGauge().GetValue()
			}
		}
	}
	return sum
}
