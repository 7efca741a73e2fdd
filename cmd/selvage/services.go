package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/selvage-net/selvage/policy"
)

// fetchServices returns the Services of the cluster, which the agents do not need.
func fetchServices(ctx context.Context, config *rest.Config) ([]*policy.Service, error) {
	client, err := newCoreClient(config)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	list := new(corev1.ServiceList)
	if err := client.Get().Resource("services").Do(ctx).Into(list); err != nil {
		return nil, listError("services", err)
	}
	all := make([]*policy.Service, 0, len(list.Items))
	for i := range list.Items {
		all = append(all, serviceFrom(&list.Items[i]))
	}
	return all, nil
}

// loadServices returns the Services in manifests. What else is in them, and what is
// wrong with them, informer.Load has told.
func loadServices(dir string) ([]*policy.Service, error) {
	var all []*policy.Service
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)) {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		docs := utilyaml.NewYAMLReader(bufio.NewReader(f))
		for {
			doc, err := docs.Read()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			s := new(corev1.Service)
			if yaml.Unmarshal(doc, s) == nil && s.APIVersion == "v1" && s.Kind == "Service" {
				all = append(all, serviceFrom(s))
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("look for Services in manifests: %w", err)
	}
	return all, nil
}

// serviceFrom returns what a connection to a Service has to follow.
func serviceFrom(s *corev1.Service) *policy.Service {
	out := &policy.Service{Meta: policy.Meta{Namespace: s.Namespace, Name: s.Name, UID: s.UID}, Selector: s.Spec.Selector}
	for _, text := range append(slices.Clone(s.Spec.ClusterIPs), s.Spec.ClusterIP) {
		if a, err := netip.ParseAddr(text); err == nil && !slices.Contains(out.ClusterIPs, a.Unmap()) { // "None" is no address
			out.ClusterIPs = append(out.ClusterIPs, a.Unmap())
		}
	}
	for _, p := range s.Spec.Ports {
		port := policy.ServicePort{Name: p.Name, Protocol: policy.TCP, Port: uint16(p.Port), Target: p.TargetPort}
		switch p.Protocol {
		case corev1.ProtocolUDP:
			port.Protocol = policy.UDP
		case corev1.ProtocolSCTP:
			port.Protocol = policy.SCTP
		case corev1.ProtocolTCP:
		}
		out.Ports = append(out.Ports, port)
	}
	return out
}
