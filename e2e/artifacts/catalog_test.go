package artifacts

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

func readCatalog(t *testing.T) []recipe {
	t.Helper()
	recipes, err := catalog("modules")
	if err != nil {
		t.Fatal(err)
	}
	return recipes
}

func TestCatalog(t *testing.T) {
	recipes := readCatalog(t)
	var binaries, images []string
	for _, r := range recipes {
		if r.Version == "" {
			t.Errorf("%s has no version", r.Name)
		}
		if r.Name == "kubernetes" && r.Version != KubernetesVersion {
			t.Errorf("modules/kubernetes has %s, KubernetesVersion says %s", r.Version, KubernetesVersion)
		}
		if r.Image != nil {
			images = append(images, r.Name)
		}
		if tag := "coredns:" + r.Version; r.Name == "coredns" && !strings.HasSuffix(CoreDNSImage, tag) {
			t.Errorf("CoreDNSImage is %s, what is built is %s", CoreDNSImage, tag)
		}
		if r.Name != "cni" {
			binaries = append(binaries, r.binaries()...)
		}
		for _, other := range recipes {
			if strings.HasPrefix(r.Name, other.Name+"-") {
				t.Errorf("%s could be an entry of %s", r.Name, other.Name)
			}
		}
	}
	slices.Sort(images)
	if want := []string{"agnhost", "coredns", "pause", "probe", "selvage"}; !slices.Equal(images, want) {
		t.Errorf("images %q, want %q", images, want)
	}
	slices.Sort(binaries)
	if want := []string{
		"containerd", "containerd-shim-runc-v2", "ctr", "etcd", "flanneld", "ginkgo",
		"kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet",
		"netpol.test", "runc",
	}; !slices.Equal(binaries, want) {
		t.Errorf("programs %q, want %q", binaries, want)
	}
}

// TestModules sees that each nested module requires what is built of it, as a
// tool or by an import: `go mod tidy` must not drop it.
func TestModules(t *testing.T) {
	used := map[string]bool{}
	for _, r := range readCatalog(t) {
		for _, g := range r.Go {
			used[g.Module] = true
			mod := readMod(t, g.Module)
			for _, p := range g.Packages {
				tool := slices.ContainsFunc(mod.Tool, func(t *modfile.Tool) bool { return t.Path == p })
				if !strings.HasPrefix(p, ".") && !tool {
					t.Errorf("modules/%s/go.mod has no tool %s", g.Module, p)
				}
			}
		}
	}
	dirs, err := os.ReadDir("modules")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if !used[d.Name()] {
			t.Errorf("modules/%s is used by nothing", d.Name())
		}
		want := "github.com/selvage-net/selvage/e2e/artifacts/modules/" + d.Name()
		if got := readMod(t, d.Name()).Module.Mod.Path; got != want {
			t.Errorf("modules/%s is called %s, want %s", d.Name(), got, want)
		}
	}
}

// TestSources parses the Go files of the nested modules, which are compiled
// only when a cluster is wanted.
func TestSources(t *testing.T) {
	files, err := filepath.Glob("modules/*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("modules/*/*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	if files = append(files, more...); len(files) == 0 {
		t.Fatal("there are none")
	}
	for _, f := range files {
		if _, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.AllErrors); err != nil {
			t.Error(err)
		}
	}
}

func readMod(t *testing.T, module string) *modfile.File {
	t.Helper()
	name := filepath.Join("modules", module, "go.mod")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse(name, text, nil)
	if err != nil {
		t.Fatal(err)
	}
	return mod
}

func TestChoose(t *testing.T) {
	recipes := readCatalog(t)
	for only, want := range map[string]string{
		"":                           strings.Join(names(recipes), " "),
		"kubelet etcd":               "etcd kubernetes",
		"netpol.test":                "netpol",
		"agnhost kube-proxy kubelet": "kubernetes agnhost",
		"flannel flanneld":           "cni flanneld",
	} {
		got, err := choose(recipes, strings.Fields(only))
		if err != nil || strings.Join(names(got), " ") != want {
			t.Errorf("%q gives %q (%v), want %q", only, names(got), err, want)
		}
	}
	if _, err := choose(recipes, []string{"kubelett"}); err == nil || !strings.Contains(err.Error(), "kubernetes") {
		t.Errorf("a name that is not there: error %v", err)
	}
}
