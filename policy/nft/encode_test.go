package nft

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// TestEncodeRule shows the expressions of the rules that differ most from what
// the library would make of them.
func TestEncodeRule(t *testing.T) {
	for name, tc := range map[string]struct {
		family policy.Family
		rule   policy.Rule
		want   []expr.Any
	}{
		"generation": {
			rule: policy.Rule{Stamp: policy.Mark{Mask: 0x30c4, Value: 0x84}, Verdict: policy.Verdict{Kind: policy.VerdictAccept}},
			want: []expr.Any{
				&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{0x3b, 0xcf, 0xff, 0xff}, Xor: []byte{0x84, 0, 0, 0}},
				&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
				&expr.Verdict{Kind: expr.VerdictAccept},
			},
		},
		"concatenation": {
			rule: policy.Rule{Match: []policy.Match{{Field: policy.FieldCtReplySaddr, And: policy.FieldCtReplyProtoSrc, Op: policy.OpIn, Name: "named-v4"}}},
			want: []expr.Any{
				&expr.Ct{Key: expr.CtKeySRC, Register: 1, Direction: 1},
				&expr.Ct{Key: expr.CtKeyPROTOSRC, Register: 9, Direction: 1},
				&expr.Lookup{SourceRegister: 1, SetName: "named-v4"},
			},
		},
		"concatenation of IPv6": {
			family: policy.IPv6,
			rule:   policy.Rule{Match: []policy.Match{{Field: policy.FieldCtOriginalSaddr, And: policy.FieldCtReplySaddr, Op: policy.OpIn, Name: "self-v6"}}},
			want: []expr.Any{
				&expr.Ct{Key: expr.CtKeySRC, Register: 1},
				&expr.Ct{Key: expr.CtKeySRC, Register: 2, Direction: 1},
				&expr.Lookup{SourceRegister: 1, SetName: "self-v6"},
			},
		},
		"whole bytes of an address": {
			rule: policy.Rule{Match: []policy.Match{{Field: policy.FieldDaddr, Op: policy.OpPrefix, Prefix: netip.MustParsePrefix("10.20.0.0/16")}}},
			want: []expr.Any{
				&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 2, DestRegister: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{10, 20}},
			},
		},
		"parts of bytes": {
			rule: policy.Rule{Match: []policy.Match{{Field: policy.FieldCtOriginalSaddr, Op: policy.OpPrefix, Prefix: netip.MustParsePrefix("10.20.0.0/14")}}},
			want: []expr.Any{
				&expr.Ct{Key: expr.CtKeySRC, Register: 1},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{255, 252, 0, 0}, Xor: make([]byte, 4)},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{10, 20, 0, 0}},
			},
		},
		"sample": {
			family: policy.IPv6,
			rule: policy.Rule{
				Sample: policy.Sample{Set: "sampled-v6", Key: policy.FieldDaddr, Rate: 2, Burst: 5},
				Log:    policy.Log{Group: 24090, Prefix: "deny", Snaplen: 128},
			},
			want: []expr.Any{
				&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 16, DestRegister: 1},
				&expr.Dynset{SrcRegKey: 1, SetName: "sampled-v6", Operation: 1, Exprs: []expr.Any{
					&expr.Limit{Type: expr.LimitTypePkts, Rate: 2, Unit: 1, Burst: 5},
				}},
				&expr.Log{Key: 1<<1 | 1<<2 | 1<<3, Group: 24090, Snaplen: 128, Data: []byte("deny")},
			},
		},
		"count": {
			rule: policy.Rule{Count: "deny", Verdict: policy.Verdict{Kind: policy.VerdictReset}},
			want: []expr.Any{&expr.Objref{Type: 1, Name: "deny"}, &expr.Reject{Type: 1}},
		},
		"masquerade": {
			rule: policy.Rule{Match: []policy.Match{{Field: policy.FieldDaddr, Op: policy.OpNotIn, Name: "pools-v4"}}, Counter: true, Verdict: policy.Verdict{Kind: policy.VerdictMasquerade}},
			want: []expr.Any{
				&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4, DestRegister: 1},
				&expr.Lookup{SourceRegister: 1, SetName: "pools-v4", Invert: true},
				&expr.Counter{},
				&expr.Masq{FullyRandom: true},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := encodeRule(tc.family, &tc.rule)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("want (-), got (+):\n%s", diff)
			}
		})
	}
}

// TestTuples looks at the finished message: the key is the family's own and the
// direction one byte, as the kernel reads it.
func TestTuples(t *testing.T) {
	for _, f := range policy.Families {
		c := &policy.Change{}
		c.Tables[f] = policy.TableChange{Family: f, SetChains: []policy.Chain{{Name: "egress", Rules: []policy.Rule{
			{Match: []policy.Match{{Field: policy.FieldCtReplySaddr, Op: policy.OpIn, Name: "sel"}}},
		}}}}
		m, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		msgs := append(m.Prepare, m.Switch...)
		rule := msgs[len(msgs)-1]
		if rule.Header.Flags&unix.NLM_F_ECHO != 0 || rule.Header.Flags&unix.NLM_F_ACK != 0 {
			t.Errorf("flags %#x ask for an answer", rule.Header.Flags)
		}
		key := map[policy.Family]string{policy.IPv4: "\x13", policy.IPv6: "\x15"}[f]
		want := "\x08\x00\x02\x00\x00\x00\x00" + key + "\x08\x00\x01\x00\x00\x00\x00\x01" + "\x05\x00\x03\x00\x01\x00\x00\x00"
		if !strings.Contains(string(rule.Data), want) {
			t.Errorf("%s: no key, register and direction %q in %q", f, want, rule.Data)
		}
	}
}

// TestEncodeRefuses: what cannot be expressed is an error, with the name of
// where it is, and never something else.
func TestEncodeRefuses(t *testing.T) {
	rule := func(r policy.Rule) policy.TableChange {
		return policy.TableChange{AddChains: []policy.Chain{{Name: "egress", Rules: []policy.Rule{{}, r}}}}
	}
	match := func(m policy.Match) policy.TableChange { return rule(policy.Rule{Match: []policy.Match{m}}) }
	set := func(s policy.Set) policy.TableChange {
		s.Name = "sel"
		return policy.TableChange{AddSets: []policy.Set{s}}
	}
	addrs := [2]policy.Type{policy.TypeAddr}
	for name, tc := range map[string]struct {
		change policy.TableChange
		where  string
	}{
		"unknown operation":         {match(policy.Match{Field: policy.FieldCtMark}), "egress: rule 1"},
		"unknown field":             {match(policy.Match{Field: 99, Op: policy.OpEqual}), "egress: rule 1"},
		"hop limit in IPv4":         {match(policy.Match{Field: policy.FieldHopLimit, Op: policy.OpEqual}), "egress: rule 1"},
		"port too large":            {match(policy.Match{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpEqual, Value: 65536}), "egress: rule 1"},
		"range too large":           {match(policy.Match{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpRange, Arg: 65536}), "egress: rule 1"},
		"range of marks":            {match(policy.Match{Field: policy.FieldCtMark, Op: policy.OpRange, Arg: 6}), "egress: rule 1"},
		"address by number":         {match(policy.Match{Field: policy.FieldSaddr, Op: policy.OpEqual, Value: 6}), "egress: rule 1"},
		"prefix of a port":          {match(policy.Match{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpPrefix, Prefix: netip.MustParsePrefix("10.0.0.0/8")}), "egress: rule 1"},
		"other family's prefix":     {match(policy.Match{Field: policy.FieldSaddr, Op: policy.OpPrefix, Prefix: netip.MustParsePrefix("fd00::/8")}), "egress: rule 1"},
		"no prefix":                 {match(policy.Match{Field: policy.FieldSaddr, Op: policy.OpPrefix}), "egress: rule 1"},
		"long interface name":       {match(policy.Match{Field: policy.FieldIifname, Op: policy.OpEqual, Name: "sixteen-letters-"}), "egress: rule 1"},
		"empty interface name":      {match(policy.Match{Field: policy.FieldIifname, Op: policy.OpEqual}), "egress: rule 1"},
		"set of marks":              {match(policy.Match{Field: policy.FieldCtMark, Op: policy.OpIn, Name: "sel"}), "egress: rule 1"},
		"set without name":          {match(policy.Match{Field: policy.FieldSaddr, Op: policy.OpIn}), "egress: rule 1"},
		"map of a concatenation":    {match(policy.Match{Field: policy.FieldSaddr, And: policy.FieldDaddr, Op: policy.OpVerdict, Name: "m"}), "egress: rule 1"},
		"not in a concatenation":    {match(policy.Match{Field: policy.FieldSaddr, And: policy.FieldDaddr, Op: policy.OpNotIn, Name: "sel"}), "egress: rule 1"},
		"unknown hook":              {policy.TableChange{SetChains: []policy.Chain{{Name: "early", Hook: &policy.Hook{Name: "prerouting"}}}}, "chain ip early"},
		"masquerade in a map":       {set(policy.Set{Key: addrs, Verdicts: true, Elements: []policy.Element{{Key: "\x0a\x00\x00\x01", Verdict: policy.Verdict{Kind: policy.VerdictMasquerade}}}}), "sel: element 0"},
		"masquerade to a chain":     {rule(policy.Rule{Verdict: policy.Verdict{Kind: policy.VerdictMasquerade, Chain: "x"}}), "egress: rule 1"},
		"sample of marks":           {rule(policy.Rule{Sample: policy.Sample{Set: "sel", Key: policy.FieldCtMark, Rate: 1, Burst: 1}}), "egress: rule 1"},
		"sample of tuples":          {rule(policy.Rule{Sample: policy.Sample{Set: "sel", Key: policy.FieldCtReplySaddr, Rate: 1, Burst: 1}}), "egress: rule 1"},
		"sample in no set":          {rule(policy.Rule{Sample: policy.Sample{Key: policy.FieldSaddr, Rate: 1, Burst: 1}}), "egress: rule 1"},
		"sample without rate":       {rule(policy.Rule{Sample: policy.Sample{Set: "sel", Key: policy.FieldSaddr, Burst: 1}}), "egress: rule 1"},
		"sample without burst":      {rule(policy.Rule{Sample: policy.Sample{Set: "sel", Key: policy.FieldSaddr, Rate: 1}}), "egress: rule 1"},
		"log to no group":           {rule(policy.Rule{Log: policy.Log{Prefix: "x", Snaplen: 1}}), "egress: rule 1"},
		"log without prefix":        {rule(policy.Rule{Log: policy.Log{Group: 1, Snaplen: 1}}), "egress: rule 1"},
		"log of nothing":            {rule(policy.Rule{Log: policy.Log{Group: 1, Prefix: "x"}}), "egress: rule 1"},
		"log with long prefix":      {rule(policy.Rule{Log: policy.Log{Group: 1, Prefix: strings.Repeat("x", 128), Snaplen: 1}}), "egress: rule 1"},
		"dynamic for ever":          {set(policy.Set{Key: addrs, Dynamic: true}), "set ip sel"},
		"dynamic with elements":     {set(policy.Set{Key: addrs, Dynamic: true, Timeout: 1, Elements: []policy.Element{{Key: "\x0a\x00\x00\x01"}}}), "set ip sel"},
		"dynamic map":               {set(policy.Set{Key: addrs, Dynamic: true, Timeout: 1, Verdicts: true}), "set ip sel"},
		"elements that time out":    {set(policy.Set{Key: addrs, Timeout: 1}), "set ip sel"},
		"long comment of a counter": {policy.TableChange{AddCounters: []policy.Counter{{Name: "deny", Comment: strings.Repeat("x", 129)}}}, "counter ip deny"},
		"jump to nowhere":           {rule(policy.Rule{Verdict: policy.Verdict{Kind: policy.VerdictJump}}), "egress: rule 1"},
		"drop to somewhere":         {rule(policy.Rule{Verdict: policy.Verdict{Kind: policy.VerdictDrop, Chain: "x"}}), "egress: rule 1"},
		"long comment":              {rule(policy.Rule{Counter: true, Comment: strings.Repeat("x", 129)}), "egress: rule 1"},
		"long comment of a set":     {set(policy.Set{Key: addrs, Comment: strings.Repeat("x", 129)}), "set ip sel"},
		"set without type":          {set(policy.Set{}), "set ip sel"},
		"intervals of two":          {set(policy.Set{Key: [2]policy.Type{policy.TypeAddr, policy.TypeService}, Interval: true}), "set ip sel"},
		"short key":                 {set(policy.Set{Key: addrs, Elements: []policy.Element{{Key: "\x0a\x00\x00\x01"}, {Key: "\x0a\x00\x00"}}}), "sel: element 1"},
		"interval without end":      {set(policy.Set{Key: addrs, Interval: true, Elements: []policy.Element{{Key: "\x0a\x00\x00\x01"}}}), "sel: element 0"},
		"interval backwards":        {set(policy.Set{Key: addrs, Interval: true, Elements: []policy.Element{{Key: "\x0a\x00\x00\x01", To: "\x0a\x00\x00\x00"}}}), "sel: element 0"},
		"end without interval":      {set(policy.Set{Key: addrs, Elements: []policy.Element{{Key: "\x0a\x00\x00\x01", To: "\x0a\x00\x00\x01"}}}), "sel: element 0"},
		"verdict in a set":          {set(policy.Set{Key: addrs, Elements: []policy.Element{{Key: "\x0a\x00\x00\x01", Verdict: policy.Verdict{Kind: policy.VerdictDrop}}}}), "sel: element 0"},
		"map without verdict":       {set(policy.Set{Key: addrs, Verdicts: true, Elements: []policy.Element{{Key: "\x0a\x00\x00\x01"}}}), "sel: element 0"},
		"reject in a map":           {set(policy.Set{Key: addrs, Verdicts: true, Elements: []policy.Element{{Key: "\x0a\x00\x00\x01", Verdict: policy.Verdict{Kind: policy.VerdictReset}}}}), "sel: element 0"},
		"goto nowhere in a map":     {set(policy.Set{Key: addrs, Verdicts: true, Elements: []policy.Element{{Key: "\x0a\x00\x00\x01", Verdict: policy.Verdict{Kind: policy.VerdictGoto}}}}), "sel: element 0"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &policy.Change{}
			c.Tables[policy.IPv4] = tc.change
			_, err := Encode(c)
			if err == nil || !strings.Contains(err.Error(), tc.where) {
				t.Errorf("error is %v, not about %q", err, tc.where)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("error has more than one line: %q", err)
			}
		})
	}
}

// TestElementLists: a list never exceeds what its 16-bit length can say, and
// both ends of an interval are in the same one.
func TestElementLists(t *testing.T) {
	for _, interval := range []bool{false, true} {
		s := policy.Set{Name: "block-v6", Key: [2]policy.Type{policy.TypeAddr}, Interval: interval}
		const many = 20_000
		for i := range many {
			e := policy.Element{Key: string([]byte{0: 0xfd, 13: byte(i >> 8), 14: byte(i), 15: 0})}
			if interval {
				e.To = e.Key
			}
			s.Elements = append(s.Elements, e)
		}
		c := &policy.Change{}
		c.Tables[policy.IPv6] = policy.TableChange{Family: policy.IPv6, AddSets: []policy.Set{s}}
		m, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Prepare) < 10 {
			t.Errorf("only %d messages", len(m.Prepare))
		}
		for _, msg := range m.Prepare {
			for a := attributes(msg.Data[nfgenmsgLen:]); a.next(); {
				if len(a.rest) == 0 && msg.Header.Type == messageType(unix.NFT_MSG_NEWSETELEM) && a.typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
					t.Error("the list of elements is cut off")
				}
			}
		}
		got := decodeMessages(m.Prepare).Tables[policy.IPv6].Sets[0]
		if diff := cmp.Diff(s, got); diff != "" {
			t.Errorf("%d elements became %d", many, len(got.Elements))
		}
	}
}

func TestDescribe(t *testing.T) {
	c := fill(everything())
	c.Tables[policy.IPv4].DelSets = []string{"old-set"}
	c.Tables[policy.IPv4].DelChains = []string{"old-chain"}
	c.Tables[policy.IPv6].DelCounters = []string{"old-counter"}
	c.Tables[policy.IPv4].Elements = []policy.ElementChange{{
		Set: policy.Set{Name: "old", Key: [2]policy.Type{policy.TypeService}}, Del: []policy.Element{{Key: "\x00\x50"}},
	}}
	m, err := Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, msg := range append(append(m.Prepare, m.Switch...), m.Sweep...) {
		op, object := describe(&msg)
		found[op+" "+object] = true
	}
	for _, want := range []string{
		"add table ip selvage", "add table ip6 selvage", "add chain ip selvage egress", "add rule ip6 selvage egress",
		"add set ip selvage self-v4", "add element ip6 selvage self-v6", "flush chain ip selvage old-chain",
		"add counter ip6 selvage deny-egress", "delete counter ip6 selvage old-counter", "delete chain ip selvage old-chain", "delete set ip selvage old-set", "delete element ip selvage old",
	} {
		if !found[want] {
			t.Errorf("no message is described as %q", want)
		}
	}
	end := batchHeader(unix.NFNL_MSG_BATCH_END)
	if op, object := describe(&end); op+" "+object != "commit batch" {
		t.Errorf("the end of a batch is described as %q", op+" "+object)
	}
}
