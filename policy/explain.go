package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Flow is a connection that somebody asks about: the first packet of it, after
// Services were translated.
type Flow struct {
	From, To Endpoint
	Protocol Protocol
	// Port is the destination's. Protocols other than TCP, UDP and SCTP have none.
	Port uint16
}

// Endpoint is one end of a Flow: a pod, if it has a name, or else an address.
type Endpoint struct {
	Namespace, Name string
	// Addr is, for a pod, the one of its addresses that is meant. Without it that is
	// one of a family that the other end has as well, IPv4 before IPv6.
	Addr netip.Addr
	// Service is the Service, as namespace/name, that led to this end, or empty.
	Service string
}

// Outcome is what becomes of a connection.
type Outcome string

// The outcomes.
const (
	OutcomeAllowed Outcome = "allowed"
	OutcomeDenied  Outcome = "denied"
	// OutcomeUnclear: an end is not there or has no address, so that there is nothing
	// to judge.
	OutcomeUnclear Outcome = "unclear"
)

// EndKind sorts who may be at an end.
type EndKind string

// The kinds.
const (
	// EndPod is a pod with an address of its own.
	EndPod EndKind = "pod"
	// EndHostNetwork is a pod on the network of its node.
	EndHostNetwork EndKind = "hostNetwork"
	// EndNode is a node.
	EndNode EndKind = "node"
	// EndUnknown is an address of a node's podCIDRs that no pod is known to have.
	EndUnknown EndKind = "unknown"
	// EndOutside is any other address.
	EndOutside EndKind = "outside"
)

// End is who is at an end of a Flow.
type End struct {
	Kind EndKind `json:"kind"`
	// Namespace and Name are those of a pod.
	Namespace string     `json:"namespace,omitempty"`
	Name      string     `json:"name,omitempty"`
	Address   netip.Addr `json:"address,omitzero"`
	// Node is the one that the pod runs on, that the address is of, or in whose
	// podCIDRs it is.
	Node string `json:"node,omitempty"`
	// Service is the one that led here, as namespace/name.
	Service string `json:"service,omitempty"`
}

// Why sorts what decides about a side of a connection.
type Why string

// The reasons.
const (
	// WhyPolicies: policies isolate the pod, and what they allow decides.
	WhyPolicies Why = "policies"
	// WhyNotIsolated: no policy isolates the pod.
	WhyNotIsolated Why = "notIsolated"
	// WhyItself: a pod reaches itself.
	WhyItself Why = "itself"
	// WhyOwnNode: a node reaches its own pods and, unless PodToNodePolicy is set, a
	// pod its own node.
	WhyOwnNode Why = "ownNode"
	// WhyNoNode: no node is known to run the pod, so that nobody enforces anything.
	WhyNoNode Why = "noNode"
	// WhyUnknownAddress: no pod of a node is known to have an address of the node's
	// podCIDRs.
	WhyUnknownAddress Why = "unknownAddress"
)

// Explanation is what becomes of a Flow, and why. What is prose in it is for people
// and may change; it holds no control characters, whatever the objects are called.
// Names are as the objects have them.
type Explanation struct {
	Outcome Outcome `json:"outcome"`
	// Summary is the answer in one line.
	Summary  string `json:"summary"`
	From     End    `json:"from"`
	To       End    `json:"to"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port,omitempty"`
	// Egress is about the source, Ingress about the destination; nil where neither a
	// policy nor an unknown address can be in the way.
	Egress  *Side `json:"egress,omitempty"`
	Ingress *Side `json:"ingress,omitempty"`
	// Nodes are those whose kernels judge the connection, the source's first.
	Nodes []NodeOutcome `json:"nodes,omitempty"`
	Notes []string      `json:"notes,omitempty"`
	// Same are other flows that were asked about and come to the same.
	Same []string `json:"same,omitempty"`
	// Flow is what was explained, with the addresses that were judged.
	Flow Flow `json:"-"`
}

// NodeOutcome is what the rules of one node should do to the connection.
type NodeOutcome struct {
	Node string `json:"node"`
	// Hook is where they see it: "forward" or "input".
	Hook    string  `json:"hook"`
	Outcome Outcome `json:"outcome"`
}

// Side is what applies to one end of a connection, in its direction.
type Side struct {
	Outcome Outcome `json:"outcome"`
	Why     Why     `json:"why"`
	// Node is the one whose rules decide.
	Node string `json:"node,omitempty"`
	// Text says the outcome and why, in one line.
	Text string `json:"text"`
	// Isolated tells whether policies select the pod in this direction.
	Isolated bool `json:"isolated"`
	// AllowedBy are all rules that allow the connection, if that is up to policies.
	AllowedBy []RuleRef `json:"allowedBy,omitempty"`
	// Policies are those that isolate the pod, by name.
	Policies []PolicyExplanation `json:"policies,omitempty"`
}

// RuleRef names a rule.
type RuleRef struct {
	Namespace string `json:"namespace"`
	Policy    string `json:"policy"`
	// Direction is "ingress" or "egress", and with Index where the rule stands in the
	// policy's spec.
	Direction string `json:"direction"`
	Index     int    `json:"index"`
	// Text is the rule in one line.
	Text string `json:"text"`
}

// PolicyExplanation is what a policy that isolates a pod has to say of a connection.
type PolicyExplanation struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Allows    bool   `json:"allows"`
	// Problems are what of the policy cannot be understood: that matches nothing, or,
	// where it says whom the policy isolates, everything.
	Problems []string `json:"problems,omitempty"`
	// Rules are all of the direction.
	Rules []RuleExplanation `json:"rules"`
}

// RuleExplanation is what a rule has to say of a connection. It allows it if both the
// peer and the port match.
type RuleExplanation struct {
	Index  int    `json:"index"`
	Text   string `json:"text"`
	Allows bool   `json:"allows"`
	// PeerMatches is true as well if the rule is for anyone, PortMatches if it is for
	// all ports.
	PeerMatches bool `json:"peerMatches"`
	PortMatches bool `json:"portMatches"`
	// Peers and Ports are the entries of the rule.
	Peers []Tried `json:"peers,omitempty"`
	Ports []Tried `json:"ports,omitempty"`
}

// Tried is an entry of a rule that was compared with the connection.
type Tried struct {
	Text    string `json:"text"`
	Matches bool   `json:"matches"`
	// Why says what differs, if it does not match.
	Why string `json:"why,omitempty"`
}

// Explain says what becomes of a connection, and why: what the policies say at both
// ends, each judged by the node that it is on. cfg.NodeName does not matter. Who has
// several questions about one Snapshot uses an Explainer.
func Explain(cfg Config, s Snapshot, f Flow) Explanation { return NewExplainer(cfg, s, nil).Explain(f) }

// Explainer answers questions about a Snapshot. It is for one goroutine.
type Explainer struct {
	cfg      Config
	snapshot Snapshot
	services []*Service
	pools    *Pools
	owners   map[netip.Addr]*Pod
	// claims are all pods that say that they have an address, if some other than its
	// owner do.
	claims     map[netip.Addr][]*Pod
	pods       map[key]*Pod
	namespaces map[string]Labels
	// nodeOf says of which node an address is that no pod owns.
	nodeOf map[netip.Addr]string
	// policies are those of each namespace, by name.
	policies map[string][]*understood
}

// understood is a policy, and what was understood of it once somebody asked.
type understood struct {
	*networkingv1.NetworkPolicy
	rules *rules
	errs  field.ErrorList
}

// NewExplainer looks through a Snapshot. Of the Services only those are needed that
// will be asked about.
func NewExplainer(cfg Config, s Snapshot, services []*Service) *Explainer {
	x := &Explainer{
		cfg: cfg, snapshot: s, services: services, owners: Owners(s.Pods), claims: map[netip.Addr][]*Pod{}, pods: map[key]*Pod{},
		namespaces: map[string]Labels{}, nodeOf: map[netip.Addr]string{}, policies: map[string][]*understood{},
	}
	ranges := slices.Clone(s.Services)
	if len(cfg.ServiceCIDRs) > 0 {
		ranges = append(ranges, &ServiceCIDR{CIDRs: cfg.ServiceCIDRs})
	}
	x.pools = Resolve(s.Pools, s.Nodes, ranges)
	for _, ns := range s.Namespaces {
		x.namespaces[ns.Name] = ns.Labels
	}
	x.index()
	for _, np := range s.Policies {
		x.policies[np.Namespace] = append(x.policies[np.Namespace], &understood{NetworkPolicy: np})
	}
	for _, list := range x.policies {
		slices.SortFunc(list, func(a, b *understood) int { return strings.Compare(a.Name, b.Name) })
	}
	return x
}

// index files pods and nodes by their names and addresses.
func (x *Explainer) index() {
	for _, n := range slices.SortedFunc(slices.Values(x.snapshot.Nodes), compareNodes) {
		for _, a := range n.Addrs {
			x.nodeOf[a] = cmp.Or(x.nodeOf[a], n.Name)
		}
	}
	for _, p := range slices.SortedFunc(slices.Values(x.snapshot.Pods), comparePods) {
		x.pods[key{p.Namespace, p.Name}] = p
		for _, a := range p.Addrs {
			switch {
			case !p.HostNetwork && x.owners[a] != p:
				x.claims[a] = append(x.claims[a], p)
			case p.HostNetwork && !p.Finished:
				x.nodeOf[a] = cmp.Or(x.nodeOf[a], p.Node)
			}
		}
	}
}

func compareNodes(a, b *Node) int { return strings.Compare(a.Name, b.Name) }

// isolating returns the policies that isolate a pod in a direction.
func (x *Explainer) isolating(p *Pod, dir direction) []*understood {
	var out []*understood
	view := x.view(p)
	for _, np := range x.policies[p.Namespace] {
		if np.rules == nil {
			np.rules, np.errs = parse(np.NetworkPolicy)
		}
		if np.rules.isolates[dir] && np.rules.pods.Matches(view) {
			out = append(out, np)
		}
	}
	return out
}

// view is a pod as selectors see it.
func (x *Explainer) view(p *Pod) *pod {
	v := &pod{Pod: p}
	if x.pools.Implicit {
		return v
	}
	if pool := x.pools.OfPod(p); pool != nil {
		v.pool = pool.Name
	}
	return v
}

// labelsOf returns the labels of a namespace.
func (x *Explainer) labelsOf(namespace string) Labels {
	if l, ok := x.namespaces[namespace]; ok {
		return l
	}
	return bareLabels(namespace)
}

// closing returns the nodes in whose podCIDRs an address is, by name.
func (x *Explainer) closing(a netip.Addr) []string {
	var out []string
	for _, n := range x.snapshot.Nodes {
		if containsAddr(n.PodCIDRs, a) {
			out = append(out, n.Name)
		}
	}
	slices.Sort(out)
	return out
}
