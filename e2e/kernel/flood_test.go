package kernel

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
)

// TestFlood floods a server with flows that are allowed at all times and flows
// that never are, while policies, peers and generations change under them, and
// agents come and go. Not one packet of the ones may be lost to the rules, not
// one of the others may pass. Both are counted right before and right after
// the rules, so that no queue of the kernel and no slow receiver has a say.
func TestFlood(t *testing.T) {
	c := newCast(t)
	f := &flood{cast: c, server: c.add(t, c.a, "server", world.Bridged)}
	f.server.known.Ports = []policy.NamedPort{{Name: "dns", Protocol: policy.UDP, Port: 53}, {Name: "http", Protocol: policy.TCP, Port: 80}}
	f.ok = []*actor{c.add(t, c.a, "ok1", world.Bridged), c.add(t, c.a, "ok2", world.Routed), c.add(t, c.b, "ok3", world.Bridged)}
	f.no = []*actor{
		c.add(t, c.a, "shut1", world.Bridged), c.add(t, c.a, "shut2", world.Routed), c.add(t, c.b, "shut3", world.Bridged),
		c.add(t, c.a, "mute1", world.Bridged), c.add(t, c.b, "mute2", world.Bridged),
	}
	seed := envInt(t, "SELVAGE_SEED", rand.IntN(1<<30))
	t.Logf("SELVAGE_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 0))
	c.set(t, f.change(t, rng))
	stop := f.start(t, c.a, c.b)
	changes, generations := min(1000, envInt(t, "SELVAGE_CHECKS", 100)), 0
	for i := range changes {
		if i%20 == 19 {
			c.a.restart(t)
			c.b.restart(t)
		}
		s := f.change(t, rng)
		for _, n := range []*enforced{c.a, c.b} {
			if n.set(t, s).Tightened {
				generations++
			}
		}
		time.Sleep(time.Duration(rng.IntN(10)) * time.Millisecond)
	}
	stop()
	t.Logf("%d changes, %d new generations", changes, generations)
	if generations < changes/10 {
		t.Error("too few changes were restrictive for this to mean anything")
	}
	f.judge(t)
}

type flood struct {
	*cast
	server *actor
	ok, no []*actor

	watched []watched
	// connected and failed count connections that should be made.
	connected, failed atomic.Uint64
	failure           atomic.Pointer[error]
}

// watched are the counters around the rules of a node.
type watched struct {
	node          *enforced
	before, after *world.Watch
}

// start has all clients send, and counts at the given nodes, until stop is
// called.
func (f *flood) start(t *testing.T, nodes ...*enforced) (stop func()) {
	t.Helper()
	must(t, f.server.Serve(world.Port{Protocol: policy.UDP, Number: 53}, world.Port{Protocol: policy.TCP, Number: 80}))
	f.watch(t, nodes...)
	ctx, cancel := context.WithCancel(t.Context())
	var senders sync.WaitGroup
	for _, a := range slices.Concat(f.ok, f.no) {
		for _, to := range f.server.Addrs() {
			senders.Go(func() { f.udp(ctx, a, netip.AddrPortFrom(to, 53)) })
			senders.Go(func() { f.tcp(ctx, a, netip.AddrPortFrom(to, 80), slices.Contains(f.ok, a)) })
		}
	}
	return func() {
		cancel()
		senders.Wait()
		f.settle(t)
	}
}

// watch counts requests and answers of each client on both nodes. Of TCP it
// counts the openings: a segment behind a reset is nobody's.
func (f *flood) watch(t *testing.T, nodes ...*enforced) {
	t.Helper()
	matches := map[string]string{}
	for _, a := range slices.Concat(f.ok, f.no) {
		for _, addr := range a.Addrs() {
			fam := policy.FamilyOf(addr)
			name, server := counterName(a, addr), f.server.Addr(fam)
			matches[name+"_udp"] = fmt.Sprintf("%s saddr %s %s daddr %s udp dport 53", fam, addr, fam, server)
			matches[name+"_answer"] = fmt.Sprintf("%s saddr %s %s daddr %s udp sport 53", fam, server, fam, addr)
			matches[name+"_tcp"] = fmt.Sprintf("%s saddr %s %s daddr %s tcp flags & (syn|ack|rst) == syn", fam, addr, fam, server)
		}
	}
	for _, n := range nodes {
		before, err := n.Watch(t.Context(), "forward", -300, matches)
		must(t, err)
		after, err := n.Watch(t.Context(), "forward", 300, matches)
		must(t, err)
		f.watched = append(f.watched, watched{n, before, after})
	}
}

// udp sends without pause but for what keeps the machine usable: most packets
// on flows that exist, some on new ones.
func (f *flood) udp(ctx context.Context, a *actor, to netip.AddrPort) {
	var conns [8]*net.UDPConn
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	for i := 0; ctx.Err() == nil; i++ {
		slot := &conns[i%len(conns)]
		if *slot == nil || i%61 == 0 {
			if *slot != nil {
				_ = (*slot).Close()
			}
			c, err := a.DialUDP(netip.Addr{}, to)
			if err != nil {
				f.fail(err)
				return
			}
			*slot = c
		}
		_, _ = (*slot).Write([]byte("flood")) // an answer that came as an error is counted by the kernel
		if i%8 == 7 {
			time.Sleep(4 * time.Millisecond)
		}
	}
}

// tcp opens connection after connection.
func (f *flood) tcp(ctx context.Context, a *actor, to netip.AddrPort, allowed bool) {
	for ctx.Err() == nil {
		wait := 10 * time.Millisecond
		if allowed {
			wait = patience
		}
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait)
		c, err := a.DialTCP(attempt, netip.Addr{}, to)
		cancel()
		if err == nil {
			_ = c.SetLinger(0)
			_ = c.Close()
			f.connected.Add(1)
		} else if allowed {
			f.fail(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (f *flood) fail(err error) {
	f.failed.Add(1)
	f.failure.Store(&err)
}

// judge compares the counters.
func (f *flood) judge(t *testing.T) {
	t.Helper()
	var passed, held uint64
	for _, w := range f.watched {
		before, after := w.settled(t)
		for name, n := range before {
			role := name[:2]
			switch {
			case role == "ok" && after[name] != n:
				t.Errorf("%s: %d packets of %s came to the rules, %d went on: allowed packets were dropped", w.node.Name, n, name, after[name])
			case role == "ok":
				passed += n
			case w.node == f.a && after[name] > 0:
				t.Errorf("%s: %d packets of %s went on that policy never allowed", w.node.Name, after[name], name)
			default:
				held += n - after[name]
			}
		}
	}
	if n := f.failed.Load(); n > 0 {
		t.Errorf("%d allowed connections failed, the last with: %v", n, *f.failure.Load())
	}
	t.Logf("%d packets passed, %d were held, %d connections", passed, held, f.connected.Load())
	if passed < 1000 || held < 1000 || f.connected.Load() == 0 {
		t.Error("too little happened for this to mean anything")
	}
}

// settled reads the counters once no more packets come.
func (w watched) settled(t *testing.T) (before, after map[string]uint64) {
	t.Helper()
	for {
		first, err := w.before.Packets(t.Context())
		must(t, err)
		time.Sleep(50 * time.Millisecond)
		after, err = w.after.Packets(t.Context())
		must(t, err)
		before, err = w.before.Packets(t.Context())
		must(t, err)
		if maps.Equal(first, before) {
			return before, after
		}
	}
}

// restart has the node's enforcer come back as a new agent would: knowing
// nothing but the kernel and the cluster.
func (e *enforced) restart(t *testing.T) {
	t.Helper()
	s := e.snapshot
	must(t, e.enforcer.Close())
	*e = *enforce(t, e.Node, policy.DefaultConfig(e.Name))
	e.set(t, s)
}

// change draws a state of the cluster in which the clients ok may use the
// server, and the clients no and mute may not.
func (f *flood) change(t *testing.T, rng *rand.Rand) policy.Snapshot {
	t.Helper()
	one := func(of ...string) string { return of[rng.IntN(len(of))] }
	ports := one(
		"", ", ports: [{port: 53, protocol: UDP}, {port: 80}]", ", ports: [{port: dns, protocol: UDP}, {port: http}]",
		", ports: [{port: 50, endPort: 60, protocol: UDP}, {port: 1, endPort: 80}]", ", ports: [{protocol: UDP}, {protocol: TCP}]")
	var clients, server []string
	for _, a := range f.ok {
		for _, addr := range a.Addrs() {
			clients = append(clients, fmt.Sprintf("{ipBlock: {cidr: %q}}", netip.PrefixFrom(addr, addr.BitLen())))
		}
	}
	for _, addr := range f.server.Addrs() {
		server = append(server, fmt.Sprintf("{ipBlock: {cidr: %q}}", netip.PrefixFrom(addr, addr.BitLen())))
	}
	from := one(peer("ok"), peer("ok")+", "+peer("noise"), strings.Join(clients, ", "), peer("guest")+", "+peer("ok"),
		"{podSelector: {matchExpressions: [{key: role, operator: In, values: [ok, noise]}]}}",
		"{podSelector: {matchExpressions: [{key: role, operator: NotIn, values: [shut, mute]}]}}")
	all := np("serve", "server", "ingress: [{from: ["+from+"]"+ports+"}"+one("", ", {from: ["+peer("guest")+"]}", ", {ports: [{port: 9}]}")+"]")
	for i := range 3 {
		if rng.IntN(2) == 0 {
			all += np(fmt.Sprintf("more%d", i), "server", "ingress: [{from: ["+peer(one("guest", "noise"))+"], ports: [{port: "+one("53", "54", "55")+", protocol: UDP}]}]")
		}
	}
	// What nobody may say in either direction.
	all += np("mute", "mute", "policyTypes: [Egress], egress: ["+one("", "{to: ["+peer("guest")+"]}", "{ports: [{port: 9}]}", "{to: [{ipBlock: {cidr: 203.0.113.0/24}}]}")+"]")
	all += np("serve-mute", "server", "ingress: [{from: ["+peer("guest")+"]}]")
	if rng.IntN(2) == 0 {
		to := one(peer("server"), peer("guest")+", "+peer("server"), strings.Join(server, ", "))
		all += np("ask", "ok", "policyTypes: [Egress], egress: [{to: ["+to+"]"+ports+"}]")
	}
	s := f.snapshot(t, all)
	for i := range rng.IntN(6) {
		node := one(policytest.NodeA, policytest.NodeB)
		s.Pods = append(s.Pods, &policy.Pod{
			Meta: policy.Meta{Namespace: "red", Name: fmt.Sprintf("noise-%d-%d", i, rng.IntN(3))}, Node: node,
			Labels: policy.NewLabels(map[string]string{"role": one("noise", "guest", "ok", "shut")}), Addrs: addrsOf(node, 100+10*i+rng.IntN(5)),
		})
	}
	return s
}
