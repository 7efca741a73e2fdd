package policy_test

import (
	"cmp"
	"fmt"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

// selectedHere counts the pods that each policy selects, one by one.
func selectedHere(s policy.Snapshot) []policy.PolicyPods {
	out := []policy.PolicyPods{}
	for _, np := range s.Policies {
		of := policy.PolicyPods{Namespace: np.Namespace, Name: np.Name}
		selector, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector)
		if err != nil {
			selector = labels.Everything() // what cannot be understood is closed
		}
		for _, p := range s.Pods {
			if p.Node == policytest.NodeA && !p.HostNetwork && !p.Finished && p.Namespace == np.Namespace && selector.Matches(p.Labels) {
				of.Pods++
			}
		}
		out = append(out, of)
	}
	slices.SortFunc(out, func(a, b policy.PolicyPods) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// TestPolicies counts in random histories, whether or not what has changed was asked
// for before, and names the owners of addresses.
func TestPolicies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, model := policy.NewCompiler(policy.DefaultConfig(policytest.NodeA)), policytest.NewModel(policy.Snapshot{})
		for _, deltas := range policytest.Histories(policytest.Options{}, 6).Draw(t, "history") {
			model.Apply(deltas...)
			c.Update(deltas...)
			if rapid.Bool().Draw(t, "changes first") {
				c.Changes()
			}
			if got, want := c.Policies(), selectedHere(model.Snapshot()); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("%v, want %v, of\n%s", got, want, policytest.Text(model.Snapshot()))
			}
			owners := policy.Owners(model.Snapshot().Pods)
			for _, p := range model.Snapshot().Pods {
				for _, a := range p.Addrs {
					want := [2]string{}
					if o := owners[a]; o != nil {
						want = [2]string{o.Namespace, o.Name}
					}
					if namespace, name := c.Owner(a); [2]string{namespace, name} != want {
						t.Fatalf("%v is %s/%s's, want %v, of\n%s", a, namespace, name, want, policytest.Text(model.Snapshot()))
					}
				}
			}
		}
	})
}
