package apiserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-net/selvage/policy"
)

// Churn lets the pods of the cluster live, rate events a second, for the given
// time or until ctx ends, and returns how many events there were. Of ten
// events, six are a pod's status alone, one a label, one and a half a pod that
// goes, and as many one that comes, at the address of one that went.
func (s *Store) Churn(ctx context.Context, pods []*policy.Pod, rate int, length time.Duration) int {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	c := churn{store: s, pods: pods, rng: rand.New(rand.NewPCG(5, 6))}
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			c.step()
		}
	}
	return c.events
}

type churn struct {
	store  *Store
	pods   []*policy.Pod
	gone   []*policy.Pod
	rng    *rand.Rand
	events int
}

func (c *churn) step() {
	c.events++
	i := c.rng.IntN(len(c.pods))
	p := c.pods[i]
	switch draw := c.rng.IntN(20); {
	case draw < 12:
		c.store.Put("pods", PodObject(p, c.events))
	case draw < 14:
		next := *p
		next.Labels = relabel(p.Labels, c.events)
		c.pods[i] = &next
		c.store.Put("pods", PodObject(&next, c.events))
	case draw < 17 && len(c.pods) > 1:
		c.store.Delete("pods", PodObject(p, c.events))
		c.pods[i] = c.pods[len(c.pods)-1]
		c.pods = c.pods[:len(c.pods)-1]
		c.gone = append(c.gone, p)
	default:
		c.revive()
	}
}

// revive starts a pod at the address of the one that has been gone for longest.
func (c *churn) revive() {
	if len(c.gone) == 0 {
		return
	}
	next := *c.gone[0]
	c.gone = c.gone[1:]
	next.Name = fmt.Sprintf("reborn-%d", c.events)
	next.UID = types.UID("pod-" + next.Name)
	next.Created++
	c.pods = append(c.pods, &next)
	c.store.Put("pods", PodObject(&next, c.events))
}

// relabel gives the pod a version label that it did not have.
func relabel(l policy.Labels, version int) policy.Labels {
	m := make(map[string]string, len(l)+1)
	for _, x := range l {
		m[x.Key] = x.Value
	}
	m["version"] = fmt.Sprintf("v%d", version)
	return policy.NewLabels(m)
}
