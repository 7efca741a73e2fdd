package deploy_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const chartDir = "chart/selvage"

// objects are typed objects by kind and name.
type objects map[string]runtime.Object

// decode reads manifests into the types of Kubernetes. A field that these do not
// have, or that is there twice, is an error.
func decode(t *testing.T, what string, manifests []byte) objects {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, rbacv1.AddToScheme, apiextensionsv1.AddToScheme, admissionv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	all := make(objects)
	for r := utilyaml.NewYAMLReader(newBuffered(manifests)); ; {
		document, err := r.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if isEmpty(t, document) {
			continue
		}
		o, _, err := strict.Decode(document, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v in\n%s", what, err, document)
		}
		m, err := meta.Accessor(o)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		key := o.GetObjectKind().GroupVersionKind().Kind + " " + m.GetName()
		if _, twice := all[key]; twice {
			t.Fatalf("%s: %s is there twice", what, key)
		}
		all[key] = o
	}
}

// isEmpty tells whether a document has only comments.
func isEmpty(t *testing.T, document []byte) bool {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(document, &v); err != nil {
		t.Fatalf("%v in\n%s", err, document)
	}
	return v == nil
}

// kustomize builds a directory.
func kustomize(t *testing.T, dir string) objects {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatalf("kustomize %s: %v", dir, err)
	}
	manifests, err := resources.AsYaml()
	if err != nil {
		t.Fatalf("kustomize %s: %v", dir, err)
	}
	return decode(t, dir, manifests)
}

func loadChart(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.LoadDir(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// helm renders the chart as `helm template selvage --namespace selvage-system`
// does, with the values in the files and then those given.
func helm(t *testing.T, values string, files ...string) (objects, error) {
	t.Helper()
	rendered, err := helmRaw(t, values, files...)
	if err != nil {
		return nil, err
	}
	return decodeChart(t, rendered), nil
}

// decodeChart reads all manifests of a chart that was rendered.
func decodeChart(t *testing.T, rendered map[string]string) objects {
	t.Helper()
	var manifests []byte
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		if strings.HasSuffix(name, ".yaml") {
			manifests = fmt.Appendf(manifests, "---\n%s\n", rendered[name])
		}
	}
	return decode(t, "chart", manifests)
}

// helmRaw returns what the files of the chart are rendered to.
func helmRaw(t *testing.T, values string, files ...string) (map[string]string, error) {
	t.Helper()
	return helmOn(t, "v1.36.0", values, files...)
}

// helmOn renders the chart for an API server of some version.
func helmOn(t *testing.T, server, values string, files ...string) (map[string]string, error) {
	t.Helper()
	c := loadChart(t)
	all := map[string]any{}
	for _, f := range files {
		v, err := chartutil.ReadValuesFile(filepath.Join(chartDir, f))
		if err != nil {
			t.Fatal(err)
		}
		all = chartutil.CoalesceTables(v, all)
	}
	v, err := chartutil.ReadValues([]byte(values))
	if err != nil {
		t.Fatal(err)
	}
	all = chartutil.CoalesceTables(v, all)
	release := chartutil.ReleaseOptions{Name: "selvage", Namespace: "selvage-system", IsInstall: true, Revision: 1}
	version, err := chartutil.ParseKubeVersion(server)
	if err != nil {
		t.Fatal(err)
	}
	capabilities := chartutil.DefaultCapabilities.Copy()
	capabilities.KubeVersion = *version
	top, err := chartutil.ToRenderValues(c, all, release, capabilities)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, top)
}

func mustHelm(t *testing.T, values string, files ...string) objects {
	t.Helper()
	o, err := helm(t, values, files...)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestEqual compares the chart with kustomize, object by object. Only what is for Helm
// itself may differ.
func TestEqual(t *testing.T) {
	for dir, files := range map[string][]string{
		"base":             nil,
		"overlays/flannel": {"values-flannel.yaml"},
		"overlays/debug":   {"values-flannel.yaml", "values-debug.yaml"},
		"overlays/observe": {"values-flannel.yaml", "values-observe.yaml"},

		"overlays/pod-namespaces": {"values-pod-namespaces.yaml"},
	} {
		want, got := kustomize(t, dir), mustHelm(t, "", files...)
		maps.Copy(want, kustomize(t, "pools"))
		for name, o := range got {
			m, err := meta.Accessor(o)
			if err != nil {
				t.Fatal(err)
			}
			labels := m.GetLabels()
			if labels["app.kubernetes.io/managed-by"] != "Helm" || labels["helm.sh/chart"] != "selvage-0.1.0" {
				t.Errorf("%s: %s has labels %v, want Helm's, too", dir, name, labels)
			}
			delete(labels, "app.kubernetes.io/managed-by")
			delete(labels, "helm.sh/chart")
			delete(m.GetAnnotations(), "helm.sh/resource-policy")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s and the chart with %v differ (-kustomize +helm):\n%s", dir, files, diff)
		}
		objects := 12
		if dir == "overlays/observe" {
			objects++ // the Service
		}
		if len(want) != objects {
			t.Errorf("%s: %d objects, want %d", dir, len(want), objects)
		}
	}
}

// TestVersion sees that one version is named everywhere.
func TestVersion(t *testing.T) {
	c := loadChart(t)
	if c.Metadata.AppVersion != "v"+c.Metadata.Version {
		t.Errorf("the chart is %s for %s, want the same version", c.Metadata.Version, c.Metadata.AppVersion)
	}
	want := "ghcr.io/selvage-net/selvage:" + c.Metadata.AppVersion
	for _, dir := range []string{"base", "overlays/flannel", "overlays/debug", "overlays/observe", "overlays/pod-namespaces", "cleanup"} {
		for name, o := range kustomize(t, dir) {
			d, ok := o.(*appsv1.DaemonSet)
			if !ok {
				continue
			}
			pod := d.Spec.Template
			for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
				if container.Image != want {
					t.Errorf("%s: %s: image %s, want %s", dir, name, container.Image, want)
				}
			}
			if v := pod.Labels["app.kubernetes.io/version"]; v != c.Metadata.AppVersion {
				t.Errorf("%s: %s: version %q in the labels, want %s", dir, name, v, c.Metadata.AppVersion)
			}
		}
	}
	main, err := os.ReadFile("cmd/image/main.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(main, []byte(`"`+want+`"`)) {
		t.Errorf("cmd/image does not make %s unless told otherwise", want)
	}
}
