package kernel

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

// actor is a pod of a hand-made story: its namespace, and what policy knows.
type actor struct {
	*world.Pod
	known *policy.Pod
}

// cast is a stage with pods on it. All live in the namespace red.
type cast struct {
	*stage
	actors map[string]*actor
}

func newCast(t *testing.T) *cast {
	return &cast{newStage(t, world.FilterBridge), map[string]*actor{}}
}

// add puts a pod on a node. Its label role is the part of its name before the
// first digit.
func (c *cast) add(t *testing.T, n *enforced, name string, attachment world.Attachment) *actor {
	t.Helper()
	i := len(c.actors) + 20
	role := name
	for j, r := range name {
		if '0' <= r && r <= '9' {
			role = name[:j]
			break
		}
	}
	a := &actor{
		Pod: n.addPod(t, name, i, attachment),
		known: &policy.Pod{
			Meta: policy.Meta{Namespace: "red", Name: name, UID: types.UID(name)}, Node: n.Name,
			Labels: policy.NewLabels(map[string]string{"role": role}), Addrs: addrsOf(n.Name, i),
		},
	}
	c.actors[name] = a
	return a
}

// snapshot is the cluster with all actors but those named as absent, and with
// the policies of some manifests.
func (c *cast) snapshot(t *testing.T, policies string, absent ...string) policy.Snapshot {
	t.Helper()
	s := policy.Snapshot{Policies: load(t, policies).Policies, Bridges: bridges}
	s.Namespaces = []*policy.Namespace{{Meta: policy.Meta{Name: "red"}, Labels: policy.NewLabels(map[string]string{"kubernetes.io/metadata.name": "red"})}}
	for _, name := range []string{policytest.NodeA, policytest.NodeB} {
		s.Nodes = append(s.Nodes, &policy.Node{Meta: policy.Meta{Name: name}, PodCIDRs: cidrs[name]})
	}
	for name, a := range c.actors {
		hidden := false
		for _, other := range absent {
			hidden = hidden || name == other
		}
		if !hidden {
			s.Pods = append(s.Pods, a.known)
		}
	}
	return s
}

// np writes a policy that selects the pods of a role, with this spec besides.
func np(name, role, spec string) string {
	return fmt.Sprintf("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: red}\nspec: {podSelector: {matchLabels: {role: %s}}, %s}\n", name, role, spec)
}

// peer is a peer in a spec: the pods of a role.
func peer(role string) string { return "{podSelector: {matchLabels: {role: " + role + "}}}" }

// settle waits until packets that were sent before have been dealt with: each
// node reaches each of its pods, behind them on the same way. A queue of the
// kernel may be on another processor, so it waits a moment besides.
func (c *cast) settle(t *testing.T) {
	t.Helper()
	for _, a := range c.actors {
		must(t, a.Serve(world.Port{Protocol: policy.UDP, Number: 7}))
	}
	var all []sends
	for _, a := range c.actors {
		all = append(all, both("node to its pod "+a.Name, a.Node.Namespace, a.Addrs(), policy.UDP, 7, world.Allowed)...)
	}
	c.expect(t, all...)
	time.Sleep(20 * time.Millisecond)
}
