package kernel

import (
	"net/netip"
	"testing"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

// TestTighteningCutsFlows opens connections of every kind, tightens the
// policies, and wants those that lost their permission to be cut in both
// directions at once, and all others to live on.
func TestTighteningCutsFlows(t *testing.T) {
	c := newCast(t)
	server := c.add(t, c.a, "server", world.Bridged)
	// Those of role stay keep their permission; role gone loses it at the
	// server, role left at the client.
	clients := []leaver{
		{"same bridge", c.add(t, c.a, "stay1", world.Bridged), false},
		{"same bridge", c.add(t, c.a, "gone1", world.Bridged), true},
		{"routed", c.add(t, c.a, "stay2", world.Routed), false},
		{"routed", c.add(t, c.a, "gone2", world.Routed), true},
		{"other node", c.add(t, c.b, "stay3", world.Bridged), false},
		{"other node", c.add(t, c.b, "gone3", world.Bridged), true},
		{"egress", c.add(t, c.a, "left1", world.Bridged), true},
		{"egress, other node", c.add(t, c.b, "left2", world.Routed), true},
	}
	vips := serviceFor(t, c, server)
	gone := np("gone", "server", "ingress: [{from: ["+peer("gone")+"]}]")
	stay := np("stay", "server", "ingress: [{from: ["+peer("stay")+", "+peer("left")+"]}]")
	left := np("left", "left", "policyTypes: [Egress], egress: [{to: ["+peer("server")+"]}]")
	closed := np("left", "left", "policyTypes: [Egress], egress: [{to: ["+peer("gone")+"]}]")
	c.set(t, c.snapshot(t, gone+stay+left))

	cut, kept := openAll(t, clients, server, vips)

	before := c.a.enforcer.Generation()
	c.set(t, c.snapshot(t, gone+stay+left+np("more", "server", "ingress: [{from: ["+peer("nobody")+"]}]")))
	if after := c.a.enforcer.Generation(); after != before {
		t.Errorf("a permissive change made generation %d of %d", after, before)
	}
	live(t, "after a permissive change", true, append(kept, cut...)...)

	c.set(t, c.snapshot(t, stay+closed))
	if after := c.a.enforcer.Generation(); after == before {
		t.Errorf("a restrictive change left generation %d", after)
	}
	live(t, "after tightening", false, cut...)
	live(t, "after tightening", true, kept...)

	// The values of the generation are few. A flow that says nothing for a whole
	// round must not pass for judged after it.
	idle, talking := cut, kept
	for range policy.DefaultMarkMask.Max() + 1 {
		c.set(t, c.snapshot(t, stay+closed+np("more", "server", "ingress: [{from: ["+peer("nobody")+"]}]")))
		c.set(t, c.snapshot(t, stay+closed))
	}
	live(t, "after a round of all generations", false, idle...)
	live(t, "after a round of all generations", true, talking...)
}

// leaver is a client of the story, and whether it loses its permission.
type leaver struct {
	name string
	*actor
	cut bool
}

// serviceFor has both nodes rewrite 100 ports of a virtual address to ports of
// the server, 4000 below.
func serviceFor(t *testing.T, c *cast, server *actor) (vips []netip.Addr) {
	t.Helper()
	vips = []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")}
	var services []world.Service
	for _, proto := range []policy.Protocol{policy.TCP, policy.UDP} {
		for port := uint16(1000); port < 1100; port++ {
			services = append(services, world.Service{Addrs: vips, Protocol: proto, Port: port + 4000, Backends: []netip.AddrPort{
				netip.AddrPortFrom(server.Addrs()[0], port), netip.AddrPortFrom(server.Addrs()[1], port),
			}})
		}
	}
	for _, n := range []*enforced{c.a, c.b} {
		must(t, n.SetServices(t.Context(), services...))
	}
	return vips
}

// openAll opens connections of each client over both families and protocols,
// directly and through the Service, each to a port of its own.
func openAll(t *testing.T, clients []leaver, server *actor, vips []netip.Addr) (cut, kept []*flow) {
	t.Helper()
	port := uint16(1000)
	for _, cl := range clients {
		for _, f := range policy.Families {
			for _, proto := range []policy.Protocol{policy.TCP, policy.UDP} {
				for _, to := range []netip.AddrPort{netip.AddrPortFrom(server.Addr(f), port), netip.AddrPortFrom(vips[f], port+4001)} {
					at := netip.AddrPortFrom(server.Addr(f), port)
					name := cl.name
					if to.Addr() == vips[f] {
						at = netip.AddrPortFrom(server.Addr(f), port+1)
						name += ", through a Service"
					}
					fl := open(t, name, proto, cl.Namespace, to, server.Pod, at)
					if cl.cut {
						cut = append(cut, fl)
					} else {
						kept = append(kept, fl)
					}
				}
				port += 2
			}
		}
	}
	return cut, kept
}

// TestInstall opens connections before there are any rules, as on a node whose
// pods run already. Those that policy allows live on, the others end.
func TestInstall(t *testing.T) {
	c := newCast(t)
	server := c.add(t, c.a, "server", world.Bridged)
	clients := []leaver{
		{"same bridge", c.add(t, c.a, "stay1", world.Bridged), false},
		{"same bridge", c.add(t, c.a, "gone1", world.Bridged), true},
		{"routed", c.add(t, c.a, "gone2", world.Routed), true},
		{"other node", c.add(t, c.b, "stay3", world.Bridged), false},
		{"other node", c.add(t, c.b, "gone3", world.Bridged), true},
	}
	// What rewrites Services has conntrack know all flows, as on every node.
	cut, kept := openAll(t, clients, server, serviceFor(t, c, server))
	c.set(t, c.snapshot(t, np("stay", "server", "ingress: [{from: ["+peer("stay")+"]}]")))
	live(t, "after the rules came", false, cut...)
	live(t, "after the rules came", true, kept...)
}

// TestCleanup opens everything again that the rules had closed, and leaves
// nothing of them.
func TestCleanup(t *testing.T) {
	c := newCast(t)
	server, client := c.add(t, c.a, "server", world.Bridged), c.add(t, c.a, "client", world.Bridged)
	c.serveAll(t)
	before := listing(t, c.a.Node)
	c.set(t, c.snapshot(t, np("server", "server", "ingress: []")))
	c.expect(t, both("with rules", client.Namespace, server.Addrs(), policy.TCP, 80, world.Dropped)...)
	removed, err := openConn(t, c.a.Node).Cleanup()
	must(t, err)
	if after := listing(t, c.a.Node); !removed || after != before {
		t.Errorf("removed: %v, and left\n%s", removed, after)
	}
	c.expect(t, both("without", client.Namespace, server.Addrs(), policy.TCP, 80, world.Allowed)...)
}
