package apiserver

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-net/selvage/policy"
)

// Fill puts a generated cluster into the store.
func (s *Store) Fill(snap policy.Snapshot) {
	for _, n := range snap.Namespaces {
		s.Add("namespaces", NamespaceObject(n))
	}
	nodes := make(map[string]bool)
	for _, n := range snap.Nodes {
		nodes[n.Name] = true
		s.Add("nodes", NodeObject(n.Name, n.PodCIDRs))
	}
	for _, p := range snap.Pods {
		if !nodes[p.Node] {
			nodes[p.Node] = true
			s.Add("nodes", NodeObject(p.Node, nil))
		}
		s.Add("pods", PodObject(p, 0))
	}
	for _, p := range snap.Policies {
		s.Add("networkpolicies", PolicyObject(p))
	}
}

// PodObject returns p as an API server would serve it: a Deployment's pod with
// two containers, service account token and config volumes, probes, conditions
// and managed fields; some 5 KB in protobuf. The revision tells updates that
// change nothing which policy cares about from one another.
func PodObject(p *policy.Pod, revision int) *corev1.Pod {
	at := metav1.NewTime(time.Unix(p.Created, 0))
	owner := strings.TrimRight(p.Name, "0123456789-") + "-" + p.Labels.Get("pod-template-hash")
	o := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Name, GenerateName: owner + "-", Namespace: p.Namespace, UID: p.UID, CreationTimestamp: at, Generation: 1,
			Labels: make(map[string]string),
			Annotations: map[string]string{
				"kubernetes.io/config.seen": at.UTC().Format(time.RFC3339), "prometheus.io/scrape": "true", "prometheus.io/port": "9090",
				"checksum/config": strings.Repeat("0123456789abcdef", 4),
			},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apps/v1", Kind: "ReplicaSet", Name: owner, UID: "3f2b7f6e-5e0b-4a7c-9d59-" + p.UID, Controller: ptr(true), BlockOwnerDeletion: ptr(true),
			}},
			ManagedFields: managedFields(at, revision),
		},
		Spec:   podSpec(p),
		Status: podStatus(p, at, revision),
	}
	for _, l := range p.Labels {
		o.Labels[l.Key] = l.Value
	}
	return o
}

func podSpec(p *policy.Pod) corev1.PodSpec {
	ports := make([]corev1.ContainerPort, 0, len(p.Ports))
	for _, np := range p.Ports {
		ports = append(ports, corev1.ContainerPort{Name: np.Name, ContainerPort: int32(np.Port), Protocol: corev1.Protocol(strings.ToUpper(np.Protocol.String()))})
	}
	spec := corev1.PodSpec{
		NodeName: p.Node, HostNetwork: p.HostNetwork, ServiceAccountName: "server", DeprecatedServiceAccount: "server",
		RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst, SchedulerName: "default-scheduler",
		TerminationGracePeriodSeconds: ptr(int64(30)), Priority: ptr(int32(0)), EnableServiceLinks: ptr(true),
		PreemptionPolicy: ptr(corev1.PreemptLowerPriority), SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: ptr(true)},
		Containers: []corev1.Container{
			container("server", "registry.example.com/shop/server:v1.42.7@sha256:"+strings.Repeat("ab", 32), ports, 12),
			container("proxy", "registry.example.com/platform/proxy:2.9.1", nil, 6),
		},
	}
	for _, key := range []string{"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"} {
		spec.Tolerations = append(spec.Tolerations, corev1.Toleration{
			Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr(int64(300)),
		})
	}
	for _, name := range []string{"config", "features", "certificates"} {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "server-" + name}, DefaultMode: ptr(int32(0o644))},
		}})
	}
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "kube-api-access-x7k2p", VolumeSource: corev1.VolumeSource{
		Projected: &corev1.ProjectedVolumeSource{DefaultMode: ptr(int32(0o644)), Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: ptr(int64(3607)), Path: "token"}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
		}},
	}})
	return spec
}

func container(name, image string, ports []corev1.ContainerPort, env int) corev1.Container {
	probe := &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080), Scheme: corev1.URISchemeHTTP}},
		PeriodSeconds: 10, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3,
	}
	c := corev1.Container{
		Name: name, Image: image, Ports: ports, ImagePullPolicy: corev1.PullIfNotPresent,
		Args:                     []string{"--listen=:8080", "--config=/etc/server/config.yaml", "--log-level=info"},
		TerminationMessagePath:   corev1.TerminationMessagePathDefault,
		TerminationMessagePolicy: corev1.TerminationMessageReadFile,
		LivenessProbe:            probe, ReadinessProbe: probe,
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "config", MountPath: "/etc/server", ReadOnly: true},
			{Name: "features", MountPath: "/etc/features", ReadOnly: true},
			{Name: "kube-api-access-x7k2p", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true},
		},
		SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: ptr(false), ReadOnlyRootFilesystem: ptr(true), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
	}
	for i := range env {
		c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("SERVER_OPTION_%d", i), Value: fmt.Sprintf("https://service-%d.example.internal:8443/v1", i)})
	}
	return c
}

func podStatus(p *policy.Pod, at metav1.Time, revision int) corev1.PodStatus {
	st := corev1.PodStatus{Phase: corev1.PodRunning, HostIP: "192.168.10.1", StartTime: &at, QOSClass: corev1.PodQOSBurstable}
	if p.Finished {
		st.Phase = corev1.PodSucceeded
	}
	for i, a := range p.Addrs {
		if i == 0 {
			st.PodIP = a.String()
		}
		st.PodIPs = append(st.PodIPs, corev1.PodIP{IP: a.String()})
	}
	for _, c := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
		st.Conditions = append(st.Conditions, corev1.PodCondition{Type: c, Status: corev1.ConditionTrue, LastTransitionTime: at, ObservedGeneration: 1})
	}
	for _, name := range []string{"server", "proxy"} {
		st.ContainerStatuses = append(st.ContainerStatuses, corev1.ContainerStatus{
			Name: name, Ready: true, Started: ptr(true), RestartCount: int32(revision),
			Image:       "registry.example.com/shop/" + name + ":v1.42.7",
			ImageID:     "registry.example.com/shop/" + name + "@sha256:" + strings.Repeat("cd", 32),
			ContainerID: "containerd://" + strings.Repeat("ef", 32),
			State:       corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at}},
		})
	}
	return st
}

// managedFields are those of the controller that made the pod and of the
// kubelet: a good part of any real pod.
func managedFields(at metav1.Time, revision int) []metav1.ManagedFieldsEntry {
	var env strings.Builder
	for i := range 12 {
		fmt.Fprintf(&env, `"k:{\"name\":\"SERVER_OPTION_%d\"}":{".":{},"f:name":{},"f:value":{}},`, i)
	}
	spec := `{"f:metadata":{"f:annotations":{".":{},"f:checksum/config":{}},"f:generateName":{},"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"server\"}":{".":{},"f:env":{` +
		strings.TrimSuffix(env.String(), ",") + `},"f:image":{},"f:livenessProbe":{".":{},"f:failureThreshold":{}}}}}}`
	status := `{"f:status":{"f:conditions":{"k:{\"type\":\"Ready\"}":{".":{},"f:lastTransitionTime":{},"f:status":{}}},"f:containerStatuses":{},"f:hostIP":{},"f:phase":{},"f:podIP":{}}}`
	later := metav1.NewTime(at.Add(time.Duration(revision) * time.Second))
	return []metav1.ManagedFieldsEntry{
		{Manager: "kube-controller-manager", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", Time: &at, FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(spec)},
		{Manager: "kubelet", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", Time: &later, FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(status), Subresource: "status"},
	}
}

// NamespaceObject returns n as an API object.
func NamespaceObject(n *policy.Namespace) *corev1.Namespace {
	o := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, Labels: make(map[string]string)}}
	for _, l := range n.Labels {
		o.Labels[l.Key] = l.Value
	}
	o.Status.Phase = corev1.NamespaceActive
	return o
}

// NodeObject returns a node with the images that a kubelet reports: some 5 KB.
func NodeObject(name string, cidrs []netip.Prefix) *corev1.Node {
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	for i, c := range cidrs {
		if i == 0 {
			o.Spec.PodCIDR = c.String()
		}
		o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, c.String())
	}
	for i := range 50 {
		o.Status.Images = append(o.Status.Images, corev1.ContainerImage{
			Names: []string{fmt.Sprintf("registry.example.com/image-%d@sha256:%s", i, strings.Repeat("01", 32))}, SizeBytes: 100 << 20,
		})
	}
	return o
}

// PolicyObject returns p with the metadata that an applied policy carries.
func PolicyObject(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	o := p.DeepCopy()
	applied := `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"annotations":{},"name":"` + p.Name + `","namespace":"` + p.Namespace + `"},"spec":{"ingress":[{"from":[{"podSelector":{}}]}]}}`
	o.Annotations = map[string]string{corev1.LastAppliedConfigAnnotation: applied}
	now := metav1.NewTime(time.Unix(1_700_000_000, 0))
	o.ManagedFields = []metav1.ManagedFieldsEntry{{
		Manager: "kubectl-client-side-apply", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "networking.k8s.io/v1", Time: &now,
		FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:annotations":{}},"f:spec":{"f:ingress":{},"f:podSelector":{},"f:policyTypes":{}}}`),
	}}
	return o
}

func ptr[T any](v T) *T { return &v }
