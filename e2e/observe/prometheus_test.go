package observe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/yaml"
)

// TestConfigure makes a configuration of what operators get: only where the agents come
// from, and how often they are asked, is changed.
func TestConfigure(t *testing.T) {
	o := Options{Repo: repo, Dir: t.TempDir(), Every: "1s", Wait: "2s"}
	d, err := o.configure()
	if err != nil {
		t.Fatal(err)
	}
	if d.Namespaces.Names[0] != "selvage-system" || !strings.Contains(d.Selectors[0].Label, "app.kubernetes.io/component=agent") {
		t.Errorf("agents are looked for by %+v", d)
	}
	var got struct {
		Scrapes []map[string]any `json:"scrape_configs"`
	}
	text, err := os.ReadFile(filepath.Join(o.Dir, "prometheus.yml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	job := got.Scrapes[0]
	if job["job_name"] != "selvage" || job["honor_labels"] != true || job["file_sd_configs"] == nil || job["relabel_configs"] == nil || job["kubernetes_sd_configs"] != nil {
		t.Errorf("the job is %v", job)
	}
	if text, err = os.ReadFile(filepath.Join(o.Dir, "alerts.yml")); err != nil || strings.Contains(string(text), "10m\n  ") || !strings.Contains(string(text), "for: 2s") {
		t.Errorf("%v, alerts:\n%s", err, text)
	}
}

// TestConfigureUnknown refuses what would be left out of a run without a word.
func TestConfigureUnknown(t *testing.T) {
	for _, scrape := range []string{
		"scrape_configs: []",
		"scrape_configs: [{job_name: a, kubernetes_sd_configs: [{role: endpoints, namespaces: {names: [a]}, selectors: [{role: pod, label: a}]}]}]",
		"scrape_configs: [{job_name: a, kubernetes_sd_configs: [{role: pod, attach_metadata: {node: true}}]}]",
		"scrape_configs: [{job_name: a, static_configs: []}]",
		"other: 1",
	} {
		if text, _, err := (Options{}).config([]byte(scrape)); err == nil {
			t.Errorf("%s became\n%s", scrape, text)
		}
	}
}

// TestFind finds the ports of the pods that are chosen, with the labels that Prometheus
// gives them.
func TestFind(t *testing.T) {
	agent := func(name, ip string, labels map[string]string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "selvage-system", Name: name, Labels: labels},
			Spec: corev1.PodSpec{NodeName: "node-of-" + name, Containers: []corev1.Container{{
				Name: "agent", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 9470}},
			}}},
			Status: corev1.PodStatus{PodIP: ip},
		}
	}
	var d discovery
	const like = "{role: pod, namespaces: {names: [selvage-system]}, selectors: [{role: pod, label: app=a}]}"
	if err := yaml.UnmarshalStrict([]byte(like), &d); err != nil {
		t.Fatal(err)
	}
	kube := fake.NewClientset(
		agent("one", "10.0.0.1", map[string]string{"app": "a"}), agent("six", "fd00::6", map[string]string{"app": "a"}),
		agent("starting", "", map[string]string{"app": "a"}), agent("other", "10.0.0.9", map[string]string{"app": "b"}),
	)
	all, err := d.find(t.Context(), kube)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, target := range all {
		got = append(got, target.Targets[0]+" "+target.Labels["__meta_kubernetes_pod_node_name"]+" "+target.Labels["__meta_kubernetes_pod_container_port_name"])
	}
	if want := "10.0.0.1:9470 node-of-one http, [fd00::6]:9470 node-of-six http"; strings.Join(got, ", ") != want {
		t.Errorf("found %q, want %q", got, want)
	}
	file := filepath.Join(t.TempDir(), "targets.json")
	for range 2 {
		if err := write(file, all); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), `"10.0.0.1:9470"`) {
		t.Errorf("%s, %v", text, err)
	}
}
