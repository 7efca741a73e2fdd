package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"sigs.k8s.io/yaml"
)

// Where a node's programs look for their files, as the node sees them.
const (
	containerdConfig = "/etc/containerd/config.toml"
	kubeletConfig    = "/etc/kubernetes/kubelet.yaml"
	proxyConfig      = "/etc/kubernetes/kube-proxy.yaml"
	flannelConfig    = "/etc/kube-flannel/net-conf.json"
	cniConfig        = "/etc/cni/net.d/10-flannel.conflist"
	cniPlugins       = "/opt/cni/bin"
)

// tree is a document of JSON or YAML.
type tree = map[string]any

// containerdTOML configures containerd 2.
func containerdTOML() []byte {
	return []byte(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "` + containerdSocket + `"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "registry.k8s.io/pause:3.10.2"
[plugins."io.containerd.cri.v1.runtime"]
  # Its own score is what its caller has; less may not be allowed.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["` + cniPlugins + `"]
    conf_dir = "/etc/cni/net.d"
`)
}

// kubeletYAML configures the kubelet for cgroup v1, without limits on pods as a
// whole, and without eviction: the disk is memory that the host has.
func kubeletYAML() ([]byte, error) {
	return yaml.Marshal(tree{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": []string{},
		"localStorageCapacityIsolation": false, "failSwapOn": false,
		// Nobody reaches it but the machines and their pods.
		"authentication":              tree{"anonymous": tree{"enabled": true}, "webhook": tree{"enabled": false}},
		"authorization":               tree{"mode": "AlwaysAllow"},
		"containerRuntimeEndpoint":    "unix://" + containerdSocket,
		"evictionHard":                tree{"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
		"imageGCHighThresholdPercent": 100,
		"resolvConf":                  "", "clusterDNS": []string{dnsAddress}, "clusterDomain": "cluster.local",
		"maxPods": 200, "serializeImagePulls": false,
		// A node that was booted is Ready as soon as it is, not 10 s later.
		"nodeStatusUpdateFrequency": "2s",
	})
}

// proxyYAML configures kube-proxy. It must leave nf_conntrack_max and the like
// alone, which are not a network namespace's own.
func proxyYAML(node, mode, kubeconfig string) ([]byte, error) {
	return yaml.Marshal(tree{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode": mode, "clusterCIDR": podCIDR, "hostnameOverride": node,
		"clientConnection": tree{"kubeconfig": kubeconfig},
		"conntrack":        tree{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
		"nftables":         tree{"minSyncPeriod": "0s"},
		"iptables":         tree{"minSyncPeriod": "0s"},
	})
}

// flannelJSON configures flannel.
func flannelJSON(backend string) ([]byte, error) {
	return json.Marshal(tree{"Network": podCIDR, "EnableNFTables": true, "Backend": tree{"Type": backend}})
}

// cniJSON configures the network of pods.
func cniJSON() ([]byte, error) {
	return json.Marshal(tree{"name": "cbr0", "cniVersion": "0.3.1", "plugins": []tree{
		{"type": "flannel", "delegate": tree{"hairpinMode": true, "isDefaultGateway": true}},
		{"type": "portmap", "capabilities": tree{"portMappings": true}},
	}})
}

// etcdFlags keep the data in memory as far as the disk does.
func etcdFlags() []string {
	return []string{
		"--data-dir=/var/lib/etcd", "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
	}
}

func apiServerFlags(p paths, ip netip.Addr) []string {
	return []string{
		"--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--advertise-address=" + ip.String(),
		fmt.Sprintf("--secure-port=%d", apiPort),
		"--tls-cert-file=" + p.in("pki", "apiserver.crt"), "--tls-private-key-file=" + p.in("pki", "apiserver.key"),
		"--token-auth-file=" + p.in("pki", "tokens.csv"), "--authorization-mode=RBAC", "--allow-privileged=true",
		"--service-account-key-file=" + p.in("pki", "sa.key"), "--service-account-signing-key-file=" + p.in("pki", "sa.key"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=" + serviceCIDR,
		"--enable-priority-and-fairness=false", "--max-requests-inflight=0", "--max-mutating-requests-inflight=0",
		"--profiling=false",
		// Names of nodes are not in any DNS.
		"--kubelet-preferred-address-types=InternalIP",
	}
}

func controllerManagerFlags(p paths) []string {
	return []string{
		"--kubeconfig=" + p.kubeconfig(), "--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false",
		"--service-account-private-key-file=" + p.in("pki", "sa.key"), "--root-ca-file=" + p.in("pki", "ca.crt"),
		"--allocate-node-cidrs=true", "--cluster-cidr=" + podCIDR, "--node-cidr-mask-size=24",
	}
}

func schedulerFlags(p paths) []string {
	return []string{"--kubeconfig=" + p.kubeconfig(), "--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false"}
}

func kubeletFlags(p paths, node string, ip netip.Addr) []string {
	return []string{
		"--kubeconfig=" + p.kubeconfig(), "--config=" + kubeletConfig, "--hostname-override=" + node, "--node-ip=" + ip.String(), "--v=1",
	}
}

func flanneldFlags(p paths) []string {
	return []string{
		"--kube-subnet-mgr", "--kubeconfig-file=" + p.kubeconfig(), "--net-config-path=" + flannelConfig,
		"--iface=eth0", "--ip-masq", "--healthz-port=0",
	}
}
