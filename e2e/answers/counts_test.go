package answers

import (
	"maps"
	"testing"
)

// The metrics of policies.
const (
	allowedTotal = "selvage_policy_allowed_connections_total"
	deniedTotal  = "selvage_policy_denied_packets_total"
)

// counted are what policies have let through and denied, as "namespace/name direction".
type counted struct{ allowed, denied map[string]int }

// counts reads what the agent shows of policies; what is 0 is left out.
func (s *stage) counts() counted {
	s.t.Helper()
	m := s.metrics()
	read := func(name string) map[string]int {
		all := map[string]int{}
		for _, ref := range []string{"shop/web-friend", "shop/web-cousin", "shop/web-more", "shop/shut-out", "ops/stats-in"} {
			for _, d := range []string{"ingress", "egress"} {
				if n := m.Sum(name, series(ref, d)); n > 0 {
					all[ref+" "+d] = int(n)
				}
			}
		}
		return all
	}
	return counted{read(allowedTotal), read(deniedTotal)}
}

// checkCounts compares what the agent shows with what was sent.
func (s *stage) checkCounts(when string, want counted) {
	s.t.Helper()
	got := s.counts()
	if !maps.Equal(got.allowed, want.allowed) {
		s.t.Errorf("%s: allowed connections are %v, want %v", when, got.allowed, want.allowed)
	}
	if !maps.Equal(got.denied, want.denied) {
		s.t.Errorf("%s: denied packets are %v, want %v", when, got.denied, want.denied)
	}
}

// TestCounts holds the metrics of policies against connections and packets that were
// made, over both families, while rules are written anew and agents come and go.
func TestCounts(t *testing.T) {
	s := newStage(t)
	traffic := func() {
		s.connect(s.friend, s.web, 3)
		s.connect(s.cousin, s.web, 2)
		s.connect(s.rogue, s.shut, 1) // which no policy is about
		s.send(s.rogue, s.web.Addrs(), 5)
		s.send(s.shut, s.outside.Addrs, 4)
		s.send(s.rogue, s.stats.Addrs(), 7)
	}
	s.checkCounts("before", counted{})
	traffic()
	once := counted{
		map[string]int{"shop/web-friend ingress": 6, "shop/web-cousin ingress": 4},
		map[string]int{"shop/web-friend ingress": 10, "shop/web-cousin ingress": 10, "shop/shut-out egress": 8, "ops/stats-in ingress": 14},
	}
	s.checkCounts("after", once)
	m := s.metrics()
	for _, tc := range []struct {
		labels Labels
		want   float64
	}{
		{Labels{"namespace": "shop", "direction": "ingress"}, 10},
		{Labels{"namespace": "shop", "direction": "egress"}, 8},
		{Labels{"namespace": "ops", "direction": "ingress"}, 14},
		{nil, 32},
	} {
		if got := m.Sum("selvage_denied_packets_total", tc.labels); got != tc.want {
			t.Errorf("denied packets of %v are %v, want %v", tc.labels, got, tc.want)
		}
	}

	// One more policy for web: its rules get other chains, and other counters. It opens
	// what web-friend does.
	s.change("web-more", ingress("web-more", "friend"))
	s.checkCounts("with other rules", once)
	traffic()
	twice := counted{map[string]int{"shop/web-more ingress": 6}, map[string]int{"shop/web-more ingress": 10}}
	for name, n := range once.allowed {
		twice.allowed[name] = 2 * n
	}
	for name, n := range once.denied {
		twice.denied[name] = 2 * n
	}
	s.checkCounts("of both", twice)

	// A new agent goes on with the counters that it finds.
	must(t, s.agent.Kill())
	must(t, s.agent.Start())
	must(t, s.agent.WaitReady(t.Context()))
	before := s.counts()
	traffic()
	after := s.counts()
	for name, n := range once.allowed {
		if got := after.allowed[name] - before.allowed[name]; got != n {
			t.Errorf("a new agent has %d more connections of %s, want %d", got, name, n)
		}
	}
	for name, n := range once.denied {
		if got := after.denied[name] - before.denied[name]; got != n {
			t.Errorf("a new agent has %d more denied packets of %s, want %d", got, name, n)
		}
	}
}
