package artifacts

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/semver"
)

// What the images are called. Those of pause and agnhost are what the kubelet
// and the suite of this version of Kubernetes ask for: pause in its
// test/utils/image/manifest.go, agnhost in test/images/agnhost/VERSION. That of
// Selvage is what the manifests below deploy carry.
const (
	PauseImage   = "registry.k8s.io/pause:" + pauseVersion
	AgnhostImage = "registry.k8s.io/e2e-test-images/agnhost:" + agnhostVersion
	CoreDNSImage = "registry.k8s.io/coredns/coredns:v1.14.7"
	ProbeImage   = "selvage.test/probe:latest"
	SelvageImage = "ghcr.io/selvage-net/selvage:v0.1.0"

	pauseVersion   = "3.10.2"
	agnhostVersion = "2.63.0"
)

// What the versions below are those of.
const (
	kubernetesModule = "k8s.io/kubernetes"
	ginkgoModule     = "github.com/onsi/ginkgo/v2"
	etcdModule       = "go.etcd.io/etcd/server/v3"
	containerdModule = "github.com/containerd/containerd/v2"
	runcModule       = "github.com/opencontainers/runc"
	pluginsModule    = "github.com/containernetworking/plugins"
	flannelModule    = "github.com/flannel-io/flannel"
	corednsModule    = "github.com/coredns/coredns"
)

// catalog returns all recipes, in the order in which they are built: what fails
// for want of a compiler, or of the code to compile, comes before what takes
// minutes. modules is the directory of the nested modules.
func catalog(modules string) ([]recipe, error) {
	v := versions{}
	for _, r := range [][2]string{
		{"kubernetes", kubernetesModule}, {"kubernetes", ginkgoModule}, {"etcd", etcdModule},
		{"containerd", containerdModule}, {"runc", runcModule}, {"cni", pluginsModule},
		{"flannel", flannelModule}, {"coredns", corednsModule},
	} {
		version, err := required(filepath.Join(modules, r[0], "go.mod"), r[1])
		if err != nil {
			return nil, fmt.Errorf("read what there is to build (wrong root of the repository?): %w", err)
		}
		v[r[1]] = version
	}
	return []recipe{
		selvageRecipe(), probeRecipe(),
		pauseRecipe(), runcRecipe(v), cniRecipe(v), etcdRecipe(v), containerdRecipe(v), flannelRecipe(v),
		corednsRecipe(v), ginkgoRecipe(v), kubernetesRecipe(v), agnhostRecipe(), netpolRecipe(v),
	}, nil
}

// versions are those of modules, by their paths.
type versions map[string]string

// required returns the version of a module that a go.mod asks for.
func required(file, module string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	mod, err := modfile.ParseLax(file, text, nil)
	if err != nil {
		return "", err
	}
	for _, r := range mod.Require {
		if r.Mod.Path == module {
			return r.Mod.Version, nil
		}
	}
	return "", fmt.Errorf("%s does not require %s", file, module)
}

// worktree is the version of what changes with every edit.
const worktree = "worktree"

// selvageRecipe leaves the image to the program that makes the one that users
// get.
func selvageRecipe() recipe {
	return recipe{
		Name: "selvage", Version: worktree,
		Tree:  &treeBuild{Module: ".", Package: "./cmd/selvage", Stamp: "main.version", Shipped: true},
		Image: &imageBuild{Reference: SelvageImage},
	}
}

func probeRecipe() recipe {
	return recipe{
		Name: "probe", Version: worktree,
		Tree: &treeBuild{Module: "e2e", Package: "./cmd/probe"},
		Image: &imageBuild{
			Reference: ProbeImage, Entrypoint: []string{"/probe"},
			Files: map[string]imageFile{"/probe": {Built: "probe"}, "/tmp": {Mode: os.ModeDir | os.ModeSticky | 0o777}},
		},
	}
}

// pauseRecipe is the parent of a pod's containers: the one program that is C,
// because of its size in memory, 0.7 MB rather than 40.
func pauseRecipe() recipe {
	return recipe{
		Name: "pause", Version: pauseVersion,
		C: &cBuild{
			Module: "kubernetes", Path: kubernetesModule, File: "build/pause/linux/pause.c", Out: "pause",
			Flags: []string{"-Os", "-Wall", "-static", "-s", "-DVERSION=" + pauseVersion},
		},
		Image: &imageBuild{
			Reference: PauseImage, Entrypoint: []string{"/pause"},
			Files: map[string]imageFile{"/pause": {Built: "pause"}},
		},
	}
}

// runcRecipe has seccomp: without it no container starts that containerd gives
// its default profile.
func runcRecipe(v versions) recipe {
	return recipe{Name: "runc", Version: v[runcModule], Go: []goBuild{{
		Module: "runc", Packages: []string{runcModule}, Out: "runc",
		Tags: "seccomp,netgo,osusergo", Static: true,
	}}}
}

// cniRecipe has the plugins of two versions: flannel's own plugin, which writes
// the configuration of the bridge's, was among them up to v0.9.1 and is in no
// module of its own since.
func cniRecipe(v versions) recipe {
	const plugins = pluginsModule + "/plugins/"
	current := goBuild{Module: "cni", Set: []string{pluginsModule + "/pkg/utils/buildversion.BuildVersion=" + v[pluginsModule]}}
	for _, name := range []string{
		"ipam/host-local", "main/bridge", "main/host-device", "main/loopback", "main/macvlan", "main/ptp",
		"main/vlan", "meta/bandwidth", "meta/firewall", "meta/portmap", "meta/tuning",
	} {
		current.Packages = append(current.Packages, plugins+name)
	}
	flannel := goBuild{Module: "flannel-cni", Packages: []string{plugins + "meta/flannel"}, Out: "flannel"}
	return recipe{Name: "cni", Version: v[pluginsModule], Go: []goBuild{current, flannel}}
}

func etcdRecipe(v versions) recipe {
	return recipe{Name: "etcd", Version: v[etcdModule], Go: []goBuild{{
		Module: "etcd", Packages: []string{etcdModule}, Out: "etcd",
	}}}
}

func containerdRecipe(v versions) recipe {
	const cmd = containerdModule + "/cmd/"
	return recipe{Name: "containerd", Version: v[containerdModule], Go: []goBuild{{
		Module: "containerd", Packages: []string{cmd + "containerd", cmd + "containerd-shim-runc-v2", cmd + "ctr"},
		Set: []string{containerdModule + "/version.Version=" + v[containerdModule]},
	}}}
}

// flannelRecipe leaves out two backends: udp is C, and tencentvpc needs a module
// that the Go module proxy does not have. The Go tool lets no overlay replace
// what is in the module cache, so they are emptied in a copy.
func flannelRecipe(v versions) recipe {
	return recipe{Name: "flanneld", Version: v[flannelModule], Go: []goBuild{{
		Module: "flannel", Source: flannelModule, Packages: []string{"."}, Out: "flanneld",
		Empty: []string{"pkg/backend/tencentvpc", "pkg/backend/udp"},
		Set:   []string{flannelModule + "/pkg/version.Version=" + v[flannelModule]},
	}}}
}

func corednsRecipe(v versions) recipe {
	return recipe{
		Name: "coredns", Version: v[corednsModule],
		Go: []goBuild{{Module: "coredns", Packages: []string{"."}, Out: "coredns"}},
		Image: &imageBuild{
			Reference: CoreDNSImage, Entrypoint: []string{"/coredns"},
			Files: map[string]imageFile{"/coredns": {Built: "coredns"}},
		},
	}
}

// ginkgoRecipe is the version that the suite is built with; with another one it
// would not run in parallel.
func ginkgoRecipe(v versions) recipe {
	return recipe{Name: "ginkgo", Version: v[ginkgoModule], Go: []goBuild{{
		Module: "kubernetes", Packages: []string{ginkgoModule + "/ginkgo"}, Out: "ginkgo",
	}}}
}

func kubernetesRecipe(v versions) recipe {
	const cmd = kubernetesModule + "/cmd/"
	return recipe{Name: "kubernetes", Version: v[kubernetesModule], Go: []goBuild{{
		Module: "kubernetes", Set: kubernetesSet(v[kubernetesModule]),
		Packages: []string{
			cmd + "kube-apiserver", cmd + "kube-controller-manager", cmd + "kube-proxy",
			cmd + "kube-scheduler", cmd + "kubectl", cmd + "kubelet",
		},
	}}}
}

// kubernetesSet stamps the version: without, programs say v0.0.0-master, and
// kubelet and suite compare versions.
func kubernetesSet(version string) []string {
	const pkg = "k8s.io/component-base/version."
	number := strings.Split(strings.TrimPrefix(semver.MajorMinor(version), "v"), ".")
	return []string{
		pkg + "gitVersion=" + version, pkg + "gitMajor=" + number[0], pkg + "gitMinor=" + number[1],
		pkg + "gitTreeState=clean", pkg + "gitCommit=" + strings.Repeat("0", 40),
	}
}

// agnhostRecipe is what the pods of the suite run. Upstream's image has a
// distribution below it, with dig, curl and iperf; the suite and the specs of
// this repository do without.
func agnhostRecipe() recipe {
	const agnhost = "test/images/agnhost"
	file := func(name string) imageFile {
		return imageFile{Module: "kubernetes", Path: kubernetesModule, File: agnhost + "/" + name, Mode: 0o644}
	}
	return recipe{
		Name: "agnhost", Version: agnhostVersion,
		Go: []goBuild{{
			Module: "kubernetes", Packages: []string{kubernetesModule + "/" + agnhost}, Out: "agnhost",
			Set: []string{"main.Version=" + agnhostVersion},
		}},
		Image: &imageBuild{
			Reference: AgnhostImage, Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"},
			Files: map[string]imageFile{
				"/agnhost": {Built: "agnhost"},
				// porter serves HTTPS by these, netexec keeps what is uploaded.
				"/localhost.crt": file("porter/localhost.crt"), "/localhost.key": file("porter/localhost.key"),
				"/uploads": {Mode: os.ModeDir | 0o755}, "/tmp": {Mode: os.ModeDir | os.ModeSticky | 0o777},
			},
		},
	}
}

func netpolRecipe(v versions) recipe {
	return recipe{Name: "netpol", Version: v[kubernetesModule], Go: []goBuild{{
		Module: "kubernetes", Packages: []string{"./netpol"}, Out: "netpol.test", Test: true,
		Set: kubernetesSet(v[kubernetesModule]),
	}}}
}
