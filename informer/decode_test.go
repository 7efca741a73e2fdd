package informer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/selvage-net/selvage/informer/api/calico"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
)

// names renders objects as "Kind namespace/name".
func names(objects []runtime.Object) []string {
	var s []string
	for _, o := range objects {
		m := o.(metav1.Object)
		kind := strings.TrimPrefix(strings.TrimPrefix(typeName(o), "*v1."), "*")
		s = append(s, strings.TrimSpace(kind+" "+strings.TrimPrefix(m.GetNamespace()+"/"+m.GetName(), "/")))
	}
	return s
}

func typeName(o runtime.Object) string {
	switch o.(type) {
	case *corev1.Pod:
		return "Pod"
	case *corev1.Namespace:
		return "Namespace"
	case *corev1.Node:
		return "Node"
	case *networkingv1.NetworkPolicy:
		return "NetworkPolicy"
	case *v1alpha1.IPPool:
		return "IPPool"
	case *calico.IPPool:
		return "CalicoPool"
	case *networkingv1.ServiceCIDR:
		return "ServiceCIDR"
	}
	return "?"
}

func TestDecode(t *testing.T) {
	const podJSON = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}`
	tests := []struct {
		name string
		file string
		data string
		want []string
	}{
		{"empty", "a.yaml", "", nil},
		{"comments only", "a.yaml", "# nothing\n---\n\n---\n# here\n", nil},
		{"one", "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n", []string{"Pod default/a"}},
		{"several", "a.yaml", "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n--- # more\napiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n...\n",
			[]string{"Pod x/a", "Node n1", "Namespace x"}},
		{"content on the marker's line", "a.yaml", "--- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n--- {apiVersion: v1, kind: Pod, metadata: {name: b}}", []string{"Pod default/a", "Pod default/b"}},
		{"carriage returns", "a.yaml", "apiVersion: v1\r\nkind: Pod\r\nmetadata: {name: a}\r\n---\r\napiVersion: v1\r\nkind: Pod\r\nmetadata: {name: b}\r\n", []string{"Pod default/a", "Pod default/b"}},
		{"byte order mark and directive", "a.yaml", "\xef\xbb\xbf%YAML 1.2\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n", []string{"Pod default/a"}},
		{"JSON in YAML", "a.yml", podJSON, []string{"Pod default/a"}},
		{"JSON stream", "a.json", podJSON + "\n" + strings.Replace(podJSON, `"a"`, `"b"`, 1), []string{"Pod default/a", "Pod default/b"}},
		{"list of all kinds", "a.yaml", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n- apiVersion: apps/v1\n  kind: Deployment\n  spec: {nonsense: 1}\n- apiVersion: networking.k8s.io/v1\n  kind: NetworkPolicy\n  metadata: {name: p}\n  spec: {podSelector: {}}\n",
			[]string{"Pod default/a", "NetworkPolicy default/p"}},
		{"typed list", "a.yaml", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nmetadata: {resourceVersion: '7'}\nitems:\n- metadata: {name: p, namespace: x}\n  spec: {podSelector: {}}\n",
			[]string{"NetworkPolicy x/p"}},
		{"kinds of no interest", "a.yaml", "apiVersion: apps/v1\nkind: Deployment\nspec: {nonsense: 1}\n---\napiVersion: v1\nkind: ServiceList\nitems: [{a: b}]\n---\napiVersion: v1\nkind: ConfigMap\ndata: {x: y}\n", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			objects, errs := Decode(tt.file, []byte(tt.data))
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			if diff := cmp.Diff(tt.want, names(objects)); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeCompletes(t *testing.T) {
	objects, errs := Decode("a.yaml", []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {team: red}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\n"))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	ns, pod, other := objects[0].(*corev1.Namespace), objects[1].(*corev1.Pod), objects[2].(*corev1.Pod)
	if diff := cmp.Diff(map[string]string{"team": "red", "kubernetes.io/metadata.name": "x"}, ns.Labels); diff != "" {
		t.Errorf("labels of the namespace (-want +got):\n%s", diff)
	}
	if pod.Namespace != "default" {
		t.Errorf("namespace = %q, want default", pod.Namespace)
	}
	if pod.UID == "" || pod.UID == other.UID || pod.UID == ns.UID {
		t.Errorf("UIDs are not those of different objects: %q, %q, %q", pod.UID, other.UID, ns.UID)
	}
	again, _ := Decode("b.yaml", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {nodeName: n1}\n"))
	if uid := again[0].(*corev1.Pod).UID; uid != pod.UID {
		t.Errorf("UID = %q in another file, %q before", uid, pod.UID)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b/pods.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {app: web}}\nstatus: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}\n")
	write(t, dir, "a.yml", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}\n")
	write(t, dir, "notes.txt", "not: a manifest\n")
	write(t, dir, ".hidden/x.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: hidden}\n")
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Pods) != 1 || len(s.Policies) != 1 || s.Pods[0].Labels.Get("app") != "web" || len(s.Pods[0].Addrs) != 2 {
		t.Errorf("snapshot = %+v", s)
	}
	write(t, dir, "c.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n[\n")
	s, err = Load(dir)
	if len(s.Pods) != 1 || len(s.Policies) != 1 {
		t.Errorf("snapshot with errors = %+v", s)
	}
	for _, want := range []string{
		filepath.Join(dir, "c.yaml") + ": document 1 (line 1): Pod default/a: is already defined in " + filepath.Join(dir, "b/pods.yaml"),
		filepath.Join(dir, "c.yaml") + ": document 2 (line 5): ",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}

// write writes a file, and its directories.
func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
