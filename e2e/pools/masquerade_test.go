package pools

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

// keepSpared is the agents' flag for the host kept.
const keepSpared = "--no-masquerade-cidrs=172.31.0.201/32,fd31::201/128"

// leaving are the ways out, as they look if the pods' own nodes masquerade.
func (s *stage) leaving() []way {
	var out []way
	for _, p := range []*world.Pod{s.one, s.solo, s.bus, s.ray} {
		out = append(out, ways(p.Namespace, far, p.Node.Addr)...)
	}
	return out
}

// bare are the ways out, as they look if nobody masquerades.
func (s *stage) bare() []way {
	var out []way
	for _, p := range []*world.Pod{s.one, s.solo, s.bus, s.ray} {
		out = append(out, ways(p.Namespace, far, p.Addr)...)
	}
	return out
}

// staying are ways on which a pod keeps its address: to pods and nodes of the cluster,
// and to what is spared.
func (s *stage) staying() []way {
	var out []way
	for _, p := range []*world.Pod{s.one, s.solo} {
		for _, to := range [][]netip.Addr{
			s.two.Addrs(), s.bus.Addrs(), s.ray.Addrs(), s.a.Addrs, s.a.Gateways(), s.b.Addrs, spared,
		} {
			out = append(out, ways(p.Namespace, to, p.Addr)...)
		}
	}
	return append(out, ways(s.bus.Namespace, s.solo.Addrs(), s.bus.Addr)...)
}

// serviceWays make Services of a pod on the same node and one on the other, and return
// the ways to them, on which a pod keeps its address.
func (s *stage) serviceWays() []way {
	s.t.Helper()
	var services []world.Service
	var out []way
	for i, backend := range []*world.Pod{s.two, s.bus} {
		vips := addresses(fmt.Sprintf("10.96.178.%d", i+1), fmt.Sprintf("fd96::178:%d", i+1))
		for _, p := range serves {
			svc := world.Service{Name: backend.Name, Addrs: vips, Protocol: p.Protocol, Port: p.Number}
			for _, a := range backend.Addrs() {
				svc.Backends = append(svc.Backends, netip.AddrPortFrom(a, p.Number))
			}
			services = append(services, svc)
		}
		for _, from := range []*world.Pod{s.one, s.solo} {
			out = append(out, ways(from.Namespace, vips, from.Addr)...)
		}
	}
	for _, n := range []*world.Node{s.a, s.b} {
		must(s.t, n.SetServices(s.t.Context(), services...))
	}
	return out
}

// held is a connection that goes on.
type held struct {
	name string
	conn net.Conn
	// source is what the server saw at first.
	source netip.AddrPort
}

// hold opens connections by TCP and UDP.
func (s *stage) hold(from *world.Namespace, to ...netip.Addr) []*held {
	s.t.Helper()
	var out []*held
	for _, a := range to {
		tcp, err := from.DialTCP(s.t.Context(), netip.Addr{}, netip.AddrPortFrom(a, serves[0].Number))
		must(s.t, err)
		s.t.Cleanup(func() {
			_ = tcp.SetLinger(0)
			tcp.Close()
		})
		udp, err := from.DialUDP(netip.Addr{}, netip.AddrPortFrom(a, serves[1].Number))
		must(s.t, err)
		s.t.Cleanup(func() { udp.Close() })
		for _, c := range []net.Conn{tcp, udp} {
			h := &held{name: fmt.Sprintf("%s to %s %s", from.ID, c.RemoteAddr().Network(), c.RemoteAddr()), conn: c}
			answer, err := h.talk(s.t.Context())
			must(s.t, err)
			h.source = answer.Source
			out = append(out, h)
		}
	}
	return out
}

func (h *held) talk(ctx context.Context) (world.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return world.Exchange(ctx, h.conn, "held")
}

// checkHeld has connections go on, and the servers see the source that they saw first.
func (s *stage) checkHeld(when string, list []*held) {
	s.t.Helper()
	for _, h := range list {
		if a, err := h.talk(s.t.Context()); err != nil || a.Source != h.source {
			s.t.Errorf("%s: %s comes from %s (%v), came from %s", when, h.name, a.Source, err, h.source)
		}
	}
}

// TestMasquerade turns natOutgoing on and off and on while connections go on.
func TestMasquerade(t *testing.T) {
	s := newStage(t, keepSpared)
	services := s.serviceWays()
	s.put("gold", pool("gold", true))
	s.start()
	s.check("on", s.leaving(), s.staying(), services)
	translated := append(s.hold(s.one.Namespace, far...), s.hold(s.ray.Namespace, far...)...)
	inside := s.hold(s.one.Namespace, append(s.bus.Addrs(), spared...)...)

	s.put("gold", pool("gold", false))
	s.become("true sources outside", s.bare())
	s.check("off", s.staying(), services)
	s.checkHeld("off", translated)
	s.checkHeld("off", inside)
	untranslated := s.hold(s.one.Namespace, far...)

	s.put("gold", pool("gold", true))
	s.become("the nodes' addresses outside", s.leaving())
	s.check("on again", s.staying(), services)
	for _, list := range [][]*held{translated, inside, untranslated} {
		s.checkHeld("on again", list)
	}

	s.drop("gold")
	s.become("true sources again", s.bare())
	s.checkHeld("without a pool", translated)
	for _, n := range []*world.Node{s.a, s.b} {
		s.eventually("a ruleset without a nat chain", func() bool { return !strings.Contains(s.ruleset(n), "masquerade-v") })
	}
}

// TestPortsAreRandom has masquerade give away the ports that clients chose, which would
// be kept otherwise as long as they are free.
func TestPortsAreRandom(t *testing.T) {
	s := newStage(t)
	s.put("gold", pool("gold", true))
	s.start()
	for _, to := range far {
		kept := 0
		const flows = 16
		for range flows {
			c, err := s.one.DialUDP(netip.Addr{}, netip.AddrPortFrom(to, serves[1].Number))
			must(t, err)
			defer c.Close()
			answer, err := (&held{conn: c}).talk(t.Context())
			must(t, err)
			if answer.Source.Port() == c.LocalAddr().(*net.UDPAddr).AddrPort().Port() {
				kept++
			}
		}
		if kept > 1 {
			t.Errorf("%d of %d flows to %s kept their ports", kept, flows, to)
		}
	}
}

// TestWhichPools goes through what decides whether a node masquerades.
func TestWhichPools(t *testing.T) {
	s := newStage(t)
	s.start()
	// Nothing but the nodes' podCIDRs: pools without settings.
	s.check("without a pool", s.bare())
	if rules := s.ruleset(s.a); strings.Contains(rules, "masquerade-v") {
		t.Errorf("implicit pools masquerade:\n%s", rules)
	}

	s.put("gold", pool("gold", true, cidrs[policy.IPv4]))
	var want []way
	for i, w := range s.leaving() {
		if w.to.Addr().Is6() {
			w = s.bare()[i]
		}
		want = append(want, w)
	}
	s.become("masquerade of IPv4 alone", want)

	disabled := pool("gold", true)
	disabled.Spec.Disabled = true
	s.drop("gold")
	s.put("gold-both", disabled)
	s.become("masquerade of a disabled pool", s.leaving())

	// The pool of another address is a place to keep the source for.
	s.put("silver", pool("silver", false, single(far)...))
	s.become("true sources to another pool", s.bare())
	s.drop("silver")
	s.become("masquerade again", s.leaving())

	west := pool("gold", true)
	west.Spec.NodeSelector = zone("west")
	s.put("gold-both", west)
	half := append(s.leaving()[:8], s.bare()[8:]...)
	s.become("masquerade on the node in the west alone", half)
	s.declareNode(s.b, map[string]string{"zone": "west"})
	s.become("masquerade on the node that moved, too", s.leaving())
	s.declareNode(s.a, map[string]string{"zone": "east"})
	s.become("masquerade on that node alone", append(s.bare()[:8], s.leaving()[8:]...))
}

// ours counts what passed the agent's own rules in both families.
func (s *stage) ours(n *world.Node) string {
	s.t.Helper()
	var counts []string
	for _, f := range policy.Families {
		text, err := n.Run(s.t.Context(), "nft", "list", "table", f.String(), policy.TableName)
		must(s.t, err)
		rules := regexp.MustCompile(`counter packets (\d+) .* masquerade`).FindAllStringSubmatch(text, -1)
		if len(rules) == 0 {
			s.t.Fatalf("no rule that masquerades is in\n%s", text)
		}
		sum := 0
		for _, r := range rules {
			packets, err := strconv.Atoi(r[1])
			must(s.t, err)
			sum += packets
		}
		counts = append(counts, strconv.Itoa(sum))
	}
	return strings.Join(counts, " ")
}

// TestBesideFlannel has flannel's masquerade and the agent's beside each other: a flow
// is translated once, by flannel, which is first. Where no pool wants that, the agents
// say so.
func TestBesideFlannel(t *testing.T) {
	s := newStage(t, keepSpared, "--resync-interval=1s")
	s.put("gold", pool("gold", true))
	for _, n := range []*world.Node{s.a, s.b} {
		must(t, n.FlannelMasquerade(t.Context(), cidrs...))
	}
	s.start()
	s.check("both", s.leaving())
	if got := s.ours(s.a); got != "0 0" {
		t.Errorf("beside flannel's rules the agent's have translated %s flows", got)
	}
	must(t, s.a.FlannelMasquerade(t.Context()))
	s.check("flannel's on one node", s.leaving())
	// Two pods, to one address of each family, by two protocols.
	if got := s.ours(s.a); got != "4 4" {
		t.Errorf("without flannel's rules the agent's have translated %s flows", got)
	}

	s.put("gold", pool("gold", false))
	s.become("flannel's masquerade alone", append(s.bare()[:8], s.leaving()[8:]...))
	for i, found := range []int{absent, 1} {
		for _, family := range []string{"IPv4", "IPv6"} {
			must(t, s.agents[i].WaitMetric(t.Context(), fmt.Sprintf("selvage_base_masquerade{by=\"flannel\",family=%q}", family), found))
		}
		must(t, s.agents[i].WaitMetric(t.Context(), `selvage_conditions{reason="BaseCNIMasquerades"}`, max(0, found)))
	}
}

// absent is what a metric reads as that is not there.
const absent = -1
