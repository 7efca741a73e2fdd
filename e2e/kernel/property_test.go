package kernel

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
	"github.com/selvage-net/selvage/policy/policytest"
)

// theatre is a stage with a namespace for every address that a random world
// can give to a pod. An address keeps its namespace, and so its place in the
// neighbours' caches, over all worlds: pods come and go in the snapshots alone.
type theatre struct {
	*stage
	at map[netip.Addr]*world.Pod
	// strangers take whatever else lies in the ranges of a node.
	strangers map[string][2]*world.Pod
	others    map[netip.Addr]bool
}

// lastSlot is the greatest host number of an address in policytest's worlds: 8
// pods out of 9 addresses, moved on where one is taken.
const lastSlot = 18

func newTheatre(t *testing.T) *theatre {
	st := newStage(t, world.FilterBridge)
	// Every selector on one node is a shared set, none on the other.
	shared := policy.DefaultConfig(policytest.NodeB)
	shared.SharedAbove = 0
	st.b = enforce(t, st.b.Node, shared)
	th := &theatre{stage: st, at: map[netip.Addr]*world.Pod{}, strangers: map[string][2]*world.Pod{}, others: map[netip.Addr]bool{}}
	for _, n := range []*enforced{th.a, th.b} {
		for i := 2; i <= lastSlot; i++ {
			attachment := world.Bridged
			if i%3 == 0 {
				attachment = world.Routed
			}
			p := n.addPod(t, fmt.Sprintf("slot-%d", i), i, attachment)
			for _, a := range p.Addrs() {
				th.at[a] = p
			}
		}
		var strangers [2]*world.Pod
		for i, attachment := range []world.Attachment{world.Bridged, world.Routed} {
			var err error
			strangers[i], err = n.AddPod(world.PodOptions{Name: "stranger-" + attachment.String(), Attachment: attachment})
			must(t, err)
		}
		th.strangers[n.Name] = strangers
	}
	return th
}

// end finds, or makes, the namespace of an address. It returns nil for what no
// packet can come from or go to.
func (th *theatre) end(t *testing.T, a netip.Addr) *world.Namespace {
	if p := th.at[a]; p != nil {
		return p.Namespace
	}
	for name, ranges := range cidrs {
		node := map[string]*enforced{policytest.NodeA: th.a, policytest.NodeB: th.b}[name]
		if contains(node.Addrs, a) || contains(node.Gateways(), a) {
			return node.Namespace
		}
		for _, c := range ranges {
			if !c.Contains(a) {
				continue
			}
			// The first address of a range is the routers' anycast address, the
			// last one of IPv4 is for broadcast.
			if a == c.Masked().Addr() || a.Is4() && !c.Contains(a.Next()) {
				return nil
			}
			p := th.strangers[name][len(th.at)%2]
			must(t, p.AddAddr(a))
			th.at[a] = p
			return p.Namespace
		}
	}
	if underlay := nodeAddrs["outside"]; a.Is6() && a == netip.PrefixFrom(underlay[policy.IPv6], 64).Masked().Addr() ||
		a.Is4() && netip.PrefixFrom(underlay[policy.IPv4], 24).Contains(a) && (a.As4()[3] == 0 || a.As4()[3] == 255) {
		return nil // likewise on the network of the nodes
	}
	if !a.IsGlobalUnicast() || a.Is4() && a.As4()[0] >= 240 || a.Is4() && a.As4()[0] == 0 || a.Is4In6() {
		return nil
	}
	if !th.others[a] && !contains(th.outside.Addrs, a) {
		must(t, th.outside.AddAddr(a))
		th.others[a] = true
	}
	return th.outside.Namespace
}

// probes turns the packets of a world into probes. It leaves out what cannot be
// sent, and what would not be a flow of its own.
func (th *theatre) probes(t *testing.T, w policytest.World) (probes []world.Probe, packets []oracle.Packet) {
	type flow struct {
		a, b  netip.Addr
		proto policy.Protocol
	}
	flows := map[flow]bool{}
	var services []world.Service
	for i, p := range w.Packets {
		from, to := th.end(t, p.Src), th.end(t, p.Dst)
		if from == nil || to == nil {
			continue
		}
		ported := p.Protocol == policy.TCP || p.Protocol == policy.UDP || p.Protocol == policy.SCTP
		byService := ported && from != th.outside.Namespace && (i%4 == 0 || p.Src == p.Dst)
		// What a namespace sends to itself is not forwarded, unless it goes
		// through a Service.
		if from == to && (!byService || p.Src != p.Dst || th.at[p.Src] == nil) {
			continue
		}
		send := world.Probe{From: from, Src: p.Src, To: netip.AddrPortFrom(p.Dst, p.Port), Protocol: p.Protocol}
		switch p.Protocol {
		case policy.TCP, policy.UDP, policy.SCTP, world.ICMP, world.ICMPv6:
		case world.GRE:
		default:
			// Others have headers of their own that conntrack may look at.
			send.Protocol = world.Nameless
		}
		switch send.Protocol {
		case world.GRE, world.Nameless:
			// One flow for each pair of addresses, whoever opens it.
			f := flow{p.Src, p.Dst, send.Protocol}
			if f.b.Less(f.a) {
				f.a, f.b = f.b, f.a
			}
			if flows[f] {
				continue
			}
			flows[f] = true
		}
		if send.Protocol != world.ICMP && send.Protocol != world.ICMPv6 {
			must(t, to.Serve([]netip.Addr{p.Dst}, world.Port{Protocol: send.Protocol, Number: p.Port}))
		}
		send.Want = th.Expect(w.Snapshot, p)
		if byService {
			vip := virtual(policy.FamilyOf(p.Dst), i)
			services = append(services, world.Service{Addrs: []netip.Addr{vip}, Protocol: p.Protocol, Port: p.Port, Backends: []netip.AddrPort{send.To}})
			send.To = netip.AddrPortFrom(vip, p.Port)
		}
		probes, packets = append(probes, send), append(packets, p)
	}
	for _, n := range []*enforced{th.a, th.b} {
		must(t, n.SetServices(t.Context(), services...))
	}
	return probes, packets
}

// virtual is the i-th address for Services.
func virtual(f policy.Family, i int) netip.Addr {
	if f == policy.IPv4 {
		return netip.AddrFrom4([4]byte{172, 20, 0, byte(i)})
	}
	return netip.AddrFrom16([16]byte{0xfd, 0x96, 15: byte(i)})
}

// TestKernelAgreesWithOracle draws worlds and packets, programs both nodes, and
// sends the packets. SELVAGE_CHECKS is the number of packets, SELVAGE_SEED
// repeats a failure.
func TestKernelAgreesWithOracle(t *testing.T) {
	checks := envInt(t, "SELVAGE_CHECKS", 600)
	seed := envInt(t, "SELVAGE_SEED", rand.IntN(1<<30))
	t.Logf("SELVAGE_SEED=%d", seed)
	th := newTheatre(t)
	seen := map[string]int{}
	done, worlds := 0, 0
	for ; done < checks; worlds++ {
		w := policytest.Example(policytest.Options{Physical: true, Packets: 60}, seed+worlds)
		th.set(t, w.Snapshot)
		// Flows without ports are the same in every world.
		for _, n := range []*enforced{th.a, th.b} {
			_, err := n.Run(t.Context(), "conntrack", "-F")
			must(t, err)
		}
		probes, packets := th.probes(t, w)
		for i, r := range th.Probe(t.Context(), probes...) {
			p := packets[i]
			if r.Outcome != probes[i].Want {
				small := th.shrink(t, w.Snapshot, probes[i], p)
				t.Fatalf("SELVAGE_SEED=%d: %s from %s to %s port %d (sent to %s): the kernel: %v (%v), the oracle: %v\nThe least that still goes wrong, or all of it if it went wrong once only:\n%s",
					seed+worlds, probes[i].Protocol, p.Src, p.Dst, p.Port, probes[i].To, r.Outcome, r.Err, probes[i].Want, manifests(t, small))
			}
			seen[fmt.Sprintf("%s %s %v", policy.FamilyOf(p.Src), probes[i].Protocol, r.Outcome)]++
			if probes[i].To.Addr() != p.Dst {
				seen[fmt.Sprintf("%s through a Service %v", policy.FamilyOf(p.Src), r.Outcome)]++
			}
		}
		done += len(probes)
	}
	t.Logf("%d packets in %d worlds: %v", done, worlds, seen)
	kinds := []string{"tcp"}
	if done >= 5000 {
		// A few hundred packets need not have one of each.
		kinds = append(kinds, "udp", "sctp", "through a Service")
	}
	for _, f := range policy.Families {
		for _, what := range kinds {
			for _, o := range []world.Outcome{world.Allowed, world.Dropped} {
				if seen[fmt.Sprintf("%s %s %v", f, what, o)] == 0 {
					t.Errorf("no packet %s over %s was %s: the worlds say nothing", what, f, o)
				}
			}
		}
	}
}

// shrink leaves out objects for as long as kernel and oracle disagree about the
// packet.
func (th *theatre) shrink(t *testing.T, s policy.Snapshot, send world.Probe, p oracle.Packet) policy.Snapshot {
	t.Helper()
	wrong := func(s policy.Snapshot) bool {
		th.set(t, s)
		for _, n := range []*enforced{th.a, th.b} {
			_, err := n.Run(t.Context(), "conntrack", "-F")
			must(t, err)
		}
		send.Want = th.Expect(s, p)
		return th.Probe(t.Context(), send)[0].Outcome != send.Want
	}
	for smaller := true; smaller; {
		smaller = false
		for _, next := range without(s) {
			if wrong(next) {
				s, smaller = next, true
				break
			}
		}
	}
	return s
}

// without returns the snapshots that have one object less.
func without(s policy.Snapshot) []policy.Snapshot {
	var all []policy.Snapshot
	for i := range s.Policies {
		next := s
		next.Policies = slices.Delete(slices.Clone(s.Policies), i, i+1)
		all = append(all, next)
	}
	for i := range s.Pods {
		next := s
		next.Pods = slices.Delete(slices.Clone(s.Pods), i, i+1)
		all = append(all, next)
	}
	for i := range s.Namespaces {
		next := s
		next.Namespaces = slices.Delete(slices.Clone(s.Namespaces), i, i+1)
		all = append(all, next)
	}
	return all
}
