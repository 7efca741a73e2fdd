package informer

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-net/selvage/policy"
)

// TestAnnotations keeps what the agent acts on, of pods and namespaces, and nothing
// else; a change of that is a change of the object.
func TestAnnotations(t *testing.T) {
	pod := func(a map[string]string) *policy.Pod {
		return PodFrom(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", Annotations: a}})
	}
	namespace := func(a map[string]string) *policy.Namespace {
		return NamespaceFrom(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", Annotations: a}})
	}
	all := map[string]string{
		"kubernetes.io/ingress-bandwidth": "10M", "selvage.dev/egress-burst": "1M", "kubernetes.io/egress-bandwidth": "",
		"kubectl.kubernetes.io/last-applied-configuration": "{}", "selvage.dev/other": "x",
	}
	want := policy.Labels{
		{Key: "kubernetes.io/egress-bandwidth"}, {Key: "kubernetes.io/ingress-bandwidth", Value: "10M"}, {Key: "selvage.dev/egress-burst", Value: "1M"},
	}
	if diff := cmp.Diff(want, pod(all).Annotations); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, namespace(all).Annotations); diff != "" {
		t.Error(diff)
	}
	others := map[string]string{"a": "b"}
	if pod(others).Annotations != nil || namespace(nil).Annotations != nil {
		t.Error("kept what nobody acts on")
	}
	for _, pair := range [][2]any{{pod(all), pod(others)}, {namespace(all), namespace(others)}} {
		if unchanged(pair[0], pair[1]) || !unchanged(pair[0], pair[0]) {
			t.Errorf("a change of %T is not told apart", pair[0])
		}
	}
	shared := &interner{}
	a, b := shared.annotationsOf(all), shared.annotationsOf(map[string]string{"kubernetes.io/ingress-bandwidth": "10M", "selvage.dev/egress-burst": "1M", "kubernetes.io/egress-bandwidth": ""})
	if &a[0] != &b[0] {
		t.Error("equal annotations are kept twice")
	}
}
