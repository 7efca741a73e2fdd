package nft

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nflog"
)

// allowTo is a policy that lets the pods of the namespace reach one block of each
// family on the UDP ports from edgePort to last, and nothing else.
func allowTo(name string, last int32, cidrs ...string) *networkingv1.NetworkPolicy {
	udp, first := corev1.ProtocolUDP, intstr.FromInt32(edgePort)
	rule := networkingv1.NetworkPolicyEgressRule{
		Ports: []networkingv1.NetworkPolicyPort{{Protocol: &udp, Port: &first, EndPort: &last}},
	}
	for _, c := range cidrs {
		rule.To = append(rule.To, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: c}})
	}
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
			Egress:      []networkingv1.NetworkPolicyEgressRule{rule},
		},
	}
}

// counting is an edge whose router enforces two policies on the pod, of which one
// allows edgePeer and the other edgeKept. None allows edgeWorld.
type counting struct {
	*edge
	e *Enforcer
	// asked, by policy, and denied are what was sent so far.
	asked  map[string]uint64
	denied uint64
}

func peersPolicy() *networkingv1.NetworkPolicy {
	return allowTo("peers", edgePort, "10.9.0.0/16", "fd00:9::/64")
}

func keptPolicy() *networkingv1.NetworkPolicy {
	return allowTo("kept", edgePort+1, "198.51.100.0/24", "2001:db8:51::/48")
}

func newCounting(t *testing.T) *counting {
	t.Helper()
	c := &counting{edge: newEdge(t), asked: map[string]uint64{}}
	c.e = newEnforcer(t, c.router.open(t))
	mustSync(t, c.e, c.objects()...)
	return c
}

func (c *counting) objects() []policy.Delta {
	return []policy.Delta{
		{Object: node()}, {Object: shop()}, {Object: pod("api-0", testNode, "api", 2)}, {Object: peersPolicy()}, {Object: keptPolicy()},
	}
}

// traffic opens connections in both families: n to each of those that are allowed, and
// sends as many packets to one that is not.
func (c *counting) traffic(t *testing.T, n int) {
	t.Helper()
	for range n {
		for _, f := range policy.Families {
			c.mustAsk(t, "allowed by peers", edgePeer[f], edgePod[f])
			c.mustAsk(t, "allowed by kept", edgeKept[f], edgePod[f])
			c.asked["peers"]++
			c.asked["kept"]++
		}
	}
	for _, flow := range c.dial(t, edgeWorld[policy.IPv4], edgeWorld[policy.IPv6]) {
		for range n {
			if _, err := flow.Write(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			c.denied++
		}
		flow.Close()
	}
}

// read reads the counts as soon as all packets have arrived where they end.
func (c *counting) read(t *testing.T) PolicyCounts {
	t.Helper()
	var counts PolicyCounts
	for deadline := time.Now().Add(forever); ; time.Sleep(time.Millisecond) {
		var err error
		if counts, err = c.e.PolicyCounts(); err != nil {
			t.Fatal(err)
		}
		var denied uint64
		for _, d := range counts.Denied {
			denied += d.Packets
		}
		if denied >= c.denied || time.Now().After(deadline) {
			return counts
		}
	}
}

// mustCount fails the test if the counts are not those of all that was sent so far.
func (c *counting) mustCount(t *testing.T, what string) {
	t.Helper()
	counts := c.read(t)
	var got []string
	for _, p := range counts.Policies {
		got = append(got, fmt.Sprintf("%s %s: %d allowed, %d denied", p.PolicyRef, p.Direction, p.Allowed.Packets, p.Denied.Packets))
	}
	for _, d := range counts.Denied {
		got = append(got, fmt.Sprintf("%q %s: %d denied", d.Namespace, d.Direction, d.Packets))
	}
	var want []string
	for _, name := range []string{"kept", "peers"} {
		want = append(want, fmt.Sprintf("shop/%s egress: %d allowed, %d denied", name, c.asked[name], c.denied))
	}
	want = append(want, `"" : 0 denied`, fmt.Sprintf("%q egress: %d denied", "shop", c.denied))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: sent (-) and counted (+):\n%s", what, diff)
	}
}

// TestCountsPackets sends packets, and wants them to be counted for the policies that
// they were allowed by, and for those that isolate the pod if they were denied.
func TestCountsPackets(t *testing.T) {
	t.Parallel()
	c := newCounting(t)
	c.mustCount(t, "at first")
	c.traffic(t, 3)
	c.mustCount(t, "traffic")
	c.traffic(t, 2)
	c.mustCount(t, "more of it")
	for name, n := range mustReadCounters(t, c.router) {
		info, ok := c.e.Counter(name)
		if !ok {
			t.Errorf("nobody knows what counter %s is", name)
		}
		if n.Packets > 0 && n.Bytes < 28*n.Packets {
			t.Errorf("counter %s, of %v: %+v", name, info.Policies, n)
		}
	}
}

func mustReadCounters(t *testing.T, ns *namespace) map[string]Count {
	t.Helper()
	counts, err := ns.open(t).Counters()
	if err != nil {
		t.Fatal(err)
	}
	return counts
}

// TestCountsUnknown: what comes from an address that no pod is known to have.
func TestCountsUnknown(t *testing.T) {
	t.Parallel()
	c := newCounting(t)
	mustSync(t, c.e, policy.Delta{Object: pod("api-0", testNode, "api", 2), Deleted: true})
	c.traffic(t, 0)
	for _, flow := range c.dial(t, edgePeer[policy.IPv4], edgePeer[policy.IPv6]) {
		if _, err := flow.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		flow.Close()
		c.denied++
	}
	counts := c.read(t)
	if i := slices.IndexFunc(counts.Denied, func(d DeniedCount) bool { return d.Namespace == "" }); i < 0 || counts.Denied[i].Packets != c.denied {
		t.Errorf("%d packets were sent: %+v", c.denied, counts)
	}
}

// TestNeverCountsSelf: what a pod sends to itself by a Service passes the router, and
// is neither denied nor allowed by anybody.
func TestNeverCountsSelf(t *testing.T) {
	t.Parallel()
	c := newCounting(t)
	c.router.nft(t, `
		table inet service {
			chain prerouting {
				type nat hook prerouting priority dstnat
				ip daddr 203.0.113.1 dnat ip to 10.1.0.2
				ip6 daddr 2001:db8:113::1 dnat ip6 to fd00:1::2
			}
			chain forward {
				type filter hook forward priority 10
				ip saddr 10.1.0.2 ip daddr 10.1.0.2 counter name hairpin
				ip6 saddr fd00:1::2 ip6 daddr fd00:1::2 counter name hairpin
			}
			counter hairpin { }
		}`)
	service := at("203.0.113.1", "2001:db8:113::1")
	for _, flow := range c.dial(t, service[:]...) {
		if _, err := flow.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		flow.Close()
	}
	deadline := time.Now().Add(forever)
	for !strings.Contains(c.router.run(t, "", "nft", "list", "counter", "inet", "service", "hairpin"), "packets 2 ") {
		if time.Now().After(deadline) {
			t.Fatal("the packets do not pass the router, or do not pass the rules")
		}
	}
	c.mustCount(t, "to itself")
}

// TestCountsOutliveRules: whatever becomes of the rules, no count is lost and none is
// counted twice.
func TestCountsOutliveRules(t *testing.T) {
	t.Parallel()
	c := newCounting(t)
	more := func(what string) {
		t.Helper()
		c.mustCount(t, what)
		c.traffic(t, 2)
		c.mustCount(t, what+", and more traffic")
	}
	resync := func() Result {
		t.Helper()
		c.e.Resync()
		return mustSync(t, c.e)
	}
	more("at first")
	mustSync(t, c.e, policy.Delta{Object: allowTo("peers", edgePort+5, "10.9.0.0/16", "fd00:9::/64")})
	more("a policy has changed")
	mustSync(t, c.e, policy.Delta{Object: pod("api-0", testNode, "api", 2), Deleted: true})
	c.mustCount(t, "the pod is gone")
	mustSync(t, c.e, policy.Delta{Object: pod("api-0", testNode, "api", 2)})
	more("the pod is back")

	c.router.nft(t, "delete table ip selvage")
	resync()
	more("somebody has deleted a table")
	c.router.nft(t, "reset counters table ip6 selvage")
	more("somebody has reset the counters")
	c.unread(t)
	c.router.nft(t, "flush table ip selvage\ndelete set ip selvage self-v4\nadd set ip selvage self-v4 { type inet_service; }")
	if r := resync(); !r.Replaced {
		t.Errorf("not replaced: %+v", r)
	}
	more("the tables were made anew")

	// Another policy comes: whatever both allow has a counter of its own.
	mustSync(t, c.e, policy.Delta{Object: allowTo("also", edgePort+5, "10.9.0.0/16", "fd00:9::/64")})
	c.traffic(t, 1)
	c.read(t)
	c.unread(t)
	mustSync(t, c.e, policy.Delta{Object: allowTo("also", edgePort+5), Deleted: true})
	more("another policy came and went")
}

// unread opens connections that nobody reads the counts of while their rules are there.
func (c *counting) unread(t *testing.T) {
	t.Helper()
	for _, f := range policy.Families {
		c.mustAsk(t, "allowed by peers", edgePeer[f], edgePod[f])
		c.asked["peers"]++
	}
}

// TestCountsAreAdopted: an agent that comes back takes over the counters that are in the
// kernel, and counts from there.
func TestCountsAreAdopted(t *testing.T) {
	t.Parallel()
	c := newCounting(t)
	c.traffic(t, 2)
	c.mustCount(t, "before")
	before := c.e
	c.e = newEnforcer(t, c.router.open(t))
	if r := mustSync(t, c.e, c.objects()...); r.Messages != 0 {
		t.Errorf("%+v", r)
	}
	c.asked, c.denied = map[string]uint64{"kept": 0, "peers": 0}, 0
	c.mustCount(t, "after")
	c.traffic(t, 2)
	c.mustCount(t, "after, and more traffic")
	before.Close()
}

// TestCountsGoWithTheirPolicies: of a policy that was deleted nothing is told, and of
// the others everything.
func TestCountsGoWithTheirPolicies(t *testing.T) {
	t.Parallel()
	c := newCounting(t)
	c.traffic(t, 2)
	c.read(t)
	mustSync(t, c.e, policy.Delta{Object: peersPolicy(), Deleted: true})
	counts := c.read(t)
	want := []PolicyCount{{PolicyRef: policy.PolicyRef{Namespace: "shop", Name: "kept"}, Direction: "egress"}}
	if len(counts.Policies) == 1 {
		want[0].Allowed, want[0].Denied = Count{Packets: c.asked["kept"], Bytes: counts.Policies[0].Allowed.Bytes}, Count{Packets: c.denied, Bytes: counts.Policies[0].Denied.Bytes}
	}
	if diff := cmp.Diff(want, counts.Policies); diff != "" {
		t.Errorf("a policy is gone, want (-) and got (+):\n%s", diff)
	}
	mustSync(t, c.e, policy.Delta{Object: keptPolicy(), Deleted: true})
	if counts := c.read(t); len(counts.Policies) != 0 || len(counts.Denied) != 2 || counts.Denied[1].Packets != c.denied {
		t.Errorf("all policies are gone: %+v", counts)
	}
	mustSync(t, c.e, policy.Delta{Object: pod("api-0", testNode, "api", 2), Deleted: true}, policy.Delta{Object: shop(), Deleted: true})
	if counts, err := c.e.PolicyCounts(); err != nil || len(counts.Denied) != 1 {
		t.Errorf("the namespace is gone: %+v, %v", counts, err)
	}
}

// TestLogsSamples: some of what is denied is logged, under the name of a chain that
// tells which policies isolate the pod, and never more than the rate allows.
func TestLogsSamples(t *testing.T) {
	t.Parallel()
	c := newCounting(t)
	var mu sync.Mutex
	logged := map[string]int{}
	log, err := nflog.Open(nflog.Options{NetNS: int(c.router.handle), Group: policy.LogGroup, Take: func(p nflog.Packet) {
		mu.Lock()
		defer mu.Unlock()
		logged[p.Prefix]++
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	const many = 1000
	c.traffic(t, 1)
	for _, flow := range c.dial(t, edgeWorld[:]...) {
		for range many {
			if _, err := flow.Write(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			c.denied++
		}
		flow.Close()
	}
	c.mustCount(t, "a flood")
	var chain string
	var n int
	for deadline := time.Now().Add(forever); ; time.Sleep(10 * time.Millisecond) {
		mu.Lock()
		for prefix, count := range logged {
			chain, n = prefix, count
		}
		chains := len(logged)
		mu.Unlock()
		// Both families have their burst.
		if n >= 2*5 || time.Now().After(deadline) {
			if chains != 1 || n < 2*5 || n > many {
				t.Errorf("%d packets were denied, and these logged: %v", c.denied, logged)
			}
			break
		}
	}
	want := []policy.PolicyRef{{Namespace: "shop", Name: "kept"}, {Namespace: "shop", Name: "peers"}}
	if diff := cmp.Diff(want, c.e.Isolating(chain)); diff != "" {
		t.Errorf("the policies behind %q (-want +got):\n%s", chain, diff)
	}
	if info, ok := c.e.Counter(chain); !ok || !info.Denied || info.Direction != "egress" || info.Namespace != "shop" {
		t.Errorf("%q: %+v", chain, info)
	}
}

// TestWithoutLog: a kernel that cannot log enforces and counts all the same.
func TestWithoutLog(t *testing.T) {
	t.Parallel()
	c := &counting{edge: newEdge(t), asked: map[string]uint64{}}
	c.e = newEnforcer(t, c.router.open(t), func(o *EnforcerOptions) { o.Config.Log = false })
	mustSync(t, c.e, c.objects()...)
	c.traffic(t, 2)
	c.mustCount(t, "without log")
	list := c.router.list(t)
	for _, word := range []string{"log prefix", "limit rate", "flags dynamic"} {
		if strings.Contains(list, word) {
			t.Errorf("asks for %q, which the kernel does not have:\n%s", word, list)
		}
	}
}
