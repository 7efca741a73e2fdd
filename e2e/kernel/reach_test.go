package kernel

import (
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

var web = []world.Port{{Protocol: policy.TCP, Number: 80}, {Protocol: policy.UDP, Number: 80}, {Protocol: policy.TCP, Number: 81}}

// serveAll has all actors and hosts answer.
func (c *cast) serveAll(t *testing.T) {
	t.Helper()
	for _, a := range c.actors {
		must(t, a.Serve(web...))
	}
	for _, n := range c.Nodes() {
		must(t, n.Serve(web...))
	}
}

const sealedBoth = "policyTypes: [Ingress, Egress]"

// TestBridgeAlone wants the switch of the pods' bridge to be what lets the rules
// see traffic between two pods on it, while that of the namespace is off.
func TestBridgeAlone(t *testing.T) {
	c := newCast(t)
	server, client := c.add(t, c.a, "server", world.Bridged), c.add(t, c.a, "client", world.Bridged)
	c.serveAll(t)
	c.set(t, c.snapshot(t, np("server", "server", "ingress: []")))
	c.expect(t, both("switch on", client.Namespace, server.Addrs(), policy.TCP, 80, world.Dropped)...)
	must(t, c.a.SetBridgeFiltering(t.Context(), false))
	c.expect(t, both("switch off", client.Namespace, server.Addrs(), policy.TCP, 80, world.Allowed)...)
	must(t, c.a.SetBridgeFiltering(t.Context(), true))
	c.expect(t, both("switch on again", client.Namespace, server.Addrs(), policy.UDP, 80, world.Dropped)...)
}

// TestStartGap lets a pod speak and be spoken to before policy knows it. Not a
// packet may pass, though nothing isolates it, until it is known.
func TestStartGap(t *testing.T) {
	c := newCast(t)
	for _, at := range []world.Attachment{world.Bridged, world.Routed} {
		newcomer := c.add(t, c.a, "new"+at.String(), at)
		neighbour, far := c.add(t, c.a, "near"+at.String(), world.Bridged), c.add(t, c.b, "far"+at.String(), world.Bridged)
		c.serveAll(t)
		try := func(want world.Outcome) {
			t.Helper()
			var all []sends
			for _, other := range []*actor{neighbour, far} {
				for _, proto := range []policy.Protocol{policy.TCP, policy.UDP} {
					all = append(all, both("from the "+at.String()+" newcomer", newcomer.Namespace, other.Addrs(), proto, 80, want)...)
					all = append(all, both("to the "+at.String()+" newcomer", other.Namespace, newcomer.Addrs(), proto, 80, want)...)
				}
			}
			// The kubelet reaches it all the same.
			all = append(all, both("from its node", c.a.Namespace, newcomer.Addrs(), policy.TCP, 80, world.Allowed)...)
			c.expect(t, all...)
		}
		c.set(t, c.snapshot(t, "", newcomer.Name))
		try(world.Dropped)
		c.set(t, c.snapshot(t, ""))
		try(world.Allowed)
		c.set(t, c.snapshot(t, "", newcomer.Name))
		try(world.Dropped)
	}
}

// TestItself wants a pod that is isolated from everything to reach itself, by
// its address and through a Service.
func TestItself(t *testing.T) {
	c := newCast(t)
	vips := []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")}
	for _, at := range []world.Attachment{world.Bridged, world.Routed} {
		self, other := c.add(t, c.a, "self"+at.String(), at), c.add(t, c.a, "other"+at.String(), world.Bridged)
		c.serveAll(t)
		service := world.Service{Addrs: vips, Protocol: policy.TCP, Port: 8080}
		for _, a := range self.Addrs() {
			service.Backends = append(service.Backends, netip.AddrPortFrom(a, 80))
		}
		must(t, c.a.SetServices(t.Context(), service))
		c.set(t, c.snapshot(t, np("self", "self"+at.String(), sealedBoth)))
		c.expect(t, slices.Concat(
			both("itself", self.Namespace, self.Addrs(), policy.TCP, 80, world.Allowed),
			both("itself through a Service", self.Namespace, vips, policy.TCP, 8080, world.Allowed),
			both("another", other.Namespace, self.Addrs(), policy.TCP, 80, world.Dropped),
			both("another through the Service", other.Namespace, vips, policy.TCP, 8080, world.Dropped),
			both("from itself to another", self.Namespace, other.Addrs(), policy.TCP, 80, world.Dropped),
		)...)
	}
}

// TestNode wants traffic between a pod and its own node to pass whatever the
// policies, and that of other nodes to be judged like any other.
func TestNode(t *testing.T) {
	c := newCast(t)
	sealed, routed := c.add(t, c.a, "sealed1", world.Bridged), c.add(t, c.a, "sealed2", world.Routed)
	c.serveAll(t)
	c.set(t, c.snapshot(t, np("sealed", "sealed", sealedBoth)))
	for _, p := range []*actor{sealed, routed} {
		for _, proto := range []policy.Protocol{policy.TCP, policy.UDP} {
			c.expect(t, slices.Concat(
				both("node to its pod", c.a.Namespace, p.Addrs(), proto, 80, world.Allowed),
				both("pod to its node", p.Namespace, c.a.Addrs, proto, 80, world.Allowed),
				both("pod to its gateway", p.Namespace, c.a.Gateways(), proto, 80, world.Allowed),
				both("other node to the pod", c.b.Namespace, p.Addrs(), proto, 80, world.Dropped),
				both("pod to another node", p.Namespace, c.b.Addrs, proto, 80, world.Dropped),
				both("from outside", c.outside.Namespace, p.Addrs(), proto, 80, world.Dropped),
				both("to outside", p.Namespace, c.outside.Addrs, proto, 80, world.Dropped),
			)...)
		}
	}
}

// TestHostNetwork wants a pod that shares its node's network to be neither
// isolated nor taken for a peer: its address is the node's.
func TestHostNetwork(t *testing.T) {
	c := newCast(t)
	server, client := c.add(t, c.a, "server", world.Bridged), c.add(t, c.a, "client", world.Bridged)
	c.serveAll(t)
	s := c.snapshot(t, np("server", "server", "ingress: [{from: ["+peer("host")+"]}]")+np("host", "host", sealedBoth))
	s.Pods = append(s.Pods, &policy.Pod{
		Meta: policy.Meta{Namespace: "red", Name: "host", UID: types.UID("host")}, Node: policytest.NodeB, HostNetwork: true,
		Labels: policy.NewLabels(map[string]string{"role": "host"}), Addrs: c.b.Addrs,
	})
	c.set(t, s)
	c.expect(t, slices.Concat(
		both("a policy for the pod does not close the node", client.Namespace, c.b.Addrs, policy.TCP, 80, world.Allowed),
		both("nor what the node sends", c.b.Namespace, client.Addrs(), policy.TCP, 80, world.Allowed),
		both("nor does a peer open a pod to it", c.b.Namespace, server.Addrs(), policy.TCP, 80, world.Dropped),
	)...)
}

// TestPodToNodePolicy subjects what a pod sends to its own node to its egress
// policies.
func TestPodToNodePolicy(t *testing.T) {
	c := newCast(t)
	cfg := policy.DefaultConfig(c.a.Name)
	cfg.PodToNode = policy.PodToNodePolicy
	c.a = enforce(t, c.a.Node, cfg)
	sealed, free := c.add(t, c.a, "sealed", world.Bridged), c.add(t, c.a, "free", world.Routed)
	some := c.add(t, c.a, "some", world.Routed)
	c.serveAll(t)
	c.set(t, c.snapshot(t, np("sealed", "sealed", sealedBoth)+
		np("some", "some", `policyTypes: [Egress], egress: [{ports: [{port: 80}], to: [{ipBlock: {cidr: 192.168.0.0/24}}, {ipBlock: {cidr: "fd00:ff::/64"}}]}]`)))
	c.expect(t, slices.Concat(
		both("isolated pod to its node", sealed.Namespace, c.a.Addrs, policy.TCP, 80, world.Dropped),
		both("isolated pod to its gateway", sealed.Namespace, c.a.Gateways(), policy.UDP, 80, world.Dropped),
		both("node to the isolated pod", c.a.Namespace, sealed.Addrs(), policy.TCP, 80, world.Allowed),
		both("free pod to its node", free.Namespace, c.a.Addrs, policy.TCP, 81, world.Allowed),
		both("allowed port of the node", some.Namespace, c.a.Addrs, policy.TCP, 80, world.Allowed),
		both("other port of the node", some.Namespace, c.a.Addrs, policy.TCP, 81, world.Dropped),
		both("node to itself", c.a.Namespace, c.a.Addrs, policy.TCP, 80, world.Allowed),
		both("outside to the node", c.outside.Namespace, c.a.Addrs, policy.TCP, 80, world.Allowed),
	)...)
}

// TestReject answers what it denies.
func TestReject(t *testing.T) {
	c := newCast(t)
	cfg := policy.DefaultConfig(c.a.Name)
	cfg.DenyAction = policy.DenyReject
	c.a = enforce(t, c.a.Node, cfg)
	var all []sends
	server := c.add(t, c.a, "server", world.Bridged)
	for name, client := range map[string]*actor{
		"same bridge": c.add(t, c.a, "one", world.Bridged), "routed": c.add(t, c.a, "two", world.Routed), "other node": c.add(t, c.b, "three", world.Bridged),
	} {
		for _, proto := range []policy.Protocol{policy.TCP, policy.UDP} {
			all = append(all, both(name, client.Namespace, server.Addrs(), proto, 80, world.Refused)...)
		}
	}
	c.serveAll(t)
	c.set(t, c.snapshot(t, np("server", "server", "ingress: []")))
	c.expect(t, all...)
}

// TestReusedAddress gives the address of a pod that has finished, and that
// policy still hears of, to another pod.
func TestReusedAddress(t *testing.T) {
	c := newCast(t)
	server, client := c.add(t, c.a, "server", world.Bridged), c.add(t, c.a, "client", world.Bridged)
	c.serveAll(t)
	allow := np("server", "server", "ingress: [{from: ["+peer("client")+"]}]")
	c.set(t, c.snapshot(t, allow))
	c.expect(t, both("before", client.Namespace, server.Addrs(), policy.TCP, 80, world.Allowed)...)
	var flows []*flow
	for _, a := range server.Addrs() {
		for _, proto := range []policy.Protocol{policy.TCP, policy.UDP} {
			at := netip.AddrPortFrom(a, 1000)
			flows = append(flows, open(t, "from the address", proto, client.Namespace, at, server.Pod, at))
		}
	}

	s := c.snapshot(t, allow)
	for i, p := range s.Pods {
		if p.Name == "client" {
			finished := *p
			finished.Finished = true
			heir := *p
			heir.Meta = policy.Meta{Namespace: "red", Name: "heir", UID: "heir"}
			heir.Labels, heir.Created = policy.NewLabels(map[string]string{"role": "heir"}), p.Created+1
			s.Pods[i] = &finished
			s.Pods = append(s.Pods, &heir)
		}
	}
	c.set(t, s)
	c.expect(t, both("the address has another owner", client.Namespace, server.Addrs(), policy.TCP, 80, world.Dropped)...)
	live(t, "with another owner of the address", false, flows...)
}

// TestLinkLocal wants the addresses that every interface has by itself to be no
// way around policy: two pods on a bridge reach each other by them.
func TestLinkLocal(t *testing.T) {
	c := newCast(t)
	server, client := c.add(t, c.a, "server", world.Bridged), c.add(t, c.a, "client", world.Bridged)
	local, zone := linkLocal(t, server.Pod)
	must(t, server.Namespace.Serve([]netip.Addr{local.WithZone(zone)}, web...))
	_, zone = linkLocal(t, client.Pod)
	to := both("link-local", client.Namespace, []netip.Addr{local.WithZone(zone)}, policy.TCP, 80, world.Unknown)
	to = append(to, both("link-local", client.Namespace, []netip.Addr{local.WithZone(zone)}, policy.UDP, 80, world.Unknown)...)
	for policies, want := range map[string]world.Outcome{"": world.Allowed, np("server", "server", "ingress: []"): world.Dropped} {
		c.set(t, c.snapshot(t, policies))
		for i := range to {
			to[i].Want = want
		}
		c.expect(t, to...)
	}
}

// linkLocal returns the link-local address of a pod, and the zone that it has
// inside: the number of eth0.
func linkLocal(t *testing.T, p *world.Pod) (addr netip.Addr, zone string) {
	t.Helper()
	eth0, err := p.Netlink().LinkByName("eth0")
	must(t, err)
	for {
		list, err := p.Netlink().AddrList(eth0, netlink.FAMILY_V6)
		must(t, err)
		for _, a := range list {
			if got, ok := netip.AddrFromSlice(a.IP); ok && got.IsLinkLocalUnicast() {
				return got, strconv.Itoa(eth0.Attrs().Index)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}
