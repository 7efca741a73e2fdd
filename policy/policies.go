package policy

import (
	"cmp"
	"net/netip"
	"slices"
)

// PolicyPods is how many pods of this node a NetworkPolicy selects.
type PolicyPods struct {
	Namespace, Name string
	Pods            int
}

// Policies returns all policies that are known, sorted by namespace and name.
func (c *Compiler) Policies() []PolicyPods {
	c.settle()
	out := make([]PolicyPods, 0, len(c.policies))
	for k, np := range c.policies {
		out = append(out, PolicyPods{Namespace: k.namespace, Name: k.name, Pods: np.pods()})
	}
	slices.SortFunc(out, func(a, b PolicyPods) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// Owner names the pod of the cluster that has an address; both names are empty if none
// is known to.
func (c *Compiler) Owner(a netip.Addr) (namespace, name string) {
	if p := c.owners[a]; p != nil {
		return p.Namespace, p.Name
	}
	return "", ""
}

// pods counts the local pods that the policy isolates. A pod has one signature in each
// direction, and a policy that isolates in both selects the same pods there.
func (np *policy) pods() int {
	var of [len(directions)]int
	for s := range np.signatures {
		of[s.dir] += len(s.pods)
	}
	return slices.Max(of[:])
}
