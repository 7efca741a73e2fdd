package lab

import (
	"bytes"
	"context"
	_ "embed" // for the manifests
	"errors"
	"fmt"
	"io"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

//go:embed coredns.yaml
var corednsManifests []byte

// startDNS deploys CoreDNS and waits until it serves.
func (c *Cluster) startDNS(ctx context.Context) error {
	if err := c.awaitAPIServer(ctx); err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(c.config)
	if err != nil {
		return err
	}
	if err := apply(ctx, client, corednsManifests); err != nil {
		return fmt.Errorf("deploy CoreDNS: %w", err)
	}
	if err := c.awaitDeployment(ctx, "kube-system", "coredns"); err != nil {
		return err
	}
	c.progress("CoreDNS available")
	return nil
}

// apply applies objects of well-known kinds.
func apply(ctx context.Context, client dynamic.Interface, manifests []byte) error {
	objects, err := decode(manifests)
	if err != nil {
		return err
	}
	for _, o := range objects {
		resource, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
		r := dynamic.ResourceInterface(client.Resource(resource))
		if ns := o.GetNamespace(); ns != "" {
			r = client.Resource(resource).Namespace(ns)
		}
		_, err := r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: "selvage-lab", Force: true})
		if err != nil {
			return fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

// decode reads the documents of a YAML file.
func decode(manifests []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifests), 4096)
	for {
		o := new(unstructured.Unstructured)
		err := d.Decode(o)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		if len(o.Object) > 0 {
			objects = append(objects, o)
		}
	}
}
