package main

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// statusReport is what `selvage status` shows. Its JSON is for programs: what is there
// keeps its name and meaning. Lists are never null.
type statusReport struct {
	// State is that of all nodes together.
	State syncState    `json:"state"`
	Nodes []nodeReport `json:"nodes"`
	// Policies are sorted by namespace and name.
	Policies []policyReport `json:"policies"`
	// Problems are what keeps nodes from being in sync, and then what else is to be put
	// right.
	Problems []statusProblem `json:"problems"`
}

// syncState tells whether what is desired is in force.
type syncState string

const (
	stateInSync    syncState = "InSync"
	stateNotInSync syncState = "NotInSync"
	// stateUnknown is a node that does not answer.
	stateUnknown syncState = "Unknown"
)

// nodeReport is a node.
type nodeReport struct {
	Node  string    `json:"node"`
	State syncState `json:"state"`
	// Error says why the node's agent could not be asked; there is no Status then.
	Error  string      `json:"error,omitempty"`
	Status *nodeStatus `json:"status,omitempty"`
	// Problems is how many of the problems are this node's.
	Problems int `json:"problems"`
}

// policyReport is a policy on all nodes that have answered.
type policyReport struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Pods is how many it selects, on the nodes that are named in InForce and Behind:
	// where it is enforced as it is now, and where it is not yet.
	Pods    int      `json:"pods"`
	InForce []string `json:"inForce"`
	Behind  []string `json:"behind"`
	// Age is how long the last change of it has been in force, in seconds, and an agent
	// that has started anew counts from then; it is missing where that is not known.
	Age *float64 `json:"ageSeconds,omitempty"`
	verdictCounts
	// Remark is that it selects no pod, or has never matched.
	Remark policyRemark `json:"remark,omitempty"`
}

// policyRemark is what is remarkable of a policy.
type policyRemark string

const (
	remarkNoPod   policyRemark = "SelectsNoPod"
	remarkNoMatch policyRemark = "NeverMatched"
)

// statusProblem is something that is wrong.
type statusProblem struct {
	Nodes []string `json:"nodes"`
	// About is what has the problem, as "pod shop/web"; empty for the node.
	About   string `json:"about,omitempty"`
	Message string `json:"message"`
}

// desiredPolicies are the policies of the API, each with its resourceVersion; nil if
// that could not be asked.
type desiredPolicies map[types.NamespacedName]string

// askStatus asks agents, and reports on the policies of a namespace, or all if it is
// empty.
func askStatus(ctx context.Context, all []agentAt, desired desiredPolicies, namespace string) statusReport {
	query := url.Values{}
	if desired == nil {
		query.Set("policies", "all")
	}
	r := newStatusReport(ask[nodeStatus](ctx, all, "status", query))
	r.addPolicies(desired, namespace)
	r.judge()
	return r
}

// newStatusReport reports on nodes.
func newStatusReport(answers []answer[nodeStatus]) statusReport {
	r := statusReport{Nodes: []nodeReport{}, Policies: []policyReport{}, Problems: []statusProblem{}}
	for i := range answers {
		a := &answers[i]
		n := nodeReport{Node: a.node, State: stateUnknown}
		if a.err != nil {
			n.Error = a.err.Error()
		} else {
			n.Status, n.State, n.Node = &a.value, stateNotInSync, cmp.Or(a.value.Node, a.node)
			if a.value.InSync {
				n.State = stateInSync
			}
		}
		r.Nodes = append(r.Nodes, n)
	}
	for i := range r.Nodes {
		r.missing(&r.Nodes[i])
	}
	for i := range r.Nodes {
		if s := r.Nodes[i].Status; s != nil {
			r.problemsOf(&r.Nodes[i], s)
		}
	}
	return r
}

// missing tells why a node is not in sync.
func (r *statusReport) missing(n *nodeReport) {
	if n.Status == nil {
		r.problem(n, "", n.Error)
		return
	}
	for _, m := range n.Status.Missing {
		r.problem(n, "", "not in sync: "+m)
	}
}

// problemsOf tells of all else that is wrong on a node.
func (r *statusReport) problemsOf(n *nodeReport, s *nodeStatus) {
	for _, c := range s.Conditions {
		if !slices.Contains(s.Missing, c.Message) {
			r.problem(n, "", c.Message)
		}
	}
	for _, k := range s.Source {
		if k.Error != "" && !slices.Contains(s.Missing, k.Error) {
			r.problem(n, "", k.Error)
		}
	}
	for _, p := range s.Invalid {
		r.problem(n, "policy "+p.Namespace+"/"+p.Name, p.Message+"; what is wrong matches nothing, the pods stay isolated")
	}
	for _, p := range s.Bandwidth.Problems {
		about := "pod " + p.Namespace + "/" + p.Pod
		if p.Pod == "" {
			about = "namespace " + p.Namespace
		}
		r.problem(n, about, p.Message)
	}
	for _, p := range s.Pools.Problems {
		r.problem(n, "pool "+p.Pool, p.Message)
	}
	if s.CountsError != "" {
		r.problem(n, "", "the counts cannot be told: "+s.CountsError)
	}
	if s.DropsError != "" {
		r.problem(n, "", "drops are not seen, but counted: "+s.DropsError)
	}
	if s.Bandwidth.Error != "" {
		r.problem(n, "", "what is shaped cannot be told: "+s.Bandwidth.Error)
	}
}

// problem adds a problem, or a node to one that others have as well. What several kinds
// of objects have in common is said once.
func (r *statusReport) problem(n *nodeReport, about, message string) {
	for i := range r.Problems {
		p := &r.Problems[i]
		if p.About != about || p.Message != message {
			continue
		}
		if !slices.Contains(p.Nodes, n.Node) {
			p.Nodes = append(p.Nodes, n.Node)
			n.Problems++
		}
		return
	}
	r.Problems = append(r.Problems, statusProblem{Nodes: []string{n.Node}, About: about, Message: message})
	n.Problems++
}

// addPolicies reports on policies.
func (r *statusReport) addPolicies(desired desiredPolicies, namespace string) {
	all := make(map[types.NamespacedName]*policyReport)
	of := func(key types.NamespacedName) *policyReport {
		p := all[key]
		if p == nil {
			p = &policyReport{Namespace: key.Namespace, Name: key.Name, InForce: []string{}, Behind: []string{}}
			all[key] = p
		}
		return p
	}
	counted := true
	for i := range r.Nodes {
		s := r.Nodes[i].Status
		if s == nil {
			continue
		}
		counted = counted && s.CountsError == ""
		for j := range s.Policies {
			key := types.NamespacedName{Namespace: s.Policies[j].Namespace, Name: s.Policies[j].Name}
			of(key).add(&r.Nodes[i], &s.Policies[j], desired[key])
		}
	}
	for key := range desired {
		of(key)
	}
	for _, p := range all {
		if namespace != "" && p.Namespace != namespace {
			continue
		}
		switch {
		case p.Pods == 0:
			p.Remark = remarkNoPod
		case counted && p.AllowedConnections.sum() == 0 && p.DeniedPackets.sum() == 0:
			p.Remark = remarkNoMatch
		}
		r.Policies = append(r.Policies, *p)
	}
	slices.SortFunc(r.Policies, func(a, b policyReport) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

// add adds what a node says of the policy, which has this resourceVersion if that is
// known.
func (p *policyReport) add(n *nodeReport, s *policyStatus, desired string) {
	p.AllowedConnections = p.AllowedConnections.plus(s.AllowedConnections)
	p.DeniedPackets = p.DeniedPackets.plus(s.DeniedPackets)
	if s.Pods == 0 {
		return
	}
	p.Pods += s.Pods
	if !s.InForce || older(s.ResourceVersion, desired) {
		p.Behind = append(p.Behind, n.Node)
		return
	}
	p.InForce = append(p.InForce, n.Node)
	if s.Since.IsZero() {
		return
	}
	age := max(0, n.Status.Time.Sub(s.Since).Round(time.Millisecond).Seconds())
	if p.Age == nil || age < *p.Age {
		p.Age = &age
	}
}

// older tells whether a version is one of before another. The agent may know a newer one
// than the API had when it was asked.
func older(version, than string) bool {
	if than == "" || version == than {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(version, than)
	return err != nil || order < 0
}

// judge judges all nodes together. A node that is not in sync is an answer, whatever
// others say.
func (r *statusReport) judge() {
	r.State = stateInSync
	for _, n := range r.Nodes {
		if n.State == stateNotInSync || r.State == stateInSync {
			r.State = n.State
		}
	}
	for i := range r.Policies {
		if len(r.Policies[i].Behind) > 0 {
			r.State = stateNotInSync
			r.behind(&r.Policies[i])
		}
	}
	if len(r.Nodes) == 0 {
		r.State = stateUnknown
	}
}

// behind tells of nodes that do not have the last change of a policy in force.
func (r *statusReport) behind(p *policyReport) {
	for i := range r.Nodes {
		if n := &r.Nodes[i]; slices.Contains(p.Behind, n.Node) {
			r.problem(n, "policy "+p.Namespace+"/"+p.Name,
				"its last change is not in force yet: if that lasts, see whether the agent's source answers, and its log")
		}
	}
}

// exit is the exit code of a report.
func (r *statusReport) exit() error {
	switch r.State {
	case stateInSync:
		return nil
	case stateNotInSync:
		return &exitError{code: exitNo}
	case stateUnknown:
	}
	return &exitError{code: exitUnknown}
}

// someOf names some of many.
func someOf(names []string) string {
	const most = 4
	if more := len(names) - most; more > 1 {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}
