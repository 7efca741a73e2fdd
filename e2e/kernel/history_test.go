package kernel

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
	"github.com/selvage-net/selvage/policy/policytest"
)

// held is a connection that a test keeps through changes of the cluster.
type held struct {
	net.Conn
	packet oracle.Packet
	name   string
}

// TestLiveFlowsFollowOracle opens connections in random clusters, changes the
// clusters at random, and wants each connection to pass packets exactly when
// the oracle would let it be opened anew. SELVAGE_CHECKS is half the number
// of judgements, SELVAGE_SEED repeats a failure.
func TestLiveFlowsFollowOracle(t *testing.T) {
	checks := 2 * envInt(t, "SELVAGE_CHECKS", 600)
	seed := envInt(t, "SELVAGE_SEED", rand.IntN(1<<30))
	t.Logf("SELVAGE_SEED=%d", seed)
	th := newTheatre(t)
	options := policytest.Options{Physical: true, Packets: 60}
	seen := map[world.Outcome]int{}
	done := 0
	for round := seed; done < checks; round++ {
		snapshot := policytest.Example(options, round).Snapshot
		var flows []held
		for step := range 6 {
			th.set(t, snapshot)
			flows = th.follow(t, flows, snapshot, fmt.Sprintf("SELVAGE_SEED=%d, step %d", round, step), seen)
			done += len(flows)
			packets := policytest.Packets(snapshot)
			w := policytest.World{Snapshot: snapshot}
			for i := range options.Packets {
				w.Packets = append(w.Packets, packets.Example(round+step+i))
			}
			flows = append(flows, th.hold(t, w)...)
			for i := range 1 + step%4 {
				snapshot = policytest.Next(options, snapshot).Example(round + step + 100*i)
			}
		}
		for _, f := range flows {
			f.end()
		}
	}
	t.Logf("connections judged: %v", seen)
	// A few hundred need not have one of each.
	if done >= 5000 && (seen[world.Allowed] == 0 || seen[world.Dropped] == 0) {
		t.Error("all had the same fate: the clusters say nothing")
	}
}

// hold opens a connection for every packet of TCP or UDP that is allowed.
func (th *theatre) hold(t *testing.T, w policytest.World) (flows []held) {
	t.Helper()
	probes, packets := th.probes(t, w)
	for i, p := range probes {
		if p.Want != world.Allowed || p.Protocol != policy.TCP && p.Protocol != policy.UDP {
			continue
		}
		f := held{packet: packets[i], name: fmt.Sprintf("%s from %s to %s (sent to %s)", p.Protocol, p.Src, packets[i].Dst, p.To)}
		var err error
		if p.Protocol == policy.TCP {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			f.Conn, err = p.From.DialTCP(ctx, p.Src, p.To)
			cancel()
		} else {
			f.Conn, err = p.From.DialUDP(p.Src, p.To)
		}
		if err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
		flows = append(flows, f)
	}
	want := make([]world.Outcome, len(flows))
	for i := range want {
		want[i] = world.Allowed
	}
	th.talk(t, flows, want, "when it was opened", w.Snapshot)
	return flows
}

// follow judges the connections by a snapshot and returns those that can be
// judged again.
func (th *theatre) follow(t *testing.T, flows []held, s policy.Snapshot, when string, seen map[world.Outcome]int) (left []held) {
	t.Helper()
	var judged []held
	var want []world.Outcome
	for _, f := range flows {
		// A pod that is gone sends nothing, so that nothing is done about its
		// connections until the address has another owner.
		if th.vacant(s, f.packet) {
			f.end()
			continue
		}
		judged, want = append(judged, f), append(want, th.Expect(s, f.packet))
		seen[want[len(want)-1]]++
	}
	th.talk(t, judged, want, when, s)
	for i, f := range judged {
		// TCP would try again for a long time what was cut.
		if _, tcp := f.Conn.(*net.TCPConn); tcp && want[i] != world.Allowed {
			f.end()
			continue
		}
		left = append(left, f)
	}
	return left
}

// vacant tells whether an end of the flow lies in a node's ranges and is no
// pod's.
func (th *theatre) vacant(s policy.Snapshot, p oracle.Packet) bool {
	return (th.at[p.Src] != nil && oracle.Owner(s, p.Src) == nil) || (th.at[p.Dst] != nil && oracle.Owner(s, p.Dst) == nil)
}

func (th *theatre) talk(t *testing.T, flows []held, want []world.Outcome, when string, s policy.Snapshot) {
	t.Helper()
	conns := make([]net.Conn, len(flows))
	for i := range flows {
		conns[i] = flows[i].Conn
	}
	for i, r := range th.Talk(t.Context(), conns, want) {
		if r.Outcome != want[i] {
			t.Fatalf("%s: %s: %v (%v), want %v\n%s", when, flows[i].name, r.Outcome, r.Err, want[i], manifests(t, s))
		}
	}
}

func (f held) end() {
	if c, ok := f.Conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	_ = f.Close()
}
