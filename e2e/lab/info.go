package lab

import (
	"net/netip"
	"path/filepath"
	"strconv"
)

// Backends of flannel.
const (
	BackendVXLAN  = "vxlan"
	BackendHostGW = "host-gw"
)

// Modes of kube-proxy.
const (
	ProxyNFTables = "nftables"
	ProxyIPTables = "iptables"
)

// Fabric is the name of the machine that the nodes' network hangs on.
const Fabric = "fabric"

// Info says what is up.
type Info struct {
	// Ready is true once the cluster was up: all nodes Ready, DNS available.
	Ready bool `json:"ready"`
	// Kubeconfig is the path of a kubeconfig of a cluster-admin. Its server can
	// be reached from the machines' network namespaces only.
	Kubeconfig string `json:"kubeconfig"`
	// APIServer is the URL of the API server.
	APIServer string `json:"apiServer"`
	// Backend is flannel's: vxlan or host-gw.
	Backend string `json:"backend"`
	// Machines are fabric and the nodes in order.
	Machines []Machine `json:"machines"`
	// Supervisor is the process that holds everything up.
	Supervisor int `json:"supervisor"`
}

// Machine is a machine of the lab.
type Machine struct {
	Name string `json:"name"`
	// PID is its first process as the host sees it; 0 while it reboots.
	PID int `json:"pid"`
	// IP is its address on the fabric.
	IP netip.Addr `json:"ip"`
	// Node is true if it is a node of the cluster.
	Node bool `json:"node"`
	// ProxyMode is kube-proxy's mode on a node.
	ProxyMode string `json:"proxyMode,omitempty"`
	// Processes are what runs there, in the order of their start.
	Processes []Process `json:"processes,omitempty"`
}

// Process is a process of a machine.
type Process struct {
	Name string `json:"name"`
	// PID is as the host sees it; 0 if the process does not run.
	PID int `json:"pid"`
	// Exits counts how often it ended without being told to. It is started
	// again then, as an init system would.
	Exits int `json:"exits,omitempty"`
	// Log is the file with its output.
	Log string `json:"log"`
}

// machine returns the machine with a name.
func (i Info) machine(name string) (Machine, bool) {
	for _, m := range i.Machines {
		if m.Name == name {
			return m, true
		}
	}
	return Machine{}, false
}

// paths are where the lab keeps its files, below the state directory.
type paths string

func (p paths) in(elem ...string) string {
	return filepath.Join(append([]string{string(p)}, elem...)...)
}

func (p paths) kubeconfig() string { return p.in("kubeconfig") }
func (p paths) socket() string     { return p.in("control.sock") }
func (p paths) state() string      { return p.in("state.json") }
func (p paths) lock() string       { return p.in("lock") }
func (p paths) cgroups() string    { return p.in("cgroups") }
func (p paths) bin() string        { return p.in("bin") }
func (p paths) pki() string        { return p.in("pki") }
func (p paths) disks() string      { return p.in("disks") }
func (p paths) logs() string       { return p.in("logs") }

func (p paths) log(machine, process string) string {
	return p.in("logs", machine, process+".log")
}

// The network of the lab.
const (
	podCIDR     = "10.244.0.0/16"
	serviceCIDR = "10.96.0.0/16"
	dnsAddress  = "10.96.0.10"
	apiPort     = 6443
)

// maxNodes is what the lab's addresses allow, and more than a machine will.
const maxNodes = 9

// nodeName returns the name of the i-th node, from 1.
func nodeName(i int) string { return "n" + strconv.Itoa(i) }

// address returns the address of the i-th machine: fabric's for 0.
func address(i int) netip.Addr {
	if i == 0 {
		return netip.AddrFrom4([4]byte{172, 31, 77, 1})
	}
	return netip.AddrFrom4([4]byte{172, 31, 77, byte(10 + i)})
}

// apiServer is the URL of the API server, which runs on n1.
func apiServer() string {
	return "https://" + netip.AddrPortFrom(address(1), apiPort).String()
}
