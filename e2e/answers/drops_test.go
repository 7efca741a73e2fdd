package answers

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/selvage-net/selvage/policy"
)

// drops returns what `selvage drops` shows, in one line each: who isolates, the pods or
// addresses of both ends, the port, and the policies.
func (s *stage) drops(args ...string) []string {
	s.t.Helper()
	r := s.run(append([]string{"drops", "-o", "json"}, args...)...)
	if r.Code != 0 {
		s.t.Fatalf("drops ends with %d: %s", r.Code, r.Err)
	}
	type end struct {
		Namespace, Pod string
		Address        netip.Addr
	}
	var all []string
	for line := range strings.Lines(r.Out) {
		var d struct {
			Node, Direction, Reason, Protocol string
			Source, Destination               end
			Port                              uint16
			Policies                          []struct{ Namespace, Name string }
		}
		must(s.t, json.Unmarshal([]byte(line), &d))
		if d.Node != s.node.Name {
			s.t.Errorf("a drop of %q", d.Node)
		}
		who := func(e end) string { return fmt.Sprintf("%s/%s %s", e.Namespace, e.Pod, e.Address) }
		all = append(all, fmt.Sprintf("%s %s: %s to %s %d/%s %v", d.Reason, d.Direction, who(d.Source), who(d.Destination), d.Port, d.Protocol, d.Policies))
	}
	return all
}

// awaitDrops waits until all of these are shown.
func (s *stage) awaitDrops(want ...string) {
	s.t.Helper()
	var got []string
	defer func() {
		if s.t.Failed() {
			s.t.Logf("shown were\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}()
	s.eventually("the drops", func() bool {
		got = s.drops()
		return !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(got, w) })
	})
}

// TestDrops has `selvage drops` name both ends and the policies, over both families, of
// what is denied to a pod, from a pod, to a flow that was allowed, and to an address that
// no pod is known to have.
func TestDrops(t *testing.T) {
	s := newStage(t)
	var flows []*net.UDPConn
	for _, a := range s.web.Addrs() {
		c, err := s.cousin.DialUDP(netip.Addr{}, netip.AddrPortFrom(a, udpPort))
		must(t, err)
		t.Cleanup(func() { c.Close() })
		s.talk(c)
		flows = append(flows, c)
	}
	s.send(s.rogue, s.web.Addrs(), 1)
	s.send(s.shut, s.outside.Addrs, 1)
	s.send(s.ghost, s.friend.Addrs(), 1)
	var want []string
	for _, f := range policy.Families {
		rogue, web, shut, outside := s.rogue.Addr(f), s.web.Addr(f), s.shut.Addr(f), s.outside.Addr(f)
		want = append(want,
			fmt.Sprintf("Policy ingress: shop/rogue %s to shop/web %s 53/UDP [{shop web-cousin} {shop web-friend}]", rogue, web),
			fmt.Sprintf("Policy egress: shop/shut %s to / %s 53/UDP [{shop shut-out}]", shut, outside),
			fmt.Sprintf("UnknownPod egress: / %s to shop/friend %s 53/UDP []", s.ghost.Addr(f), s.friend.Addr(f)))
	}
	s.awaitDrops(want...)
	if all := s.drops("--pod", "cousin"); len(all) > 0 {
		t.Errorf("drops of who was allowed: %q", all)
	}

	// cousin is let in no more: what is denied is the next packet of its flows.
	s.change("web-cousin", netpol("web-cousin", "shop", "web", networkingv1.PolicyTypeIngress))
	for i, flow := range flows {
		_, err := flow.Write([]byte("denied"))
		must(t, err)
		want = append(want, fmt.Sprintf("Policy ingress: shop/cousin %s to shop/web %s 53/UDP [{shop web-cousin} {shop web-friend}]", s.cousin.Addr(policy.Families[i]), s.web.Addr(policy.Families[i])))
	}
	s.awaitDrops(want...)
	if all := s.drops("--pod", "cousin", "-n", "shop", "--direction", "ingress"); len(all) != len(flows) {
		t.Errorf("drops of cousin: %q", all)
	}
}
