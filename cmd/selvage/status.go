package main

import "time"

// nodeStatus is what an agent answers at /status: how things are on its node. It is for
// programs: what is there keeps its name and meaning. Lists are never null.
type nodeStatus struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	// Time is the node's clock, which the other times are by.
	Time    time.Time `json:"time"`
	Started time.Time `json:"started"` // the agent
	// InSync is what /readyz tells: all that is desired is in the kernel, and the packets
	// of all pods meet the rules. Since is when that became so, or ceased to be, as far as
	// this agent knows.
	InSync bool      `json:"inSync"`
	Since  time.Time `json:"since"`
	// Missing are the reasons for which it is not in sync.
	Missing []string `json:"missing"`
	// Generation is the one in force, or 0 if that is not known.
	Generation uint32 `json:"generation"`
	// LastSync is when something was last compared with the kernel, or changed there, with
	// success.
	LastSync   time.Time         `json:"lastSync,omitzero"`
	Source     []sourceStatus    `json:"source"`
	Conditions []conditionStatus `json:"conditions"`
	Objects    objectCounts      `json:"objects"`
	Bandwidth  bandwidthStatus   `json:"bandwidth"`
	Pools      poolsStatus       `json:"pools"`
	// Counts are what the kernel has counted; CountsError says why that cannot be told,
	// and then they are those of before, or 0.
	Counts      nodeCounts `json:"counts"`
	CountsError string     `json:"countsError,omitempty"`
	// DropsError says why drops are not seen, although they are counted.
	DropsError string `json:"dropsError,omitempty"`
	// Policies are those that select pods of this node, or all if that was asked for,
	// sorted by namespace and name.
	Policies []policyStatus `json:"policies"`
	// Invalid are those that could not be understood, of the whole cluster.
	Invalid []invalidPolicy `json:"invalidPolicies"`
}

// sourceStatus is whether the source of objects answers.
type sourceStatus struct {
	// Kind is as in the API, as networkpolicies.
	Kind      string `json:"kind"`
	Connected bool   `json:"connected"`
	// Error says why it does not, and what to do.
	Error string `json:"error,omitempty"`
}

// conditionStatus is something that somebody should put right.
type conditionStatus struct {
	Reason reason `json:"reason"`
	// About tells conditions of one reason apart.
	About   string    `json:"about"`
	Message string    `json:"message"`
	Since   time.Time `json:"since"`
}

// objectCounts are how many objects the agent knows.
type objectCounts struct {
	Pods       int `json:"pods"`
	LocalPods  int `json:"localPods"`
	Namespaces int `json:"namespaces"`
	Policies   int `json:"policies"`
}

// bandwidthStatus is how the bandwidth of the node's pods is held to its limits.
type bandwidthStatus struct {
	Enabled bool `json:"enabled"`
	// Shaped is how many pods are held to a limit in at least one direction.
	Shaped int `json:"shaped"`
	// Pods are those, once for each direction with a limit; Error says why they cannot be
	// told.
	Pods  []shapedPod `json:"pods"`
	Error string      `json:"error,omitempty"`
	// Problems are limits that are not in force, and annotations that cannot be used.
	Problems []bandwidthProblem `json:"problems"`
}

// shapedPod is one direction of a pod that is shaped.
type shapedPod struct {
	Namespace           string `json:"namespace"`
	Pod                 string `json:"pod"`
	Direction           string `json:"direction"` // ingress or egress
	LimitBytesPerSecond uint64 `json:"limitBytesPerSecond"`
	Bytes               uint64 `json:"bytes"`   // let through so far
	Dropped             uint64 `json:"dropped"` // packets
	BacklogBytes        uint64 `json:"backlogBytes"`
}

// bandwidthProblem is a limit that is not in force. Without a pod it is the namespace's.
type bandwidthProblem struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod,omitempty"`
	// Reason is InvalidBandwidth for an annotation, or why a pod is not shaped, as the
	// metric selvage_unshaped_pods has it.
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// poolsStatus is what is known of the cluster's pools of addresses; `selvage pools` has
// more.
type poolsStatus struct {
	// Implicit says that there are no pools but the nodes' podCIDRs.
	Implicit bool       `json:"implicit"`
	Use      []poolUsed `json:"use"`
	// PodsOutside is how many pods have an address in no pool.
	PodsOutside int           `json:"podsOutside"`
	Problems    []poolProblem `json:"problems"`
}

// poolUsed is how much of the addresses of a pool, of one family, pods have.
type poolUsed struct {
	Pool      string  `json:"pool"`
	Origin    string  `json:"origin"`
	Family    string  `json:"family"`
	Addresses float64 `json:"addresses"` // IPv6 has more than an integer can hold
	Allocated int     `json:"allocated"`
}

// nodeCounts are what the rules of a node have counted.
type nodeCounts struct {
	// A connection that several policies have let through counts for each of them.
	verdictCounts
	// UnknownPackets are denied ones, from and to addresses of the node's pods that no
	// pod is known to have.
	UnknownPackets uint64 `json:"unknownPackets"`
}

// verdictCounts are what rules have counted.
type verdictCounts struct {
	// AllowedConnections are those that a rule of a policy let through: new ones, and
	// those that were judged again since policy had become stricter.
	AllowedConnections directed `json:"allowedConnections"`
	// DeniedPackets are those of isolated pods that no rule let through.
	DeniedPackets directed `json:"deniedPackets"`
}

// directed is a number for each direction, from the view of the pods.
type directed struct {
	Ingress uint64 `json:"ingress"`
	Egress  uint64 `json:"egress"`
}

func (d directed) sum() uint64 { return d.Ingress + d.Egress }

func (d directed) plus(o directed) directed {
	return directed{d.Ingress + o.Ingress, d.Egress + o.Egress}
}

// policyStatus is how a policy is on a node.
type policyStatus struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Pods is how many pods of the node it selects.
	Pods int `json:"pods"`
	// InForce says that it is in the kernel as the source has last told of it, with
	// ResourceVersion; Since is when that was done. An agent that starts has done
	// everything then.
	InForce         bool      `json:"inForce"`
	Since           time.Time `json:"since,omitzero"`
	ResourceVersion string    `json:"resourceVersion,omitempty"`
	// What a rule of another policy lets through as well, and what is denied to a pod that
	// others isolate as well, counts for each of them.
	verdictCounts
}

// invalidPolicy is one that cannot be compiled as it is written.
type invalidPolicy struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Message   string `json:"message"`
}
