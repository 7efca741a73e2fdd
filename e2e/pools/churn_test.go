package pools

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/world"
)

// many are pools of addresses that no pod has.
func many(n int) []any {
	var out []any
	for i := range n {
		out = append(out, pool(fmt.Sprintf("spare-%d", i), i%2 == 0,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64 + byte(i/256), byte(i), 0}), 28),
			netip.MustParsePrefix(fmt.Sprintf("fd00:1178:%x::/64", i))))
	}
	return out
}

// changePools changes the pools of the pods and some of the others at random. What the
// pods have may be one pool, one for each node or none.
func (s *stage) changePools(rng *rand.Rand, there map[string]bool, spare []any) {
	put := func(name string, blocks []netip.Prefix, rivals ...string) {
		for _, r := range rivals {
			if there[r] {
				s.drop(r)
				there[r] = false
			}
		}
		s.put(name, pool(name, rng.IntN(4) > 0, blocks...))
		there[name] = true
	}
	switch rng.IntN(6) {
	case 0:
		put("gold", cidrs, "west", "east")
	case 1:
		put("west", cidrsA, "gold")
	case 2:
		put("east", cidrsB, "gold")
	case 3, 4:
		for name, is := range there {
			if is && rng.IntN(2) == 0 {
				s.drop(name)
				there[name] = false
			}
		}
	default:
		from := rng.IntN(len(spare))
		s.put("spare", spare[from:from+rng.IntN(len(spare)-from)]...)
		s.put("spare", spare...)
	}
}

// echoes are connections that are made and used until stop, and what was wrong.
type echoes struct {
	stop  context.Context
	mu    sync.Mutex
	wrong []string
	made  int
	wg    sync.WaitGroup
}

func (e *echoes) note(wrong string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.made++
	if wrong != "" {
		e.wrong = append(e.wrong, wrong)
	}
}

// connect makes one connection after the other, each of which must be answered to one
// of its sources.
func (e *echoes) connect(s *stage, all []way, sources func(way) []netip.Addr) {
	e.wg.Go(func() {
		for i := 0; e.stop.Err() == nil; i++ {
			w := all[i%len(all)]
			r := s.world.Probe(s.t.Context(), world.Probe{From: w.from, To: w.to, Protocol: w.by, Want: world.Allowed})[0]
			wrong := ""
			if r.Outcome != world.Allowed || !slices.Contains(sources(w), r.Source.Addr()) {
				wrong = fmt.Sprintf("%s to %s by %s: %s from %s (%v)", w.from.ID, w.to, w.by, r.Outcome, r.Source, r.Err)
			}
			e.note(wrong)
		}
	})
}

// keep uses one connection again and again, whose source must stay.
func (e *echoes) keep(s *stage, h *held) {
	e.wg.Go(func() {
		for e.stop.Err() == nil {
			a, err := h.talk(s.t.Context())
			wrong := ""
			if err != nil || a.Source != h.source {
				wrong = fmt.Sprintf("%s: from %s (%v), was from %s", h.name, a.Source, err, h.source)
			}
			e.note(wrong)
			if err != nil {
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	})
}

// TestChurn has pools come, go and take each other's place, among a thousand more.
// Nothing is lost, what stays inside is never translated, and flows keep their source.
func TestChurn(t *testing.T) {
	s := newStage(t, keepSpared)
	services := s.serviceWays()
	spare := many(1000)
	s.put("spare", spare...)
	s.put("gold", pool("gold", true))
	s.start()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	stop, end := context.WithCancel(t.Context())
	defer end()
	e := &echoes{stop: stop}
	e.connect(s, slices.Concat(s.staying(), services), func(w way) []netip.Addr { return []netip.Addr{w.source} })
	bare := s.bare()
	for i, w := range s.leaving() {
		bare[i].source = w.source
	}
	e.connect(s, bare, s.eitherSource)
	for _, h := range slices.Concat(s.hold(s.one.Namespace, append(s.bus.Addrs(), far...)...), s.hold(s.ray.Namespace, far...)) {
		e.keep(s, h)
	}
	there := map[string]bool{"gold": true}
	for range 120 {
		s.changePools(rng, there, spare)
		time.Sleep(time.Duration(rng.IntN(80)) * time.Millisecond)
	}
	end()
	e.wg.Wait()
	for _, w := range e.wrong[:min(len(e.wrong), 10)] {
		t.Error(w)
	}
	if len(e.wrong) > 0 || e.made < 1000 {
		t.Errorf("%d of %d echoes were lost or wrong", len(e.wrong), e.made)
	}
	for name, is := range there {
		if is {
			s.drop(name)
		}
	}
	s.put("gold", pool("gold", true))
	s.become("the last state", s.leaving())
	s.check("in the end", s.staying(), services)
}

// eitherSource are the sources that a way out may have: the pod's and the node's.
func (s *stage) eitherSource(w way) []netip.Addr {
	out := []netip.Addr{w.source}
	for _, p := range []*world.Pod{s.one, s.solo, s.bus, s.ray} {
		if p.Namespace == w.from {
			out = append(out, p.Addrs()...)
		}
	}
	return out
}

// TestRestart kills the agents: the kernel goes on, and the agents that come after
// change nothing.
func TestRestart(t *testing.T) {
	s := newStage(t, keepSpared)
	services := s.serviceWays()
	s.put("gold", pool("gold", true))
	s.put("spare", many(10)...)
	s.start()
	flows := s.hold(s.one.Namespace, append(s.bus.Addrs(), far...)...)
	type state struct {
		generation uint32
		rules      string
	}
	kernels := func() (out []state) {
		for _, n := range []*world.Node{s.a, s.b} {
			g, err := n.RulesetGeneration()
			must(t, err)
			out = append(out, state{g, s.ruleset(n)})
		}
		return out
	}
	before := kernels()
	for _, a := range s.agents {
		must(t, a.Kill())
	}
	s.check("without agents", s.leaving(), s.staying(), services)
	s.checkHeld("without agents", flows)
	s.start()
	s.check("with new agents", s.leaving(), s.staying(), services)
	s.checkHeld("with new agents", flows)
	for i, after := range kernels() {
		if after != before[i] {
			t.Errorf("the new agent of %s changed something: generation %d, before %d\n%s", s.agents[i].Node.Name, after.generation, before[i].generation, after.rules)
		}
	}
}
