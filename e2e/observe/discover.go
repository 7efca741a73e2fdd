package observe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// discovery is how Prometheus finds pods, as far as scrape.yaml uses it. Debian's
// Prometheus is built without: what it would find is found here, and handed over in a
// file, with the same labels.
type discovery struct {
	Role       string `json:"role"`
	Namespaces struct {
		Names []string `json:"names"`
	} `json:"namespaces"`
	Selectors []struct {
		Role  string `json:"role"`
		Label string `json:"label"`
	} `json:"selectors"`
}

func (d discovery) validate() error {
	if d.Role != "pod" || len(d.Namespaces.Names) != 1 || len(d.Selectors) != 1 || d.Selectors[0].Role != "pod" {
		return fmt.Errorf("scrape.yaml: of kubernetes_sd_configs only pods of one namespace, by one selector, are understood here, and not %+v", d)
	}
	return nil
}

// targets is an entry of a file for file_sd_configs.
type targets struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// find returns a target for each port of each container.
func (d discovery) find(ctx context.Context, kube kubernetes.Interface) ([]targets, error) {
	pods, err := kube.CoreV1().Pods(d.Namespaces.Names[0]).List(ctx, metav1.ListOptions{LabelSelector: d.Selectors[0].Label})
	if err != nil {
		return nil, err
	}
	all := []targets{}
	for _, p := range pods.Items {
		if p.Status.PodIP == "" {
			continue
		}
		for _, c := range p.Spec.Containers {
			for _, port := range c.Ports {
				all = append(all, targetOf(p, c, port))
			}
		}
	}
	return all, nil
}

func targetOf(p corev1.Pod, c corev1.Container, port corev1.ContainerPort) targets {
	return targets{
		Targets: []string{net.JoinHostPort(p.Status.PodIP, strconv.Itoa(int(port.ContainerPort)))},
		Labels: map[string]string{
			"__meta_kubernetes_namespace":               p.Namespace,
			"__meta_kubernetes_pod_name":                p.Name,
			"__meta_kubernetes_pod_node_name":           p.Spec.NodeName,
			"__meta_kubernetes_pod_container_name":      c.Name,
			"__meta_kubernetes_pod_container_port_name": port.Name,
		},
	}
}

// follow keeps a file up to date until ctx ends. While the API server does not answer it
// stays as it is, as with Prometheus' own discovery.
func (d discovery) follow(ctx context.Context, kube kubernetes.Interface, file string) {
	for ctx.Err() == nil {
		if all, err := d.find(ctx, kube); err == nil {
			_ = write(file, all) // it is tried again
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// write replaces a file at once.
func write(file string, all []targets) error {
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	before, err := os.ReadFile(file)
	if err == nil && string(before) == string(text) {
		return nil
	}
	temp := file + ".new"
	return errors.Join(os.WriteFile(temp, text, 0o644), os.Rename(temp, file))
}
