package deploy_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// every returns all that can be deployed, by where it comes from.
func every(t *testing.T) map[string]objects {
	t.Helper()
	return map[string]objects{
		"base":             kustomize(t, "base"),
		"overlays/flannel": kustomize(t, "overlays/flannel"),
		"overlays/debug":   kustomize(t, "overlays/debug"),
		"overlays/observe": kustomize(t, "overlays/observe"),
		"cleanup":          kustomize(t, "cleanup"),
		"chart":            mustHelm(t, everything),

		"overlays/pod-namespaces": kustomize(t, "overlays/pod-namespaces"),
	}
}

// TestPods asserts what the pods may, and that they are where they must be.
func TestPods(t *testing.T) {
	for from, all := range every(t) {
		for name, o := range all {
			d, ok := o.(*appsv1.DaemonSet)
			if !ok {
				continue
			}
			pod := d.Spec.Template.Spec
			if pod.HostPID || pod.HostIPC || !pod.HostNetwork {
				t.Errorf("%s: %s: host's namespaces: PID %v, IPC %v, network %v; want the network only", from, name, pod.HostPID, pod.HostIPC, pod.HostNetwork)
			}
			for _, v := range pod.Volumes {
				asked := from == "chart" && v.HostPath != nil && strings.Contains(everything, v.HostPath.Path)
				if v.HostPath != nil && v.HostPath.Path != netnsDir && !asked {
					t.Errorf("%s: %s: mounts the host's %s", from, name, v.HostPath.Path)
				}
			}
			if pod.DNSPolicy != corev1.DNSDefault {
				t.Errorf("%s: %s: dnsPolicy %s: it would need the cluster's DNS to start", from, name, pod.DNSPolicy)
			}
			if g := pod.TerminationGracePeriodSeconds; g == nil || *g > 10 {
				t.Errorf("%s: %s: terminationGracePeriodSeconds %v", from, name, g)
			}
			for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
				checkContainer(t, from+": "+name+": "+c.Name, pod.SecurityContext, c, capabilities(from))
			}
			if from != "chart" {
				checkPlacement(t, from+": "+name, d)
			}
		}
	}
}

// capabilities are those of the containers: where nobody has asked for more,
// NET_ADMIN is all.
func capabilities(from string) []corev1.Capability {
	if from == "overlays/pod-namespaces" || from == "chart" {
		return []corev1.Capability{"NET_ADMIN", "SYS_ADMIN"}
	}
	return []corev1.Capability{"NET_ADMIN"}
}

// checkContainer asserts all of what a container may, so that nothing is added
// unnoticed.
func checkContainer(t *testing.T, what string, pod *corev1.PodSecurityContext, c corev1.Container, add []corev1.Capability) {
	t.Helper()
	yes, no := true, false
	want := &corev1.SecurityContext{
		Privileged: &no, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: add},
	}
	if diff := cmp.Diff(want, c.SecurityContext); diff != "" {
		t.Errorf("%s: security context (-want +got):\n%s", what, diff)
	}
	if pod.SeccompProfile == nil || pod.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || pod.RunAsUser == nil || *pod.RunAsUser != 0 {
		t.Errorf("%s: the pod's security context is %+v", what, pod)
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
		t.Errorf("%s: resources %+v", what, c.Resources)
	}
}

// netnsDir is where container runtimes keep the files of the pods' namespaces.
const netnsDir = "/run/netns"

// TestNetNS asserts that the agents see the files of the pods' namespaces, those of
// pods that start later among them, and can change nothing there; and that none of
// them is kept from starting by a node without pods.
func TestNetNS(t *testing.T) {
	for from, all := range every(t) {
		if from == "cleanup" {
			continue
		}
		agent := daemonSet(t, all, "selvage").Spec.Template.Spec
		dirs := []string{netnsDir}
		if from == "chart" {
			dirs = []string{netnsDir, "/var/run/other/netns"}
		}
		checkNetNS(t, from, agent, dirs)
	}
	off := daemonSet(t, mustHelm(t, "bandwidth: {enabled: false, podNamespaces: true}"), "selvage").Spec.Template.Spec
	if len(off.Volumes) > 0 || len(off.Containers[0].VolumeMounts) > 0 || len(off.Containers[0].SecurityContext.Capabilities.Add) != 1 {
		t.Errorf("an agent that shapes nothing has volumes %+v, mounts %+v, and may %v",
			off.Volumes, off.Containers[0].VolumeMounts, off.Containers[0].SecurityContext.Capabilities.Add)
	}
	if args := off.Containers[0].Args; !slices.Contains(args, "--bandwidth=false") || strings.Contains(strings.Join(args, " "), "netns") {
		t.Errorf("an agent that shapes nothing has the arguments %v", args)
	}
}

func checkNetNS(t *testing.T, from string, pod corev1.PodSpec, dirs []string) {
	t.Helper()
	agent := pod.Containers[0]
	if !slices.Contains(agent.Args, "--netns-dir="+strings.Join(dirs, ",")) {
		t.Errorf("%s: arguments %v, want those of %v", from, agent.Args, dirs)
	}
	propagation, kind := corev1.MountPropagationHostToContainer, corev1.HostPathDirectoryOrCreate
	for _, dir := range dirs {
		i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.HostPath != nil && v.HostPath.Path == dir })
		if i < 0 {
			t.Errorf("%s: no volume has the node's %s", from, dir)
			continue
		}
		volume := pod.Volumes[i]
		if volume.HostPath.Type == nil || *volume.HostPath.Type != kind {
			t.Errorf("%s: %s is a volume of type %v, want %s", from, dir, volume.HostPath.Type, kind)
		}
		i = slices.IndexFunc(agent.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == volume.Name })
		if i < 0 {
			t.Errorf("%s: %s is not mounted", from, dir)
			continue
		}
		want := corev1.VolumeMount{Name: volume.Name, MountPath: dir, ReadOnly: true, MountPropagation: &propagation}
		if diff := cmp.Diff(want, agent.VolumeMounts[i]); diff != "" {
			t.Errorf("%s: mount (-want +got):\n%s", from, diff)
		}
	}
}

// checkPlacement asserts that there is one on each Linux node, whatever its
// state, and that it is not the first to be evicted.
func checkPlacement(t *testing.T, what string, d *appsv1.DaemonSet) {
	t.Helper()
	pod := d.Spec.Template.Spec
	if diff := cmp.Diff([]corev1.Toleration{{Operator: corev1.TolerationOpExists}}, pod.Tolerations); diff != "" {
		t.Errorf("%s: tolerations (-want +got):\n%s", what, diff)
	}
	if diff := cmp.Diff(map[string]string{"kubernetes.io/os": "linux"}, pod.NodeSelector); diff != "" {
		t.Errorf("%s: nodes (-want +got):\n%s", what, diff)
	}
	if pod.PriorityClassName != "system-node-critical" {
		t.Errorf("%s: priority class %q", what, pod.PriorityClassName)
	}
	for key, value := range d.Spec.Selector.MatchLabels {
		if d.Spec.Template.Labels[key] != value {
			t.Errorf("%s: selects %s=%s, which its pods do not have", what, key, value)
		}
	}
}

// TestAgent asserts how the agent is watched and updated.
func TestAgent(t *testing.T) {
	for from, all := range every(t) {
		if from == "cleanup" {
			continue
		}
		d := daemonSet(t, all, "selvage")
		u := d.Spec.UpdateStrategy
		if u.Type != appsv1.RollingUpdateDaemonSetStrategyType || u.RollingUpdate.MaxSurge.String() != "0" {
			t.Errorf("%s: update strategy %+v: two agents would be on one node", from, u)
		}
		if from != "chart" && u.RollingUpdate.MaxUnavailable.String() != "1" {
			t.Errorf("%s: %s nodes at a time", from, u.RollingUpdate.MaxUnavailable)
		}
		agent := d.Spec.Template.Spec.Containers[0]
		if agent.Name != "agent" || len(d.Spec.Template.Spec.Containers) != 1 {
			t.Errorf("%s: containers %v", from, d.Spec.Template.Spec.Containers)
		}
		for path, p := range map[string][]*corev1.Probe{"/healthz": {agent.StartupProbe, agent.LivenessProbe}, "/readyz": {agent.ReadinessProbe}} {
			for _, p := range p {
				if p == nil || p.HTTPGet == nil || p.HTTPGet.Host != "127.0.0.1" || p.HTTPGet.Path != path {
					t.Errorf("%s: probe %+v, want one of %s on the node itself", from, p, path)
				}
			}
		}
		if limit := agent.Resources.Limits; from != "chart" && !limit.Cpu().IsZero() {
			t.Errorf("%s: the CPU is limited to %s", from, limit.Cpu())
		}
	}
}

// TestRBAC asserts all of what the agent may ask of the API server.
func TestRBAC(t *testing.T) {
	for from, all := range every(t) {
		if from == "cleanup" {
			continue
		}
		role, ok := all["ClusterRole selvage"].(*rbacv1.ClusterRole)
		if !ok {
			t.Fatalf("%s: there is no ClusterRole", from)
		}
		want := []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"pods", "namespaces", "nodes"}, Verbs: []string{"list", "watch"}},
			{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"networkpolicies", "servicecidrs"}, Verbs: []string{"list", "watch"}},
			{APIGroups: []string{"selvage.dev", "crd.projectcalico.org"}, Resources: []string{"ippools"}, Verbs: []string{"list", "watch"}},
			{
				APIGroups: []string{"apiextensions.k8s.io"}, Resources: []string{"customresourcedefinitions"}, Verbs: []string{"list", "watch"},
				ResourceNames: []string{"ippools.selvage.dev", "ippools.crd.projectcalico.org"},
			},
			{APIGroups: []string{"events.k8s.io"}, Resources: []string{"events"}, Verbs: []string{"create"}},
		}
		if diff := cmp.Diff(want, role.Rules); diff != "" {
			t.Errorf("%s: rules (-want +got):\n%s", from, diff)
		}
		binding, ok := all["ClusterRoleBinding selvage"].(*rbacv1.ClusterRoleBinding)
		if !ok {
			t.Fatalf("%s: there is no ClusterRoleBinding", from)
		}
		subjects := []rbacv1.Subject{{Kind: "ServiceAccount", Name: "selvage", Namespace: "selvage-system"}}
		if diff := cmp.Diff(subjects, binding.Subjects); diff != "" || binding.RoleRef.Kind != "ClusterRole" || binding.RoleRef.Name != role.Name {
			t.Errorf("%s: bound to %+v (-want +got):\n%s", from, binding.RoleRef, diff)
		}
		account, ok := all["ServiceAccount selvage"].(*corev1.ServiceAccount)
		if !ok || account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken {
			t.Errorf("%s: service account %+v: its token would be mounted unasked", from, account)
		}
		if auto := daemonSet(t, all, "selvage").Spec.Template.Spec.AutomountServiceAccountToken; auto == nil || !*auto {
			t.Errorf("%s: the agent gets no token", from)
		}
	}
}

// TestCleanup asserts that the cleanup can do without the API server, and beside
// the agents' objects.
func TestCleanup(t *testing.T) {
	all := kustomize(t, "cleanup")
	if len(all) != 2 {
		t.Errorf("%d objects, want a Namespace and a DaemonSet", len(all))
	}
	d := daemonSet(t, all, "selvage-cleanup")
	pod := d.Spec.Template.Spec
	if auto := pod.AutomountServiceAccountToken; auto == nil || *auto {
		t.Error("it gets a token that it does not need")
	}
	agents := daemonSet(t, kustomize(t, "base"), "selvage").Spec.Selector.MatchLabels
	matches := true
	for key, value := range agents {
		matches = matches && d.Spec.Template.Labels[key] == value
	}
	if matches {
		t.Error("the agents' DaemonSet would take its pods for its own")
	}
	if len(pod.InitContainers) != 1 || !slices.Equal(pod.InitContainers[0].Args, []string{"cleanup"}) {
		t.Errorf("init containers %+v, want one that cleans up", pod.InitContainers)
	}
	if !slices.Equal(pod.Containers[0].Args, []string{"cleanup", "--wait"}) {
		t.Errorf("arguments %v, want it to stay", pod.Containers[0].Args)
	}
}
