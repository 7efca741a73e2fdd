package nft

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/selvage-net/selvage/policy"
)

// TestOnePoolAmongMany: of a thousand pools one goes and one comes. That is one
// transaction, which tells the kernel of nothing but their own blocks.
func TestOnePoolAmongMany(t *testing.T) {
	ns := newNamespace(t)
	c := ns.open(t)
	many := func(i int) *policy.Pool {
		return pool(fmt.Sprintf("pool-%04d", i), true, fmt.Sprintf("10.%d.%d.0/24", i/256, i%256), fmt.Sprintf("fd00:%x::/64", i))
	}
	compiler := policy.NewCompiler(policy.DefaultConfig(testNode))
	compiler.Update(policy.Delta{Object: node()})
	for i := range 1000 {
		compiler.Update(policy.Delta{Object: many(i)})
	}
	mustApply(t, c, compiler.Changes())

	compiler.Update(policy.Delta{Object: many(500), Deleted: true}, policy.Delta{Object: many(2000)})
	change := compiler.Changes()
	want := [2][2]string{{"10.1.244.0/24", "10.7.208.0/24"}, {"fd00:1f4::/64", "fd00:7d0::/64"}}
	for _, f := range policy.Families {
		tc := change.Tables[f]
		if len(tc.AddSets)+len(tc.AddChains)+len(tc.SetChains)+len(tc.DelChains)+len(tc.DelSets) != 0 || len(tc.Elements) != 2 {
			t.Errorf("%s: more than elements of two sets change: %+v", f, tc)
		}
		for _, ec := range tc.Elements {
			if len(ec.Del) != 1 || len(ec.Add) != 1 {
				t.Errorf("%s: %d elements go and %d come", ec.Set.Name, len(ec.Del), len(ec.Add))
				continue
			}
			if got := [2]string{ec.Set.ElementText(ec.Del[0]), ec.Set.ElementText(ec.Add[0])}; got != want[f] {
				t.Errorf("%s: %s goes and %s comes, want %s and %s", ec.Set.Name, got[0], got[1], want[f][0], want[f][1])
			}
		}
	}
	if stats := mustApply(t, c, change); stats != (Stats{Batches: 1, Messages: 8, Elements: 8}) {
		t.Errorf("%+v", stats)
	}
	got, err := c.Read()
	if err != nil {
		t.Fatal(err)
	}
	if diff := diffRulesets(compiler.Ruleset(), got); diff != "" {
		t.Errorf("wanted (-) and in the kernel (+):\n%s", diff)
	}
}

// poolChurn adds, removes and replaces pools at random. It leaves those alone whose
// blocks the test sends packets from and to: others come to touch them, and are
// replaced by such that overlap them. Of a block that is itself replaced by one that
// overlaps it, older kernels may not find an address while the change comes into
// force (__nft_rbtree_lookup in net/netfilter/nft_set_rbtree.c).
type poolChurn struct {
	*rand.Rand
	cluster *cluster
}

// change returns up to three deltas.
func (c *poolChurn) change() []policy.Delta {
	var deltas []policy.Delta
	for range 1 + c.IntN(3) {
		p := pool(fmt.Sprintf("pool-%d", c.IntN(6)), c.IntN(2) == 0, c.block(policy.IPv4).String(), c.block(policy.IPv6).String())
		p.Created = int64(c.IntN(3))
		if c.IntN(3) == 0 {
			deltas = append(deltas, c.cluster.del("pool", p))
		} else {
			deltas = append(deltas, c.cluster.set("pool", p))
		}
	}
	return deltas
}

// block draws one of 10.0.0.0/16 or 10.2.0.0/15, or what is the same of fd00::/16.
func (c *poolChurn) block(f policy.Family) netip.Prefix {
	second := []byte{0, 2, 3}[c.IntN(3)]
	third := byte(c.IntN(4)) << 6
	bits := 16 + c.IntN(3)
	if second == 2 && c.IntN(3) == 0 {
		bits = 15
	}
	a := netip.AddrFrom4([4]byte{10, second, third})
	if f == policy.IPv6 {
		a, bits = netip.AddrFrom16([16]byte{0xfd, 0, 0, second, third}), bits+16
	}
	return netip.PrefixFrom(a, bits).Masked()
}

// askOn opens flows until stop is closed, and fails the test at the first that does
// not come from where it should.
func (e *edge) askOn(t *testing.T, f policy.Family, asked *atomic.Int64, stop <-chan struct{}) {
	to := slices.Repeat([]netip.Addr{edgeWorld[f], edgePeer[f], edgeKept[f]}, 20)
	for {
		for i, flow := range e.dial(t, to...) {
			want := edgePod[f]
			if to[i] == edgeWorld[f] {
				want = edgeRouter[f]
			}
			got, err := ask(flow, forever)
			if err != nil || got != want {
				t.Errorf("a flow to %s comes from %s, want %s: %v", to[i], got, want, err)
				return
			}
			asked.Add(1)
		}
		select {
		case <-stop:
			return
		default:
		}
	}
}

// TestPoolChurn changes pools while flows are opened all the time. None is lost, all
// that leave for the world come from the node, and none that stays inside does. Each
// change is in place, and the generation stays, since no change of pools denies
// anything.
func TestPoolChurn(t *testing.T) {
	edge := newEdge(t)
	e := newEnforcer(t, edge.router.open(t))
	c := newCluster()
	n := node()
	n.Addrs = []netip.Addr{edgeRouter[policy.IPv4], edgeRouter[policy.IPv6]}
	other := &policy.Node{Meta: policy.Meta{Name: "node-b"}, PodCIDRs: prefixes("198.51.100.0/24", "2001:db8:51::/48")}
	mustSync(t, e, c.set("node", n), c.set("node", other), c.set("ns", shop()), c.set("pod", pod("web-0", testNode, "web", 2)),
		c.set("pool", pool("pods", true, "10.1.0.0/16", "fd00:1::/32")), c.set("pool", pool("others", false, "10.9.0.0/16", "fd00:9::/64")))
	generation := e.Generation()

	var flows sync.WaitGroup
	var asked atomic.Int64
	stop := make(chan struct{})
	for _, f := range policy.Families {
		flows.Go(func() { edge.askOn(t, f, &asked, stop) })
	}
	const seed = 1
	churn := poolChurn{rand.New(rand.NewPCG(seed, 0)), c}
	changes := 0
	for ; changes < 500 || asked.Load() < 10_000; changes++ {
		r := mustSync(t, e, churn.change()...)
		if r.Batches > 1 || r.Replaced || r.Resynced || r.Generation != generation {
			t.Errorf("change %d: %+v", changes, r)
		}
		if t.Failed() {
			break
		}
	}
	close(stop)
	flows.Wait()
	t.Logf("%d changes, %d flows", changes, asked.Load())

	mustBeInForce(t, edge.router, c, policy.DefaultConfig(testNode), generation)
	r, err := edge.router.open(t).Read()
	if err != nil {
		t.Fatal(err)
	}
	clean := newNamespace(t)
	clean.nft(t, r.String())
	if diff := cmp.Diff(clean.list(t), edge.router.list(t)); diff != "" {
		t.Errorf("listed after nft -f (-) and after all changes (+):\n%s", diff)
	}
}
