// Package lab runs a real Kubernetes cluster on one machine without a
// container engine, systemd or virtual machines, and leaves nothing behind.
//
// Its machines are processes with namespaces of their own (package machine):
// fabric, a network namespace with the bridge br0 that stands for the wire,
// and the nodes n1, n2, ... with containerd, kubelet, flanneld and kube-proxy.
// On n1 run etcd and the control plane, too, so the API server has a node of
// its own with pods on it.
//
//	fabric   br0 172.31.77.1/24
//	           |      |      |
//	         eth0   eth0   eth0     172.31.77.11, .12, .13
//	          n1     n2     n3      pods 10.244.0.0/16, Services 10.96.0.0/16
//
// Nothing of it is in the host's network namespace, mount table or sysctls.
// Everything hangs on one process, the supervisor: when it ends, however, the
// kernel takes the rest along. Only empty cgroup directories can remain; the
// next start, or lab down, removes them.
//
// [Start] is the supervisor's side. Other programs talk to a supervisor by
// [Connect].
//
// The lab needs root, cgroup v1 and what [Check] lists.
package lab
