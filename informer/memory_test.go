package informer

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-net/selvage/informer/api/v1alpha1"
)

// TestMemory: a cluster of 15,000 pods must leave most of 64 MiB to the rest of
// the agent, so that no pod may cost more than a KiB, whatever it looks like in
// the API.
func TestMemory(t *testing.T) {
	const pods, most = 3000, 1024
	server := newAPIServer(t, protobuf)
	for n := range pods {
		server.put(realisticPod(n))
	}
	source, err := Kubernetes(server.config())
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	_, sink := run(t, Options{Source: source})
	if len(sink.initial) != pods {
		t.Fatalf("%d objects, want %d", len(sink.initial), pods)
	}
	sink.mu.Lock()
	sink.initial, sink.state = nil, nil
	sink.mu.Unlock()
	each := (int64(heap()) - int64(before)) / pods
	t.Logf("%d bytes per pod", each)
	if each > most {
		t.Errorf("a pod costs %d bytes, want at most %d", each, most)
	}
}

// TestMemoryOfPools: so must a thousand pools.
func TestMemoryOfPools(t *testing.T) {
	const pools, most = 1000, 2048
	server := newAPIServer(t, protobuf)
	for n := range pools {
		server.put(realisticPool(n))
	}
	source, err := Kubernetes(server.config())
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	_, sink := run(t, Options{Source: source})
	if len(sink.initial) != pools {
		t.Fatalf("%d objects, want %d", len(sink.initial), pools)
	}
	sink.mu.Lock()
	sink.initial, sink.state = nil, nil
	sink.mu.Unlock()
	each := (int64(heap()) - int64(before)) / pools
	t.Logf("%d bytes per pool", each)
	if each > most {
		t.Errorf("a pool costs %d bytes, want at most %d", each, most)
	}
}

// realisticPool is one of a rack, with all that kubectl leaves behind.
func realisticPool(n int) *v1alpha1.IPPool {
	p := apiPool(fmt.Sprintf("rack-%d", n), fmt.Sprintf("10.%d.%d.0/24", n>>8, n&255), fmt.Sprintf("fd00:%x::/64", n))
	p.UID = "0b2d9c4e-6f0c-4c07-9d2c-d9b1ab4f2f6e"
	p.Annotations = map[string]string{corev1.LastAppliedConfigAnnotation: strings.Repeat(" ", 1024)}
	p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{}}` + strings.Repeat(" ", 1024))}}
	p.Spec.NATOutgoing = true
	p.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"topology.kubernetes.io/zone": fmt.Sprintf("zone-%d", n%3), "example.com/rack": fmt.Sprint(n)}}
	p.Spec.Bandwidth = &v1alpha1.Bandwidth{Ingress: quantity("100M"), Egress: quantity("100M")}
	return p
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// realisticPod is about as large as pods are: some KiB.
func realisticPod(n int) *corev1.Pod {
	p := apiPod(fmt.Sprintf("deployment-%d-7c5ddbdf54-%05d", n/20, n), fmt.Sprintf("10.%d.%d.%d", n>>16, n>>8&255, n&255),
		"app.kubernetes.io/name", fmt.Sprintf("app-%d", n/20), "app.kubernetes.io/part-of", "shop", "pod-template-hash", "7c5ddbdf54")
	p.Namespace = fmt.Sprintf("namespace-%d", n%50)
	p.UID = "0b2d9c4e-6f0c-4c07-9d2c-d9b1ab4f2f6e"
	p.Spec.NodeName = fmt.Sprintf("node-%d", n%100)
	p.Annotations = map[string]string{"checksum/config": "01ba4719c80b6fe911b091a7c05124b64eeece964e09c058ef8f9805daca546b"}
	p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet", FieldsV1: metav1.NewFieldsV1(`{"f:status":{}}` + strings.Repeat(" ", 2048))}}
	for c := range 2 {
		container := corev1.Container{
			Name: fmt.Sprintf("c%d", c), Image: "registry.example/shop/app:1.2.3",
			Ports: []corev1.ContainerPort{{Name: fmt.Sprintf("http%d", c), ContainerPort: int32(8080 + c), Protocol: corev1.ProtocolTCP}},
		}
		for e := range 10 {
			container.Env = append(container.Env, corev1.EnvVar{Name: fmt.Sprintf("VARIABLE_%d", e), Value: "a value of some length"})
		}
		p.Spec.Containers = append(p.Spec.Containers, container)
	}
	return p
}
