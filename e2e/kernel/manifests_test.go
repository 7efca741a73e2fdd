package kernel

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
)

// manifests renders a snapshot as the manifests that an agent could read, so
// that a failure can be looked at with the product's own commands.
func manifests(tb fataler, s policy.Snapshot) string {
	tb.Helper()
	var all []any
	for _, n := range s.Nodes {
		o := corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metaOf(n.Meta, nil)}
		for _, c := range n.PodCIDRs {
			o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, c.String())
		}
		all = append(all, o)
	}
	for _, n := range s.Namespaces {
		all = append(all, corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metaOf(n.Meta, n.Labels)})
	}
	for _, p := range s.Pods {
		all = append(all, podManifest(p))
	}
	for _, np := range s.Policies {
		o := np.DeepCopy()
		o.TypeMeta = metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}
		all = append(all, o)
	}
	var b strings.Builder
	for _, o := range all {
		data, err := yaml.Marshal(o)
		must(tb, err)
		b.WriteString("---\n" + string(data))
	}
	return b.String()
}

func metaOf(m policy.Meta, l policy.Labels) metav1.ObjectMeta {
	o := metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID}
	for _, label := range l {
		metav1.SetMetaDataLabel(&o, label.Key, label.Value)
	}
	return o
}

func podManifest(p *policy.Pod) corev1.Pod {
	o := corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metaOf(p.Meta, p.Labels)}
	o.CreationTimestamp = metav1.Unix(p.Created, 0)
	o.Spec.NodeName, o.Spec.HostNetwork = p.Node, p.HostNetwork
	c := corev1.Container{Name: "c"}
	for _, port := range p.Ports {
		c.Ports = append(c.Ports, corev1.ContainerPort{
			Name: port.Name, ContainerPort: int32(port.Port), Protocol: corev1.Protocol(strings.ToUpper(port.Protocol.String())),
		})
	}
	o.Spec.Containers = []corev1.Container{c}
	o.Status.Phase = corev1.PodRunning
	if p.Finished {
		o.Status.Phase = corev1.PodSucceeded
	}
	for _, a := range p.Addrs {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	return o
}

// load reads manifests as an agent would.
func load(t *testing.T, text string) policy.Snapshot {
	t.Helper()
	objects, errs := informer.Decode("test.yaml", []byte(text))
	for _, err := range errs {
		t.Fatal(err)
	}
	return informer.SnapshotOf(objects...)
}
