package trace_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/trace"
)

var (
	client = netip.MustParseAddr("10.1.0.2")
	server = netip.MustParseAddr("10.2.0.2")
)

// ruleset has these chains and sets in the table of IPv4. Chains named forward, input
// and postrouting are base chains.
func ruleset(sets []policy.Set, chains ...policy.Chain) *policy.Ruleset {
	var r policy.Ruleset
	for _, f := range policy.Families {
		r.Tables[f].Family = f
	}
	r.Tables[policy.IPv4].Sets = sets
	for _, c := range chains {
		switch c.Name {
		case "forward", "input":
			c.Hook = &policy.Hook{Name: c.Name, Priority: -5}
		case "postrouting":
			c.Hook = &policy.Hook{Name: c.Name, Priority: 110, NAT: true}
		}
		r.Tables[policy.IPv4].Chains = append(r.Tables[policy.IPv4].Chains, c)
	}
	return &r
}

func chain(name string, rules ...policy.Rule) policy.Chain {
	return policy.Chain{Name: name, Rules: rules}
}

func rule(v policy.Verdict, matches ...policy.Match) policy.Rule {
	return policy.Rule{Match: matches, Verdict: v}
}

func verdict(k policy.VerdictKind) policy.Verdict { return policy.Verdict{Kind: k} }
func jump(to string) policy.Verdict {
	return policy.Verdict{Kind: policy.VerdictJump, Chain: to}
}
func gotoChain(to string) policy.Verdict {
	return policy.Verdict{Kind: policy.VerdictGoto, Chain: to}
}

var (
	accept, drop, ret = verdict(policy.VerdictAccept), verdict(policy.VerdictDrop), verdict(policy.VerdictReturn)

	ctTCP    = policy.Match{Field: policy.FieldCtProtocol, Op: policy.OpEqual, Value: uint32(policy.TCP)}
	port80   = policy.Match{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpEqual, Value: 80}
	inPeers  = policy.Match{Field: policy.FieldCtOriginalSaddr, Op: policy.OpIn, Name: "peers-v4"}
	vmapPods = policy.Match{Field: policy.FieldCtReplySaddr, Op: policy.OpVerdict, Name: "pods-v4"}
)

func opening() trace.Packet {
	return trace.Packet{
		Saddr: client, Daddr: server, Protocol: policy.TCP, HopLimit: 64, Iifname: "eth0",
		Flow: &trace.Flow{State: policy.StateNew, Mark: 0xf0, Protocol: policy.TCP, OriginalSaddr: client, ReplySaddr: server, ReplyProtoSrc: 80},
	}
}

func addrs(name string, as ...netip.Addr) policy.Set {
	s := policy.Set{Name: name, Key: [2]policy.Type{policy.TypeAddr}}
	for _, a := range as {
		s.Elements = append(s.Elements, policy.Element{Key: policy.AddrKey(a)})
	}
	return s
}

func pods(v policy.Verdict) policy.Set {
	return policy.Set{
		Name: "pods-v4", Key: [2]policy.Type{policy.TypeAddr}, Verdicts: true,
		Elements: []policy.Element{{Key: policy.AddrKey(server), Verdict: v}},
	}
}

func TestRun(t *testing.T) {
	interval := policy.Set{
		Name: "block-v4", Key: [2]policy.Type{policy.TypeAddr}, Interval: true,
		Elements: []policy.Element{
			{Key: policy.AddrKey(netip.MustParseAddr("10.0.0.0")), To: policy.AddrKey(netip.MustParseAddr("10.1.0.1"))},
			{Key: policy.AddrKey(netip.MustParseAddr("10.1.0.3")), To: policy.AddrKey(netip.MustParseAddr("10.255.255.255"))},
		},
	}
	named := policy.Set{
		Name: "named-v4", Key: [2]policy.Type{policy.TypeAddr, policy.TypeService},
		Elements: []policy.Element{{Key: policy.AddrServiceKey(server, 80)}},
	}
	inBlock := func(f policy.Field) policy.Match { return policy.Match{Field: f, Op: policy.OpIn, Name: "block-v4"} }
	without := func(p trace.Packet) trace.Packet { p.Flow = nil; return p }
	untracked := func(p trace.Packet) trace.Packet { p.Flow, p.Untracked = nil, true; return p }
	state := func(bits uint32) policy.Match {
		return policy.Match{Field: policy.FieldCtState, Op: policy.OpBits, Value: bits}
	}
	stamp := policy.Rule{Stamp: policy.Mark{Mask: 0xff, Value: 0x0a}, Verdict: accept}

	tests := []struct {
		name   string
		sets   []policy.Set
		chains []policy.Chain
		packet trace.Packet
		want   policy.VerdictKind
		mark   uint32
	}{
		{"no base chain", nil, nil, opening(), policy.VerdictAccept, 0xf0},
		{"end of the base chain", nil, []policy.Chain{chain("forward")}, opening(), policy.VerdictAccept, 0xf0},
		{"first verdict counts", nil, []policy.Chain{chain("forward", rule(drop, ctTCP), rule(accept))}, opening(), policy.VerdictDrop, 0xf0},
		{"all matches must hold", nil, []policy.Chain{chain("forward", rule(drop, ctTCP, policy.Match{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpEqual, Value: 81}))}, opening(), policy.VerdictAccept, 0xf0},
		{"a jump comes back", nil, []policy.Chain{chain("a"), chain("forward", rule(jump("a")), rule(drop))}, opening(), policy.VerdictDrop, 0xf0},
		{"a return comes back", nil, []policy.Chain{chain("a", rule(ret), rule(drop)), chain("forward", rule(jump("a")), rule(accept))}, opening(), policy.VerdictAccept, 0xf0},
		{"a goto does not come back", nil, []policy.Chain{chain("a"), chain("forward", rule(gotoChain("a")), rule(drop))}, opening(), policy.VerdictAccept, 0xf0},
		{
			"a return after a goto goes where the jump came from", nil,
			[]policy.Chain{chain("a", rule(gotoChain("b")), rule(drop)), chain("b", rule(ret)), chain("forward", rule(jump("a")), rule(verdict(policy.VerdictReset)))},
			opening(), policy.VerdictReset, 0xf0,
		},
		{"a return in the base chain", nil, []policy.Chain{chain("forward", rule(ret), rule(drop))}, opening(), policy.VerdictAccept, 0xf0},
		{"in a set", []policy.Set{addrs("peers-v4", client)}, []policy.Chain{chain("forward", rule(drop, inPeers))}, opening(), policy.VerdictDrop, 0xf0},
		{"not in a set", []policy.Set{addrs("peers-v4", server)}, []policy.Chain{chain("forward", rule(drop, inPeers))}, opening(), policy.VerdictAccept, 0xf0},
		{"in a hole of an interval set", []policy.Set{interval}, []policy.Chain{chain("forward", rule(drop, inBlock(policy.FieldSaddr)))}, opening(), policy.VerdictAccept, 0xf0},
		{"in an interval", []policy.Set{interval}, []policy.Chain{chain("forward", rule(drop, inBlock(policy.FieldDaddr)))}, opening(), policy.VerdictDrop, 0xf0},
		{
			"a concatenation", []policy.Set{named},
			[]policy.Chain{chain("forward", rule(drop, policy.Match{Field: policy.FieldCtReplySaddr, And: policy.FieldCtReplyProtoSrc, Op: policy.OpIn, Name: "named-v4"}))},
			opening(), policy.VerdictDrop, 0xf0,
		},
		{
			"a verdict map", []policy.Set{pods(gotoChain("a"))},
			[]policy.Chain{chain("a", rule(drop)), chain("forward", rule(policy.Verdict{}, vmapPods), rule(accept))},
			opening(), policy.VerdictDrop, 0xf0,
		},
		{
			"a verdict map that returns", []policy.Set{pods(ret)},
			[]policy.Chain{chain("a", rule(policy.Verdict{}, vmapPods), rule(drop)), chain("forward", rule(jump("a")), rule(verdict(policy.VerdictProhibit)))},
			opening(), policy.VerdictProhibit, 0xf0,
		},
		{
			"no ct field without an entry", []policy.Set{addrs("peers-v4", client), pods(drop)},
			[]policy.Chain{chain("forward", rule(drop, ctTCP), rule(drop, port80), rule(drop, inPeers), rule(policy.Verdict{}, vmapPods), rule(drop, state(policy.StateNew)), rule(drop, state(policy.StateUntracked)))},
			without(opening()), policy.VerdictAccept, 0,
		},
		{"invalid", nil, []policy.Chain{chain("forward", rule(drop, state(policy.StateInvalid)))}, without(opening()), policy.VerdictDrop, 0},
		{"untracked", nil, []policy.Chain{chain("forward", rule(drop, state(policy.StateUntracked)))}, untracked(opening()), policy.VerdictDrop, 0},
		{"the stamp keeps other bits", nil, []policy.Chain{chain("forward", policy.Rule{Stamp: policy.Mark{Mask: 0x0f, Value: 0x0a}, Verdict: accept})}, opening(), policy.VerdictAccept, 0xfa},
		{"the stamp breaks without an entry", nil, []policy.Chain{chain("forward", stamp, rule(drop))}, without(opening()), policy.VerdictDrop, 0},
		{
			"the mark is what it was stamped to", nil,
			[]policy.Chain{chain("forward", policy.Rule{Stamp: policy.Mark{Mask: 0xff, Value: 0x0a}}, rule(drop, policy.Match{Field: policy.FieldCtMark, Op: policy.OpMasked, Arg: 0x0f, Value: 0x0a}))},
			opening(), policy.VerdictDrop, 0x0a,
		},
		{"a prefix", nil, []policy.Chain{chain("forward", rule(drop, policy.Match{Field: policy.FieldSaddr, Op: policy.OpPrefix, Prefix: netip.MustParsePrefix("10.1.0.0/24")}))}, opening(), policy.VerdictDrop, 0xf0},
		{"an interface", nil, []policy.Chain{chain("forward", rule(drop, policy.Match{Field: policy.FieldIifname, Op: policy.OpEqual, Name: "eth0"}))}, opening(), policy.VerdictDrop, 0xf0},
		{"a range", nil, []policy.Chain{chain("forward", rule(drop, policy.Match{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpRange, Value: 80, Arg: 81}))}, opening(), policy.VerdictDrop, 0xf0},
		{"the opener's direction", nil, []policy.Chain{chain("forward", rule(drop, policy.Match{Field: policy.FieldCtDirection, Op: policy.OpEqual, Value: 0}))}, opening(), policy.VerdictDrop, 0xf0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := trace.Run(ruleset(tt.sets, tt.chains...), "forward", tt.packet)
			if err != nil || got.Verdict != tt.want || got.Mark != tt.mark {
				t.Errorf("want %s and mark %#x, got %v:\n%s", policy.Verdict{Kind: tt.want}, tt.mark, err, got)
			}
		})
	}
}

// TestRunFails: what the tracer does not know is an error, not a mismatch.
func TestRunFails(t *testing.T) {
	deep := []policy.Chain{}
	for c := 'a'; c < 'a'+17; c++ {
		deep = append(deep, chain(string(c), rule(jump(string(c+1)))))
	}
	deep = append(deep, chain("forward", rule(jump("a"))), chain(string(rune('a'+17))))
	tests := []struct {
		name   string
		sets   []policy.Set
		chains []policy.Chain
		want   string
	}{
		{"operation", nil, []policy.Chain{chain("forward", rule(drop, policy.Match{Field: policy.FieldCtProtocol, Op: 99}))}, "unknown"},
		{"field", nil, []policy.Chain{chain("forward", rule(drop, policy.Match{Field: 99, Op: policy.OpEqual}))}, "unknown"},
		{"verdict", nil, []policy.Chain{chain("forward", rule(verdict(99)))}, "unknown verdict"},
		{"set", nil, []policy.Chain{chain("forward", rule(drop, inPeers))}, "does not exist"},
		{"chain", nil, []policy.Chain{chain("forward", rule(jump("nowhere")))}, "no such chain"},
		{"jump to a base chain", nil, []policy.Chain{chain("forward", rule(jump("input"))), chain("input")}, "base chain"},
		{"map as a set", []policy.Set{pods(drop)}, []policy.Chain{chain("forward", rule(drop, policy.Match{Field: policy.FieldSaddr, Op: policy.OpIn, Name: "pods-v4"}))}, "verdict map"},
		{"rule goes on after a map", []policy.Set{pods(drop)}, []policy.Chain{chain("forward", rule(accept, vmapPods))}, "end of its rule"},
		{"key of another type", []policy.Set{addrs("peers-v4", client)}, []policy.Chain{chain("forward", rule(drop, policy.Match{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpIn, Name: "peers-v4"}))}, "not keyed"},
		{"loop", nil, []policy.Chain{chain("a", rule(gotoChain("b"))), chain("b", rule(gotoChain("a"))), chain("forward", rule(jump("a")))}, "loop"},
		{"too deep", nil, deep, "jumps deep"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := trace.Run(ruleset(tt.sets, tt.chains...), "forward", opening())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("want an error with %q, got %v and %s", tt.want, err, got)
			}
			if err := trace.Check(ruleset(tt.sets, tt.chains...)); err == nil {
				t.Error("Check finds nothing wrong with it")
			}
		})
	}
}

// sources are masqueraded, unless they go to peers.
func sources(v policy.Verdict, more ...policy.Match) *policy.Ruleset {
	notPeers := policy.Match{Field: policy.FieldDaddr, Op: policy.OpNotIn, Name: "peers-v4"}
	return ruleset([]policy.Set{addrs("peers-v4", netip.MustParseAddr("10.3.0.1")), {
		Name: "pools-v4", Key: [2]policy.Type{policy.TypeAddr}, Interval: true,
		Elements: []policy.Element{{Key: "\x0a\x01\x00\x00", To: "\x0a\x01\x00\xff"}, {Key: "\x0a\x01\x01\x00", To: "\x0a\x01\x01\xff"}},
	}}, chain("postrouting", rule(v, append([]policy.Match{{Field: policy.FieldSaddr, Op: policy.OpIn, Name: "pools-v4"}, notPeers}, more...)...)))
}

var masquerade = verdict(policy.VerdictMasquerade)

func TestMasqueraded(t *testing.T) {
	packet := func(src, dst string, state uint32) trace.Packet {
		p := opening()
		p.Saddr, p.Daddr = netip.MustParseAddr(src), netip.MustParseAddr(dst)
		p.Flow.OriginalSaddr, p.Flow.ReplySaddr, p.Flow.State = p.Saddr, p.Daddr, state
		return p
	}
	stateless := opening()
	stateless.Flow = nil
	tests := []struct {
		name   string
		packet trace.Packet
		want   bool
	}{
		{"from a block", packet("10.1.0.2", "10.2.0.2", policy.StateNew), true},
		{"from the block that touches it", packet("10.1.1.0", "10.2.0.2", policy.StateNew), true},
		{"from elsewhere", packet("10.1.2.0", "10.2.0.2", policy.StateNew), false},
		{"to what is in the set", packet("10.1.0.2", "10.3.0.1", policy.StateNew), false},
		{"the other family", packet("fd00::1", "fd00::2", policy.StateNew), false},
		{"not the first of its flow", packet("10.1.0.2", "10.2.0.2", policy.StateEstablished), false},
		{"an error about a flow", packet("10.1.0.2", "10.2.0.2", policy.StateRelated), false},
		{"no flow", stateless, false},
	}
	for _, tt := range tests {
		got, walk, err := trace.New(sources(masquerade)).Masqueraded(tt.packet)
		if got != tt.want || err != nil {
			t.Errorf("%s: %v, error %v\n%s", tt.name, got, err, walk)
		}
	}
	if got, _, err := trace.New(ruleset(nil)).Masqueraded(opening()); got || err != nil {
		t.Errorf("nothing translates: %v, error %v", got, err)
	}
	if err := trace.Check(sources(masquerade)); err != nil {
		t.Error(err)
	}
}

// TestMasqueradedFails: as TestRunFails, where sources are translated.
func TestMasqueradedFails(t *testing.T) {
	twoChains := sources(masquerade)
	twoChains.Tables[policy.IPv4].Chains = append(twoChains.Tables[policy.IPv4].Chains, policy.Chain{Name: "too", Hook: &policy.Hook{Name: "postrouting", NAT: true}})
	filter := sources(masquerade)
	filter.Tables[policy.IPv4].Chains[0].Hook.NAT = false
	missing := sources(masquerade)
	missing.Tables[policy.IPv4].Sets = missing.Tables[policy.IPv4].Sets[1:]
	for name, tt := range map[string]struct {
		ruleset *policy.Ruleset
		want    string
	}{
		"it drops":     {sources(drop), "unknown verdict"},
		"operation":    {sources(masquerade, policy.Match{Field: policy.FieldCtReplySaddr, Op: policy.OpNotIn, Name: "pools-v4"}), "unknown"},
		"two chains":   {twoChains, "two base chains"},
		"another type": {filter, "of the other type"},
		"no set":       {missing, "does not exist"},
	} {
		got, walk, err := trace.New(tt.ruleset).Masqueraded(opening())
		if got || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: want an error with %q, got %v and %v, %s", name, tt.want, err, got, walk)
		}
		if err := trace.Check(tt.ruleset); err == nil {
			t.Errorf("%s: Check finds nothing wrong with it", name)
		}
	}
	if _, err := trace.Run(ruleset(nil, chain("forward", rule(masquerade))), "forward", opening()); err == nil {
		t.Error("masquerades in forward, and no error")
	}
	if _, err := trace.Run(sources(masquerade), "postrouting", opening()); err == nil {
		t.Error("judged where sources are translated, and no error")
	}
}

// TestRunDuring: rules from before, elements from look-up number at on from after.
func TestRunDuring(t *testing.T) {
	before := ruleset([]policy.Set{addrs("peers-v4"), pods(gotoChain("a"))},
		chain("a", rule(accept, inPeers), rule(drop)), chain("forward", rule(policy.Verdict{}, vmapPods)))
	after := ruleset([]policy.Set{addrs("peers-v4", client), pods(gotoChain("b"))},
		chain("a", rule(drop)), chain("b", rule(drop)), chain("forward", rule(policy.Verdict{}, vmapPods)))
	for at, want := range map[int]policy.VerdictKind{1: policy.VerdictAccept, 2: policy.VerdictDrop} {
		got, err := trace.New(before).RunDuring("forward", opening(), trace.New(after), at)
		if err != nil || got.Verdict != want {
			t.Errorf("from look-up %d on: want %s, got %v:\n%s", at, policy.Verdict{Kind: want}, err, got)
		}
	}
	// The new map leads to a chain that is not there yet for this packet.
	if got, err := trace.New(before).RunDuring("forward", opening(), trace.New(after), 0); err == nil {
		t.Errorf("no error, but\n%s", got)
	}
}

// TestPath: the result says what led to it.
func TestPath(t *testing.T) {
	r := ruleset([]policy.Set{pods(gotoChain("a"))},
		chain("a", rule(drop, policy.Match{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpEqual, Value: 81})), chain("forward", rule(policy.Verdict{}, vmapPods)))
	got, err := trace.Run(r, "forward", opening())
	want := "forward[0]: ct reply ip saddr vmap @pods-v4 {10.2.0.2 : goto a}\nforward: policy accept\n=> accept, mark 0xf0"
	if err != nil || got.String() != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, got, want)
	}
}
