package nft

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
)

// decodeMessages reads messages that add things as if the kernel listed them.
func decodeMessages(msgs []netlink.Message) *policy.Ruleset {
	r := &policy.Ruleset{}
	elements := map[string][]netlink.Message{}
	decoders := [2]*decoder{}
	for _, f := range policy.Families {
		r.Tables[f].Family = f
		decoders[f] = newDecoder(&r.Tables[f])
	}
	for i := range msgs {
		f := familyOf(&msgs[i])
		d, b := decoders[f], msgs[i].Data[nfgenmsgLen:]
		switch msgs[i].Header.Type {
		case messageType(unix.NFT_MSG_NEWOBJ):
			if counter, _, ok := decodeCounter(b); ok {
				r.Tables[f].Counters = append(r.Tables[f].Counters, counter)
			}
		case messageType(unix.NFT_MSG_NEWCHAIN):
			d.chain(b)
		case messageType(unix.NFT_MSG_NEWRULE):
			d.rule(b)
		case messageType(unix.NFT_MSG_NEWSET):
			d.set(b)
		case messageType(unix.NFT_MSG_NEWSETELEM):
			for a := attributes(b); a.next(); {
				if a.typ == unix.NFTA_SET_ELEM_LIST_SET {
					key := f.String() + cstring(a.data)
					elements[key] = append(elements[key], msgs[i])
				}
			}
		}
	}
	for _, f := range policy.Families {
		for i := range r.Tables[f].Sets {
			s := &r.Tables[f].Sets[i]
			if s.Dynamic {
				continue
			}
			decoders[f].elements(s, elements[f.String()+s.Name])
		}
		decoders[f].finish()
	}
	return r
}

func TestDecodeReversesEncode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawRuleset(t)
		m, err := Encode(fill(want))
		if err != nil {
			t.Fatal(err)
		}
		got := decodeMessages(append(m.Prepare, m.Switch...))
		if diff := diffRulesets(want, got); diff != "" {
			t.Fatalf("ruleset (-) and what became of it (+):\n%s", diff)
		}
	})
}

// TestKernelKeepsRulesets takes random rulesets through the kernel, each in
// place of the one before, and compares with nft(8).
func TestKernelKeepsRulesets(t *testing.T) {
	byApply, byNft := newNamespace(t), newNamespace(t)
	c, clean := byApply.open(t), byNft.open(t)
	rapid.Check(t, func(rt *rapid.T) {
		for _, conn := range []*Conn{c, clean} {
			if _, err := conn.Cleanup(); err != nil {
				rt.Fatal(err)
			}
		}
		before := &policy.Ruleset{Tables: [2]policy.Table{{Family: policy.IPv4}, {Family: policy.IPv6}}}
		for range rapid.IntRange(1, 4).Draw(rt, "steps") {
			want := drawRuleset(rt)
			if _, err := c.Apply(policy.Diff(before, want)); err != nil {
				rt.Fatal(err)
			}
			got, err := c.Read()
			if err != nil {
				rt.Fatal(err)
			}
			if diff := diffRulesets(withComments(want, before), got); diff != "" {
				rt.Fatalf("ruleset (-) and what is in the kernel (+):\n%s", diff)
			}
			before = got
		}
		if _, err := c.Cleanup(); err != nil {
			rt.Fatal(err)
		}
		// Once from nothing, to compare with nft(8), which shows comments too.
		want := drawRuleset(rt)
		if _, err := c.Apply(fill(want)); err != nil {
			rt.Fatal(err)
		}
		if out, err := byNft.try(t, want.String(), "nft", "-f", "-"); err != nil {
			rt.Fatalf("nft: %v\n%s\n%s", err, out, want)
		}
		if a, b := byNft.list(t), byApply.list(t); a != b {
			rt.Fatalf("listed after nft -f:\n%s\nlisted after Apply:\n%s", a, b)
		}
		got, err := clean.Read()
		if err != nil {
			rt.Fatal(err)
		}
		if diff := diffRulesets(want, got); diff != "" {
			rt.Fatalf("ruleset (-) and what Read makes of nft's (+):\n%s", diff)
		}
	})
}

// withComments returns r with the comments that its counters and sets have in before:
// a comment alone is no reason to make one anew.
func withComments(r, before *policy.Ruleset) *policy.Ruleset {
	out := *r
	for i := range out.Tables {
		out.Tables[i].Counters = slices.Clone(r.Tables[i].Counters)
		for j := range out.Tables[i].Counters {
			for _, c := range before.Tables[i].Counters {
				if c.Name == out.Tables[i].Counters[j].Name {
					out.Tables[i].Counters[j].Comment = c.Comment
				}
			}
		}
		out.Tables[i].Sets = slices.Clone(r.Tables[i].Sets)
		for j := range out.Tables[i].Sets {
			for _, s := range before.Tables[i].Sets {
				if s.Name == out.Tables[i].Sets[j].Name {
					out.Tables[i].Sets[j].Comment = s.Comment
				}
			}
		}
	}
	return &out
}

// FuzzDecode: what others put into our tables must not bring the agent down,
// and no rule may be taken for ours that Encode would not make just so.
func FuzzDecode(f *testing.F) {
	m, err := Encode(fill(everything()))
	if err != nil {
		f.Fatal(err)
	}
	for _, msg := range append(m.Prepare, m.Switch...) {
		f.Add(byte(msg.Header.Type), msg.Data)
	}
	f.Fuzz(func(t *testing.T, typ byte, data []byte) {
		if len(data) < nfgenmsgLen {
			return
		}
		msg := netlink.Message{Header: netlink.Header{Type: messageType(int(typ))}, Data: bytes.Clone(data)}
		describe(&msg)
		var s policy.Set
		newDecoder(&policy.Table{}).elements(&s, []netlink.Message{msg})
		s.Interval = true
		newDecoder(&policy.Table{}).elements(&s, []netlink.Message{msg})
		_ = decodeMessages([]netlink.Message{msg})
		for a := attributes(msg.Data[nfgenmsgLen:]); a.next(); {
			if a.typ == unix.NFTA_RULE_EXPRESSIONS {
				readNATRule(data[0], a.data)
				mustBeExact(t, familyOf(&msg), a.data)
			}
		}
	})
}

// TestOnlyOurRulesAreOurs changes rules a little, expression by expression.
func TestOnlyOurRulesAreOurs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.SampledFrom(policy.Families[:]).Draw(t, "family")
		table := drawTable(t, f)
		for _, ch := range table.Chains {
			for i := range ch.Rules {
				exprs, err := encodeRule(f, &ch.Rules[i])
				if err != nil {
					t.Fatal(err)
				}
				exprs = disturb(t, exprs)
				r := ruleOf(f, exprs)
				if len(r.Match) == 1 && r.Match[0].Op == opForeign {
					continue
				}
				again, err := encodeRule(f, &r)
				if err != nil {
					t.Fatalf("recognised as %+v, which cannot be encoded: %v", r, err)
				}
				if diff := cmp.Diff(exprs, again, cmpopts.EquateEmpty()); diff != "" {
					t.Fatalf("recognised as %+v, but encoded (+) it differs:\n%s", r, diff)
				}
			}
		}
	})
}

// disturb removes, repeats, moves or changes one expression.
func disturb(t *rapid.T, exprs []expr.Any) []expr.Any {
	if len(exprs) == 0 {
		return exprs
	}
	i := rapid.IntRange(0, len(exprs)-1).Draw(t, "at")
	j := rapid.IntRange(0, len(exprs)-1).Draw(t, "other")
	change := func(v *uint32) { *v += rapid.SampledFrom([]uint32{1, 2, 8, 1<<32 - 1}).Draw(t, "by") }
	data := func(b []byte) {
		if len(b) > 0 {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "byte")] ^= rapid.Byte().Draw(t, "with")
		}
	}
	switch rapid.SampledFrom([]string{"remove", "repeat", "swap", "change", "change"}).Draw(t, "disturb") {
	case "remove":
		return slices.Delete(exprs, i, i+1)
	case "repeat":
		return slices.Insert(exprs, j, exprs[i])
	case "swap":
		exprs[i], exprs[j] = exprs[j], exprs[i]
		return exprs
	}
	field := rapid.IntRange(0, 4).Draw(t, "field")
	switch e := exprs[i].(type) {
	case *expr.Ct:
		[]func(){func() { change(&e.Register) }, func() { e.Key++ }, func() { change(&e.Direction) }, func() { e.SourceRegister = !e.SourceRegister }, func() {}}[field]()
	case *expr.Meta:
		[]func(){func() { change(&e.Register) }, func() { e.Key++ }, func() { e.SourceRegister = !e.SourceRegister }, func() {}, func() {}}[field]()
	case *expr.Payload:
		[]func(){func() { change(&e.DestRegister) }, func() { e.Base++ }, func() { change(&e.Offset) }, func() { change(&e.Len) }, func() { e.OperationType++ }}[field]()
	case *expr.Cmp:
		[]func(){func() { change(&e.Register) }, func() { e.Op = expr.CmpOp(rapid.Uint32Range(0, 5).Draw(t, "op")) }, func() { data(e.Data) }, func() { e.Data = e.Data[:len(e.Data)-1] }, func() { e.Data = append(e.Data, 0) }}[field]()
	case *expr.Bitwise:
		[]func(){func() { change(&e.SourceRegister) }, func() { change(&e.DestRegister) }, func() { data(e.Mask) }, func() { data(e.Xor) }, func() { change(&e.Len) }}[field]()
	case *expr.Lookup:
		[]func(){func() { change(&e.SourceRegister) }, func() { e.IsDestRegSet = !e.IsDestRegSet }, func() { e.IsDestRegSet = true; change(&e.DestRegister) }, func() { e.Invert = !e.Invert }, func() { e.SetName += "x" }}[field]()
	case *expr.Masq:
		[]func(){func() { e.FullyRandom = false }, func() { e.Random = true }, func() { e.Persistent = true }, func() { e.ToPorts = true }, func() { change(&e.RegProtoMin) }}[field]()
	case *expr.Objref:
		[]func(){func() { e.Type++ }, func() { e.Name += "x" }, func() {}, func() {}, func() {}}[field]()
	case *expr.Log:
		[]func(){func() { e.Group++ }, func() { e.Key ^= 1 << rapid.IntRange(1, 6).Draw(t, "key") }, func() { change(&e.Snaplen) }, func() { e.Key |= 1 << unix.NFTA_LOG_LEVEL }, func() { data(e.Data) }}[field]()
	case *expr.Dynset:
		limit := e.Exprs[0].(*expr.Limit)
		[]func(){func() { change(&e.SrcRegKey) }, func() { change(&e.Operation) }, func() { e.Invert = !e.Invert }, func() { limit.Rate += 1 << 32 }, func() { limit.Over = !limit.Over }}[field]()
	case *expr.Reject:
		[]func(){func() { change(&e.Type) }, func() { e.Code++ }, func() {}, func() {}, func() {}}[field]()
	}
	return exprs
}

// mustBeExact decodes the expressions of a rule and, if they are recognised,
// encodes them again.
func mustBeExact(t *testing.T, f policy.Family, b []byte) {
	exprs, err := decodeExprs(f, b)
	if err != nil {
		return
	}
	r := ruleOf(f, exprs)
	if len(r.Match) == 1 && r.Match[0].Op == opForeign {
		return
	}
	again, err := encodeRule(f, &r)
	if err != nil {
		t.Fatalf("recognised as %+v, which cannot be encoded: %v", r, err)
	}
	if diff := cmp.Diff(exprs, again, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("recognised as %+v, but encoded (+) it differs:\n%s", r, diff)
	}
}
