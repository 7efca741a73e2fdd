package deploy_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

func newBuffered(b []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(b)) }

// everything sets each value to something else than its default, but for
// bandwidth.enabled: without that, the others beside it mean nothing.
const everything = `
image: {repository: registry.example:5000/mirror/selvage, tag: v9.9.9, digest: "sha256:0123456789012345678901234567890123456789012345678901234567890123", pullPolicy: Always}
imagePullSecrets: [mirror]
namespace: {create: false}
apiServer: {host: 127.0.0.1, port: 6444, configMap: endpoint}
agent:
  logLevel: debug
  logFormat: json
  httpAddress: "127.0.0.1:9999"
  httpOnNode: true
  page: true
  dropLogRate: 2.5
  markMask: "0x000F0000"
  denyAction: reject
  podToNode: policy
  resyncInterval: 1h30m
  sharedSetThreshold: 20000000
  kubeconfig: /etc/kubernetes/selvage.conf
bandwidth:
  defaultIngress: 1.5G
  defaultEgress: 500M
  excludeCIDRs: [10.244.0.0/16, "fd00:10:244::/56"]
  takeOverPlugin: true
  metricsPerPod: true
  netnsDirs: [/run/netns, /var/run/other/netns]
  podNamespaces: true
pools:
  crd: {enabled: false}
  admission: {enabled: false}
  noMasqueradeCIDRs: [192.168.0.0/16, "2001:db8::/32"]
  serviceCIDRs: [10.96.0.0/12]
resources: {requests: {cpu: 1, memory: 1Gi}, limits: {cpu: "2", memory: 2Gi}}
priorityClassName: system-cluster-critical
nodeSelector: {example.com/policy: "yes"}
tolerations: [{key: a, operator: Equal, value: b, effect: NoExecute, tolerationSeconds: 5}]
affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}
updateStrategy: {maxUnavailable: 10%}
podAnnotations: {example.com/a: b}
podLabels: {example.com/c: d}
seLinuxOptions: {type: spc_t}
`

func daemonSet(t *testing.T, all objects, name string) *appsv1.DaemonSet {
	t.Helper()
	d, ok := all["DaemonSet "+name].(*appsv1.DaemonSet)
	if !ok {
		t.Fatalf("there is no DaemonSet %s", name)
	}
	return d
}

// TestValues sees that each value gets where it belongs.
func TestValues(t *testing.T) {
	all := mustHelm(t, everything)
	if _, ok := all["Namespace selvage-system"]; ok || len(all) != 5 {
		t.Errorf("%d objects, with a namespace: %v; want 5 without", len(all), ok)
	}
	d := daemonSet(t, all, "selvage")
	pod := d.Spec.Template.Spec
	agent := pod.Containers[0]
	limits, requests := agent.Resources.Limits, agent.Resources.Requests
	got := []any{
		agent.Image, agent.ImagePullPolicy, pod.ImagePullSecrets[0].Name, env(agent, "KUBERNETES_SERVICE_HOST"), env(agent, "KUBERNETES_SERVICE_PORT"),
		requests.Cpu().String(), requests.Memory().String(), limits.Cpu().String(), limits.Memory().String(),
		pod.PriorityClassName, pod.NodeSelector["example.com/policy"], *pod.Tolerations[0].TolerationSeconds,
		pod.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchExpressions[0].Key,
		d.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable.String(), d.Spec.Template.Annotations["example.com/a"], d.Spec.Template.Labels["example.com/c"],
		pod.SecurityContext.SELinuxOptions.Type, agent.Ports[0].ContainerPort, agent.ReadinessProbe.HTTPGet.Host,
	}
	want := []any{
		"registry.example:5000/mirror/selvage:v9.9.9@sha256:0123456789012345678901234567890123456789012345678901234567890123", corev1.PullAlways, "mirror", "127.0.0.1", "6444",
		"1", "1Gi", "2", "2Gi",
		"system-cluster-critical", "yes", int64(5),
		"a",
		"10%", "b", "d",
		"spc_t", int32(9999), "127.0.0.1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values differ (-want +got):\n%s", diff)
	}
	args := []string{
		"agent", "--node-name=$(NODE_NAME)", "--http-address=127.0.0.1:9999,$(HOST_IP):9999", "--log-level=debug", "--log-format=json", "--mark-mask=0x000F0000",
		"--deny-action=reject", "--pod-to-node=policy", "--resync-interval=1h30m", "--shared-set-threshold=20000000",
		"--bandwidth=true", "--netns-dir=/run/netns,/var/run/other/netns", "--take-over-bandwidth-plugin=true", "--metrics-per-pod=true",
		"--default-ingress-bandwidth=1.5G", "--default-egress-bandwidth=500M", "--exclude-cidrs=10.244.0.0/16,fd00:10:244::/56",
		"--no-masquerade-cidrs=192.168.0.0/16,2001:db8::/32", "--service-cidrs=10.96.0.0/12",
		"--page", "--drop-log-rate=2.5", "--kubeconfig=/host/kubeconfig",
	}
	if diff := cmp.Diff(args, agent.Args); diff != "" {
		t.Errorf("arguments differ (-want +got):\n%s", diff)
	}
	checkSource(t, pod, "/etc/kubernetes/selvage.conf", corev1.HostPathFile, "/host/kubeconfig")
}

func env(c corev1.Container, name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

func checkSource(t *testing.T, pod corev1.PodSpec, path string, typ corev1.HostPathType, mount string) {
	t.Helper()
	volumes, mounts := volumesBut(pod)
	if len(volumes) != 1 || volumes[0].HostPath == nil || volumes[0].HostPath.Path != path || *volumes[0].HostPath.Type != typ {
		t.Fatalf("volumes %+v, want %s as %s", volumes, path, typ)
	}
	if len(mounts) != 1 || mounts[0].MountPath != mount || !mounts[0].ReadOnly || mounts[0].Name != volumes[0].Name {
		t.Errorf("mounts %+v, want %s read-only", mounts, mount)
	}
}

// volumesBut returns the volumes and mounts but for those of TestNetNS.
func volumesBut(pod corev1.PodSpec) ([]corev1.Volume, []corev1.VolumeMount) {
	netns := func(name string) bool { return strings.HasPrefix(name, "netns") }
	volumes := slices.DeleteFunc(slices.Clone(pod.Volumes), func(v corev1.Volume) bool { return netns(v.Name) })
	mounts := slices.DeleteFunc(slices.Clone(pod.Containers[0].VolumeMounts), func(m corev1.VolumeMount) bool { return netns(m.Name) })
	return volumes, mounts
}

func TestManifests(t *testing.T) {
	pod := daemonSet(t, mustHelm(t, "agent: {manifests: /etc/selvage/manifests}"), "selvage").Spec.Template.Spec
	if args := pod.Containers[0].Args; !slices.Contains(args, "--manifests=/host/manifests") {
		t.Errorf("arguments %v", args)
	}
	checkSource(t, pod, "/etc/selvage/manifests", corev1.HostPathDirectory, "/host/manifests")
}

// TestConfigMap has the address of the API server come from a ConfigMap that need
// not exist, for the service account alone.
func TestConfigMap(t *testing.T) {
	pod := daemonSet(t, mustHelm(t, "apiServer: {configMap: endpoint}"), "selvage").Spec.Template.Spec
	volumes, mounts := volumesBut(pod)
	if len(volumes) != 1 || volumes[0].ConfigMap == nil || volumes[0].ConfigMap.Name != "endpoint" || !*volumes[0].ConfigMap.Optional {
		t.Fatalf("volumes %+v", pod.Volumes)
	}
	if len(mounts) != 1 || !slices.Contains(pod.Containers[0].Args, "--api-server-dir="+mounts[0].MountPath) || !mounts[0].ReadOnly {
		t.Errorf("mounts %+v, arguments %v", mounts, pod.Containers[0].Args)
	}
}

func TestHTTPAddress(t *testing.T) {
	for address, host := range map[string]string{"127.0.0.1:1": "127.0.0.1", "0.0.0.0:65535": "127.0.0.1", "[::1]:9470": "::1", "[::]:9470": "127.0.0.1"} {
		agent := daemonSet(t, mustHelm(t, "agent: {httpAddress: \""+address+"\"}"), "selvage").Spec.Template.Spec.Containers[0]
		for _, p := range []*corev1.Probe{agent.StartupProbe, agent.ReadinessProbe, agent.LivenessProbe} {
			if p.HTTPGet.Host != host || p.HTTPGet.Port.String() != "http" {
				t.Errorf("%s: the probe asks %s", address, p.HTTPGet)
			}
		}
	}
	agent := daemonSet(t, mustHelm(t, "agent: {httpAddress: \"\"}"), "selvage").Spec.Template.Spec.Containers[0]
	if agent.StartupProbe != nil || agent.ReadinessProbe != nil || agent.LivenessProbe != nil || agent.Ports != nil {
		t.Error("there are probes of an agent that does not serve")
	}
}

// TestFlags compares the arguments with what the program itself says it takes.
func TestFlags(t *testing.T) {
	help, err := exec.Command(buildProgram(t), "agent", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	known := flagsOf(string(help), `(?m)^ +(?:-\w, )?--([a-z-]+)`)
	known = slices.DeleteFunc(known, func(f string) bool { return f == "help" })
	var args []string
	for _, source := range []string{"agent: {kubeconfig: /a}", "agent: {manifests: /a}", "apiServer: {configMap: a}", everything} {
		args = append(args, daemonSet(t, mustHelm(t, source), "selvage").Spec.Template.Spec.Containers[0].Args...)
	}
	if diff := cmp.Diff(known, flagsOf(strings.Join(args, "\n"), `(?m)^--([a-z-]+)`)); diff != "" {
		t.Errorf("the flags that can be set differ from those of the program (-program +chart):\n%s", diff)
	}
}

// flagsOf returns what the expression's group matches, sorted, each once.
func flagsOf(text, expression string) []string {
	var flags []string
	for _, m := range regexp.MustCompile(expression).FindAllStringSubmatch(text, -1) {
		flags = append(flags, m[1])
	}
	slices.Sort(flags)
	return slices.Compact(flags)
}

func TestSchema(t *testing.T) {
	for _, c := range []struct{ values, want string }{
		{"agnet: {}", "additional properties 'agnet' not allowed"},
		{"agent: {loglevel: debug}", "additional properties 'loglevel' not allowed"},
		{"agent: {logLevel: trace}", "at '/agent/logLevel'"},
		{"agent: {logFormat: xml}", "at '/agent/logFormat'"},
		{"agent: {denyAction: accept}", "at '/agent/denyAction'"},
		{"agent: {podToNode: deny}", "at '/agent/podToNode'"},
		{"agent: {markMask: 0x30c4}", "at '/agent/markMask': got number, want string"},
		{"agent: {markMask: \"12484\"}", "at '/agent/markMask'"},
		{"agent: {markMask: \"0x1000\"}", "at '/agent/markMask'"},
		{"agent: {markMask: \"0x0\"}", "at '/agent/markMask'"},
		{"agent: {markMask: \"0x112345678\"}", "at '/agent/markMask'"},
		{"agent: {resyncInterval: 300}", "at '/agent/resyncInterval': got number, want string"},
		{"agent: {resyncInterval: \"300\"}", "at '/agent/resyncInterval'"},
		{"agent: {resyncInterval: 500ms}", "at '/agent/resyncInterval'"},
		{"agent: {resyncInterval: 0s}", "at '/agent/resyncInterval'"},
		{"agent: {resyncInterval: \"\"}", "at '/agent/resyncInterval'"},
		{"agent: {sharedSetThreshold: many}", "at '/agent/sharedSetThreshold'"},
		{"agent: {sharedSetThreshold: -1}", "at '/agent/sharedSetThreshold'"},
		{"agent: {httpAddress: \":9470\"}", "at '/agent/httpAddress'"},
		{"agent: {httpAddress: 127.0.0.1}", "at '/agent/httpAddress'"},
		{"agent: {httpAddress: \"\", httpOnNode: true}", "agent.httpOnNode needs agent.httpAddress"},
		{"agent: {httpAddress: \"127.0.0.1:65536\"}", "at '/agent/httpAddress'"},
		{"agent: {kubeconfig: relative}", "at '/agent/kubeconfig'"},
		{"agent: {kubeconfig: /a, manifests: /b}", "exclude each other"},
		{"image: {pullPolicy: Sometimes}", "at '/image/pullPolicy'"},
		{"image: {repository: \"\"}", "at '/image/repository'"},
		{"image: {tag: \"a b\"}", "at '/image/tag'"},
		{"image: {digest: sha256:123}", "at '/image/digest'"},
		{"image: ghcr.io/selvage-net/selvage", "at '/image'"},
		{"apiServer: {host: 127.0.0.1}", "at '/apiServer/port'"},
		{"apiServer: {port: 6443}", "at '/apiServer/port'"},
		{"apiServer: {host: 127.0.0.1, port: 70000}", "at '/apiServer/port'"},
		{"apiServer: {host: \"https://127.0.0.1\", port: 6443}", "at '/apiServer/host'"},
		{"apiServer: {configMap: Not_A_Name}", "at '/apiServer/configMap'"},
		{"bandwidth: {defaultingress: 10M}", "additional properties 'defaultingress' not allowed"},
		{"bandwidth: {enabled: \"yes\"}", "at '/bandwidth/enabled': got string, want boolean"},
		{"bandwidth: {defaultIngress: 10}", "at '/bandwidth/defaultIngress': got number, want string"},
		{"bandwidth: {defaultIngress: \"10\"}", "at '/bandwidth/defaultIngress'"},
		{"bandwidth: {defaultIngress: 0M}", "at '/bandwidth/defaultIngress'"},
		{"bandwidth: {defaultIngress: -1M}", "at '/bandwidth/defaultIngress'"},
		{"bandwidth: {defaultEgress: 10m}", "at '/bandwidth/defaultEgress'"},
		{"bandwidth: {defaultEgress: 10Mbit}", "at '/bandwidth/defaultEgress'"},
		{"bandwidth: {defaultEgress: 2000T}", "at '/bandwidth/defaultEgress'"},
		{"bandwidth: {excludeCIDRs: 10.0.0.0/8}", "at '/bandwidth/excludeCIDRs': got string, want array"},
		{"bandwidth: {excludeCIDRs: [10.0.0.0]}", "at '/bandwidth/excludeCIDRs/0'"},
		{"bandwidth: {excludeCIDRs: [10.0.0.0/33]}", "at '/bandwidth/excludeCIDRs/0'"},
		{"bandwidth: {excludeCIDRs: [\"10.0.0.0/8,10.1.0.0/16\"]}", "at '/bandwidth/excludeCIDRs/0'"},
		{"bandwidth: {excludeCIDRs: [\"fd00::/129\"]}", "at '/bandwidth/excludeCIDRs/0'"},
		{"bandwidth: {excludeCIDRs: [\"fd00::/8\", \"fd00::/8\"]}", "at '/bandwidth/excludeCIDRs'"},
		{"bandwidth: {takeOverPlugin: 1}", "at '/bandwidth/takeOverPlugin'"},
		{"bandwidth: {metricsPerPod: 1}", "at '/bandwidth/metricsPerPod'"},
		{"bandwidth: {netnsDirs: []}", "at '/bandwidth/netnsDirs'"},
		{"bandwidth: {netnsDirs: [run/netns]}", "at '/bandwidth/netnsDirs/0'"},
		{"bandwidth: {netnsDirs: [/]}", "at '/bandwidth/netnsDirs/0'"},
		{"bandwidth: {netnsDirs: [\"/a,/b\"]}", "at '/bandwidth/netnsDirs/0'"},
		{"bandwidth: {podNamespaces: SYS_ADMIN}", "at '/bandwidth/podNamespaces'"},
		{"pools: {crd: {enabled: 1}}", "at '/pools/crd/enabled'"},
		{"pools: {crd: {keep: true}}", "additional properties 'keep' not allowed"},
		{"pools: {admission: false}", "at '/pools/admission'"},
		{"pools: {noMasqueradeCIDRs: 10.0.0.0/8}", "at '/pools/noMasqueradeCIDRs': got string, want array"},
		{"pools: {noMasqueradeCIDRs: [10.0.0.1]}", "at '/pools/noMasqueradeCIDRs/0'"},
		{"pools: {serviceCIDRs: [10.96.0.0/33]}", "at '/pools/serviceCIDRs/0'"},
		{"pools: {serviceCidrs: []}", "additional properties 'serviceCidrs' not allowed"},
		{"updateStrategy: {maxUnavailable: 0}", "at '/updateStrategy/maxUnavailable'"},
		{"updateStrategy: {maxSurge: 1}", "additional properties 'maxSurge' not allowed"},
		{"resources: {limits: {memory: lots}}", "at '/resources/limits/memory'"},
		{"resources: {limits: {storage: 1Gi}}", "additional properties 'storage' not allowed"},
		{"tolerations: [{operator: Never}]", "at '/tolerations/0/operator'"},
		{"nodeSelector: {a: true}", "at '/nodeSelector/a'"},
		{"namespace: {create: maybe}", "at '/namespace/create'"},
		{"seLinuxOptions: spc_t", "at '/seLinuxOptions'"},
	} {
		if _, err := helm(t, c.values); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.values, err, c.want)
		}
	}
}

// TestAccepted has the program itself take what the schema lets through.
func TestAccepted(t *testing.T) {
	const blocks = `[0.0.0.0/0, 10.0.0.0/8, 192.0.2.1/32, "::/0", "fd00:10:244::/56", "2001:db8::1/128"]`
	program := buildProgram(t)
	for _, values := range []string{
		"{}", "bandwidth: {enabled: false}", "bandwidth: {defaultIngress: 1k, defaultEgress: 999T}", "bandwidth: {defaultIngress: 9999G, defaultEgress: 1.125k}",
		"bandwidth: {excludeCIDRs: " + blocks + "}", "pools: {noMasqueradeCIDRs: " + blocks + ", serviceCIDRs: " + blocks + "}",
		"bandwidth: {takeOverPlugin: true, metricsPerPod: true, netnsDirs: [/var/run/netns, /run/a-b_c.d/netns]}",
	} {
		args := daemonSet(t, mustHelm(t, values), "selvage").Spec.Template.Spec.Containers[0].Args
		// The help comes after the flags were read, and none of them is tried.
		if out, err := exec.Command(program, append(slices.Clone(args), "--help")...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", values, err, out)
		}
	}
}

// TestDocumented sees that values.yaml and the schema name the same values.
func TestDocumented(t *testing.T) {
	var values map[string]any
	text, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		t.Fatal(err)
	}
	type node struct {
		Properties map[string]node `json:"properties"`
	}
	var schema node
	if text, err = os.ReadFile(filepath.Join(chartDir, "values.schema.json")); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	delete(schema.Properties, "global")
	var walk func(path string, n node, value any)
	walk = func(path string, n node, value any) {
		inner, ok := value.(map[string]any)
		for name, child := range n.Properties {
			if v, there := inner[name]; ok && there {
				walk(path+"."+name, child, v)
			} else if ok && path != ".resources" && path != ".seLinuxOptions" && path != ".resources.requests" && path != ".resources.limits" {
				t.Errorf("values.yaml lacks %s.%s", path, name)
			}
		}
	}
	walk("", schema, values)
}

func TestLint(t *testing.T) {
	for _, values := range []string{"{}", everything} {
		v := map[string]any{}
		if err := yaml.Unmarshal([]byte(values), &v); err != nil {
			t.Fatal(err)
		}
		for _, m := range lint.AllWithKubeVersion(chartDir, v, "selvage-system", nil).Messages {
			if m.Severity > support.InfoSev {
				t.Errorf("lint: %v", m)
			}
		}
	}
}

func TestNotes(t *testing.T) {
	rendered, err := helmRaw(t, "agent: {httpAddress: \"\"}")
	if err != nil {
		t.Fatal(err)
	}
	notes := rendered["selvage/templates/NOTES.txt"]
	for _, want := range []string{"Selvage v0.1.0", "kubectl -n selvage-system rollout status daemonset/selvage", "agent.httpAddress is empty", "deploy/cleanup"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes lack %q:\n%s", want, notes)
		}
	}
}
