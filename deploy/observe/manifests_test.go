package observe_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// kustomize builds a directory, and returns what it makes, by kind and name.
func kustomize(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatalf("kustomize %s: %v", dir, err)
	}
	all := make(map[string][]byte)
	for _, r := range made.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		all[r.GetKind()+" "+r.GetName()] = text
	}
	return all
}

func decode[T any](t *testing.T, all map[string][]byte, name string) T {
	t.Helper()
	var o T
	if all[name] == nil {
		t.Fatalf("there is no %s", name)
	}
	if err := yaml.UnmarshalStrict(all[name], &o); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return o
}

// TestOverlay sees that the overlay has the agents serve at the nodes' addresses, too,
// changes nothing else, and makes a Service that finds them.
func TestOverlay(t *testing.T) {
	before, after := kustomize(t, "../overlays/flannel"), kustomize(t, "../overlays/observe")
	want, got := decode[appsv1.DaemonSet](t, before, "DaemonSet selvage"), decode[appsv1.DaemonSet](t, after, "DaemonSet selvage")
	agent := &want.Spec.Template.Spec.Containers[0]
	i := slices.Index(agent.Args, "--http-address=127.0.0.1:9470")
	if i < 0 {
		t.Fatalf("arguments %v", agent.Args)
	}
	agent.Args[i] += ",$(HOST_IP):9470"
	agent.Env = append(agent.Env, corev1.EnvVar{
		Name: "HOST_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.hostIP"}},
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the DaemonSet (-want +got):\n%s", diff)
	}
	service := decode[corev1.Service](t, after, "Service selvage")
	pods := got.Spec.Template
	for key, value := range service.Spec.Selector {
		if pods.Labels[key] != value || service.Labels[key] != value {
			t.Errorf("the Service selects %s=%s, which the pods have as %q and it has itself as %q", key, value, pods.Labels[key], service.Labels[key])
		}
	}
	port := service.Spec.Ports[0]
	if p := pods.Spec.Containers[0].Ports[0]; service.Spec.ClusterIP != corev1.ClusterIPNone || !service.Spec.PublishNotReadyAddresses ||
		port.TargetPort.String() != p.Name || port.Port != p.ContainerPort {
		t.Errorf("the Service is %+v, and the agent serves at %+v", service.Spec, p)
	}
	delete(after, "Service selvage")
	delete(after, "DaemonSet selvage")
	delete(before, "DaemonSet selvage")
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("other objects (-flannel +observe):\n%s", diff)
	}
}

// endpoint is what PodMonitors and ServiceMonitors have in common.
type endpoint struct {
	Port        string `json:"port"`
	Path        string `json:"path"`
	HonorLabels bool   `json:"honorLabels"`
	Relabelings []struct {
		Action       string   `json:"action"`
		Regex        string   `json:"regex"`
		SourceLabels []string `json:"sourceLabels"`
		TargetLabel  string   `json:"targetLabel"`
	} `json:"relabelings"`
}

// monitor is a PodMonitor or a ServiceMonitor.
type monitor struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
	Spec       struct {
		JobLabel string `json:"jobLabel"`
		Selector struct {
			MatchLabels map[string]string `json:"matchLabels"`
		} `json:"selector"`
		Pods     []endpoint `json:"podMetricsEndpoints"`
		Services []endpoint `json:"endpoints"`
	} `json:"spec"`
}

// TestMonitors sees that whoever scrapes gives the labels that queries rely on, and finds
// the agents; and that an agent is not scraped by both ways at once.
func TestMonitors(t *testing.T) {
	agents := decode[appsv1.DaemonSet](t, kustomize(t, "../overlays/observe"), "DaemonSet selvage").Spec
	pods, services := kustomize(t, "operator"), kustomize(t, "operator-service")
	if _, ok := services["PodMonitor selvage"]; ok || len(services) != 2 || len(pods) != 2 {
		t.Errorf("%d and %d objects, with a PodMonitor in the latter: %v", len(pods), len(services), ok)
	}
	if diff := cmp.Diff(string(pods["PrometheusRule selvage"]), string(services["PrometheusRule selvage"])); diff != "" {
		t.Errorf("the rules differ:\n%s", diff)
	}
	p, s := decode[monitor](t, pods, "PodMonitor selvage"), decode[monitor](t, services, "ServiceMonitor selvage")
	for _, m := range []monitor{p, s} {
		if diff := cmp.Diff(agents.Selector.MatchLabels, m.Spec.Selector.MatchLabels); diff != "" {
			t.Errorf("%s selects others than the DaemonSet:\n%s", m.Kind, diff)
		}
		if m.Spec.Selector.MatchLabels[m.Spec.JobLabel] != "selvage" {
			t.Errorf("%s takes the job's name from %s", m.Kind, m.Spec.JobLabel)
		}
		e := slices.Concat(m.Spec.Pods, m.Spec.Services)
		if len(e) != 1 || !e[0].HonorLabels || e[0].Path != "/metrics" || e[0].Port != agents.Template.Spec.Containers[0].Ports[0].Name {
			t.Errorf("%s scrapes %+v", m.Kind, e)
		}
		if r := e[0].Relabelings; len(r) != 2 || r[1].TargetLabel != "node" || !slices.Equal(r[1].SourceLabels, []string{"__meta_kubernetes_pod_node_name"}) {
			t.Errorf("%s: relabelings %+v", m.Kind, r)
		}
	}
}

// TestConfigMaps sees that each dashboard comes to Grafana.
func TestConfigMaps(t *testing.T) {
	all := kustomize(t, "dashboards")
	boards := read(t)
	if len(all) != len(boards) {
		t.Errorf("%d ConfigMaps of %d dashboards", len(all), len(boards))
	}
	for name := range all {
		m := decode[corev1.ConfigMap](t, all, name)
		if m.Labels["grafana_dashboard"] != "1" || len(m.Data) != 1 {
			t.Errorf("%s: labels %v, %d files", name, m.Labels, len(m.Data))
		}
		for file := range m.Data {
			if _, ok := boards["dashboards/"+file]; !ok {
				t.Errorf("%s has %s, which is no dashboard", name, file)
			}
		}
	}
}
