package policy_test

import (
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
	"github.com/selvage-net/selvage/policy/policytest"
	"github.com/selvage-net/selvage/policy/trace"
)

// variants are configurations that lead to different rulesets for the same
// objects. With SharedAbove 0 every selector is a shared set, with the default
// none of a small world is.
var variants = map[string]func(*policy.Config){
	"default":  func(*policy.Config) {},
	"shared-0": func(c *policy.Config) { c.SharedAbove = 0 },
	"shared-1": func(c *policy.Config) { c.SharedAbove = 1 },
	"shared-2": func(c *policy.Config) { c.SharedAbove = 2; c.MarkMask = 0xff },
	"reject":   func(c *policy.Config) { c.DenyAction = policy.DenyReject },
	"quiet":    func(c *policy.Config) { c.Log = false },
	"input":    func(c *policy.Config) { c.PodToNode = policy.PodToNodePolicy },
	"keeps": func(c *policy.Config) {
		c.NoMasquerade = []netip.Prefix{netip.MustParsePrefix("203.0.0.0/8"), netip.MustParsePrefix("2001:db8::/48")}
		c.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.97.0.0/24"), netip.MustParsePrefix("198.51.100.0/24")}
	},
	"everything": func(c *policy.Config) {
		c.DenyAction, c.PodToNode, c.SharedAbove = policy.DenyReject, policy.PodToNodePolicy, 3
	},
}

// withFlags returns the snapshot with what the configuration tells of besides: to the
// oracle a range of Services is the same, whoever tells of it.
func withFlags(s policy.Snapshot, cfg policy.Config) policy.Snapshot {
	if len(cfg.ServiceCIDRs) > 0 {
		s.Services = append(slices.Clone(s.Services), &policy.ServiceCIDR{Meta: policy.Meta{Name: "by flag"}, CIDRs: cfg.ServiceCIDRs})
	}
	return s
}

const packetsPerWorld = 40

// TestTracerAgreesWithOracle draws worlds and packets, and wants the tracer to
// do to each packet what the oracle says. -rapid.checks=N sets the number of
// worlds of each variant, -rapid.seed=N repeats a failure.
func TestTracerAgreesWithOracle(t *testing.T) {
	var judged, isolated, allowed, masqueraded, walked atomic.Int64
	for name, vary := range variants {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				w := policytest.Worlds(policytest.Options{Packets: packetsPerWorld, Pools: true}).Draw(t, "world")
				cfg := policy.DefaultConfig(policytest.NodeA)
				vary(&cfg)
				cfg.Generation = uint32(rapid.IntRange(1, int(cfg.MarkMask.Max())).Draw(t, "generation"))
				ruleset, _ := policy.Compile(cfg, w.Snapshot)
				if err := trace.Check(ruleset); err != nil {
					t.Fatalf("%v\n%s", err, ruleset)
				}
				j := newJudge(t, cfg, withFlags(w.Snapshot, cfg), ruleset)
				for _, p := range w.Packets {
					ok := j.judge(p)
					if j.isolates(p) {
						isolated.Add(1)
						if ok {
							allowed.Add(1)
						}
					}
				}
				judged.Add(int64(len(w.Packets)))
				walked.Add(int64(j.walks))
				masqueraded.Add(int64(j.masqueraded))
			})
		})
	}
	t.Logf("%d pairs of world and packet judged, %d of them with an isolated end, and %d of these allowed; %d masqueraded; %d walks of the tracer",
		judged.Load(), isolated.Load(), allowed.Load(), masqueraded.Load(), walked.Load())
	if !t.Failed() && (allowed.Load() == 0 || allowed.Load() == isolated.Load()) {
		t.Error("all packets had the same verdict: the worlds say nothing")
	}
	if !t.Failed() && masqueraded.Load() == 0 {
		t.Error("no packet was masqueraded: the worlds say nothing")
	}
}

// judge compares tracer and oracle for the packets of one world.
type judge struct {
	t        *rapid.T
	cfg      policy.Config
	snapshot policy.Snapshot
	ruleset  *policy.Ruleset
	tracer   *trace.Tracer
	// current and old are marks of flows that were judged under this generation
	// and under another one; other bits are set as others might.
	current, old uint32
	walks        int
	masqueraded  int
}

func newJudge(t *rapid.T, cfg policy.Config, s policy.Snapshot, r *policy.Ruleset) *judge {
	j := &judge{t: t, cfg: cfg, snapshot: s, ruleset: r, tracer: trace.New(r)}
	foreign := rapid.Uint32().Draw(t, "foreign mark") &^ uint32(cfg.MarkMask)
	j.current = foreign | cfg.MarkMask.Mark(cfg.Generation).Value
	for j.old = j.current; j.old == j.current; {
		j.old = foreign | cfg.MarkMask.Mark(uint32(rapid.IntRange(0, int(cfg.MarkMask.Max())).Draw(t, "old generation"))).Value
	}
	return j
}

// judge tells whether the packet is allowed, after all variants of it were tried.
func (j *judge) judge(p oracle.Packet) bool {
	allowed := oracle.Allowed(j.snapshot, j.cfg.NodeName, p)

	opening := policytest.Opening(p)
	opening.Flow.Mark = j.old
	j.want("new connection", allowed, opening)
	for _, reply := range []bool{false, true} {
		j.want("established, judged long ago", allowed, policytest.Tracked(p, policy.StateEstablished, j.old, reply))
		j.want("related error, judged long ago", allowed, policytest.Error(p, j.old, reply))
		j.want("established, judged", true, policytest.Tracked(p, policy.StateEstablished, j.current, reply))
		j.want("related error, judged", true, policytest.Error(p, j.current, reply))
	}
	j.stateless(p, allowed)
	j.neighbourDiscovery(p)
	j.toNode(p)
	j.masquerade(p)
	return allowed
}

// isolates tells whether there is a policy that decides about the packet.
func (j *judge) isolates(p oracle.Packet) bool {
	_, egress := oracle.Isolated(j.snapshot, j.cfg.NodeName, p.Src)
	ingress, _ := oracle.Isolated(j.snapshot, j.cfg.NodeName, p.Dst)
	return egress || ingress
}

// verdict is what a packet gets. What it is answered with depends on its own
// protocol: an ICMP error about a TCP connection is not one of its segments.
func (j *judge) verdict(allowed bool, p trace.Packet) policy.VerdictKind {
	switch {
	case allowed:
		return policy.VerdictAccept
	case j.cfg.DenyAction == policy.DenyDrop:
		return policy.VerdictDrop
	case p.Protocol == policy.TCP:
		return policy.VerdictReset
	}
	return policy.VerdictProhibit
}

func (j *judge) run(hook string, p trace.Packet) trace.Result {
	j.walks++
	result, err := j.tracer.Run(hook, p)
	if err != nil {
		j.t.Fatalf("%+v: %v\n%s\n%s", p, err, result, j.ruleset)
	}
	return result
}

func (j *judge) want(what string, allowed bool, p trace.Packet) {
	j.wantAt("forward", what, allowed, p)
}

func (j *judge) wantAt(hook, what string, allowed bool, p trace.Packet) {
	want := j.verdict(allowed, p)
	got := j.run(hook, p)
	if got.Verdict != want {
		j.fail(hook+": "+what, want, p, got)
	}
	mark := j.current
	if want != policy.VerdictAccept {
		mark = p.Flow.Mark
	}
	if got.Mark != mark {
		j.t.Fatalf("%s: the mark is %#x afterwards, want %#x\n%s", what, got.Mark, mark, got)
	}
}

func (j *judge) fail(what string, want policy.VerdictKind, p trace.Packet, got trace.Result) {
	j.t.Fatalf("%s: want %s\npacket %+v\nflow %+v\n%s\n%s\n%s", what, policy.Verdict{Kind: want}, p, p.Flow, got, policytest.Text(j.snapshot), j.ruleset)
}

// stateless: a packet without conntrack entry can be of a connection in either
// direction. It must not get where no connection may be opened, and where
// nothing is isolated it must get.
func (j *judge) stateless(p oracle.Packet, allowed bool) {
	_, egress := oracle.Isolated(j.snapshot, j.cfg.NodeName, p.Src)
	ingress, _ := oracle.Isolated(j.snapshot, j.cfg.NodeName, p.Dst)
	for _, untracked := range []bool{false, true} {
		packet := policytest.Stateless(p, untracked)
		got := j.run("forward", packet)
		accepted := got.Verdict == policy.VerdictAccept
		if accepted && !allowed {
			j.fail("no conntrack entry, and passed", policy.VerdictDrop, packet, got)
		}
		if !accepted && allowed && !egress && !ingress {
			j.fail("no conntrack entry, nothing isolated, and did not pass", policy.VerdictAccept, packet, got)
		}
	}
}

// neighbourDiscovery passes bridges, or nothing does. What only looks like it
// came over a router, where it does not belong.
func (j *judge) neighbourDiscovery(p oracle.Packet) {
	if p.Src.Is4() {
		return
	}
	p.Protocol = trace.ICMPv6
	packet := policytest.Stateless(p, true)
	for packet.ICMPv6Type = 133; packet.ICMPv6Type <= 137; packet.ICMPv6Type++ {
		packet.HopLimit = 255
		if got := j.run("forward", packet); got.Verdict != policy.VerdictAccept {
			j.fail("neighbour discovery", policy.VerdictAccept, packet, got)
		}
		packet.HopLimit = 254
		if got := j.run("forward", packet); got.Verdict == policy.VerdictAccept && !oracle.Allowed(j.snapshot, j.cfg.NodeName, p) {
			j.fail("neighbour discovery from afar", policy.VerdictDrop, packet, got)
		}
	}
}

// toNode tries the packet as one from a pod to the node itself, unless it is for
// a pod: then it does not come in here.
func (j *judge) toNode(p oracle.Packet) {
	if oracle.Owner(j.snapshot, p.Dst) != nil {
		return
	}
	if j.cfg.PodToNode == policy.PodToNodeAllow {
		if got := j.run("input", policytest.Opening(p)); got.Verdict != policy.VerdictAccept {
			j.fail("to the node", policy.VerdictAccept, policytest.Opening(p), got)
		}
		return
	}
	allowed := oracle.EgressAllowed(j.snapshot, j.cfg.NodeName, p)
	opening := policytest.Opening(p)
	opening.Flow.Mark = j.old
	j.wantAt("input", "new connection", allowed, opening)
	j.wantAt("input", "established, judged long ago", allowed, policytest.Tracked(p, policy.StateEstablished, j.old, false))
	j.wantAt("input", "established, judged", true, policytest.Tracked(p, policy.StateEstablished, j.current, false))
	// The node always reaches its own pods: what they answer it comes in here.
	j.wantAt("input", "answer to the node", true, policytest.Tracked(p, policy.StateEstablished, j.old, true))
	local := policytest.Stateless(p, false)
	local.Iifname = "lo"
	if got := j.run("input", local); got.Verdict != policy.VerdictAccept {
		j.fail("the node to itself", policy.VerdictAccept, local, got)
	}
	if got := j.run("input", policytest.Stateless(p, false)); got.Verdict == policy.VerdictAccept && !allowed {
		j.fail("to the node, no conntrack entry, and passed", policy.VerdictDrop, policytest.Stateless(p, false), got)
	}
}

// masquerade tries the packet where its source may be translated. That does not
// depend on whether it is allowed: it comes there only if it is.
func (j *judge) masquerade(p oracle.Packet) {
	want := j.cfg.Masquerade && oracle.Masqueraded(j.snapshot, j.cfg.NodeName, j.cfg.NoMasquerade, p)
	opening := policytest.Opening(p)
	got, walk, err := j.tracer.Masqueraded(opening)
	j.walks++
	if err != nil || got != want {
		j.t.Fatalf("%s: masqueraded %v, want %v, error %v\n%s\n%s\n%s", p, got, want, err, walk, policytest.Text(j.snapshot), j.ruleset)
	}
	if want {
		j.masqueraded++
	}
	for _, later := range []trace.Packet{policytest.Tracked(p, policy.StateEstablished, j.old, true), policytest.Error(p, j.old, false), policytest.Stateless(p, false)} {
		if got, walk, err := j.tracer.Masqueraded(later); got || err != nil {
			j.t.Fatalf("%s: not the first of its flow, and masqueraded: %v, %v\n%s", p, got, err, walk)
		}
	}
}

// TestOrderOfObjects: a snapshot is a set.
func TestOrderOfObjects(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := policytest.Snapshots(withPools).Draw(t, "snapshot")
		cfg := policy.DefaultConfig(policytest.NodeA)
		cfg.SharedAbove = rapid.IntRange(0, 4).Draw(t, "shared above")
		want, _ := policy.Compile(cfg, s)
		s.Pods = rapid.Permutation(s.Pods).Draw(t, "pods")
		s.Policies = rapid.Permutation(s.Policies).Draw(t, "policies")
		s.Namespaces = rapid.Permutation(s.Namespaces).Draw(t, "namespaces")
		s.Nodes = rapid.Permutation(s.Nodes).Draw(t, "nodes")
		s.Pools = rapid.Permutation(s.Pools).Draw(t, "pools")
		s.Services = rapid.Permutation(s.Services).Draw(t, "services")
		got, _ := policy.Compile(cfg, s)
		wantText(t, "after a permutation", got, want)
	})
}

// wantText wants two rulesets to be the same.
func wantText(t *rapid.T, what string, got, want *policy.Ruleset) {
	t.Helper()
	if got.String() == want.String() {
		return
	}
	t.Fatalf("%s: the rulesets differ (- got, + want):\n%s", what, diff(got.String(), want.String()))
}

// diff lists the lines that only one of two texts has, in order.
func diff(a, b string) string {
	count := map[string]int{}
	for line := range strings.Lines(b) {
		count[line]++
	}
	var out strings.Builder
	for line := range strings.Lines(a) {
		if count[line]--; count[line] < 0 {
			out.WriteString("-" + line)
		}
	}
	count = map[string]int{}
	for line := range strings.Lines(a) {
		count[line]++
	}
	for line := range strings.Lines(b) {
		if count[line]--; count[line] < 0 {
			out.WriteString("+" + line)
		}
	}
	return out.String()
}

// TestMarkMask: spreading a generation and gathering it again.
func TestMarkMask(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mask := policy.MarkMask(rapid.Uint32().Draw(t, "mask"))
		if bits.OnesCount32(uint32(mask)) < 2 || bits.OnesCount32(uint32(mask)) > 31 {
			t.Skip("no valid mask")
		}
		gen := rapid.Uint32Range(1, mask.Max()).Draw(t, "generation")
		mark := mask.Mark(gen)
		if mark.Mask != uint32(mask) || mark.Value&^uint32(mask) != 0 {
			t.Fatalf("mark %+v of mask %#x", mark, uint32(mask))
		}
		foreign := rapid.Uint32().Draw(t, "foreign") &^ uint32(mask)
		if got := mask.Generation(mark.Value | foreign); got != gen {
			t.Fatalf("generation %d came back as %d", gen, got)
		}
		next := mask.Next(gen)
		if next == gen || next == 0 || next > mask.Max() || gen < mask.Max() && next != gen+1 {
			t.Fatalf("generation %d is followed by %d of at most %d", gen, next, mask.Max())
		}
	})
	for mask, want := range map[policy.MarkMask]uint32{policy.DefaultMarkMask: 31, 3: 3, 0x80000001: 3, 0xffffffff: 1<<32 - 1} {
		if mask.Max() != want || mask.Next(want) != 1 || mask.Generation(mask.Mark(want).Value) != want {
			t.Errorf("mask %#x: at most %d, then %d", uint32(mask), mask.Max(), mask.Next(want))
		}
	}
}
