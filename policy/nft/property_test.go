package nft

import (
	"bytes"
	"testing"

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

// withComments returns r with the comments that its sets have in before: a
// comment alone is no reason to make a set anew.
func withComments(r, before *policy.Ruleset) *policy.Ruleset {
	out := *r
	for i := range out.Tables {
		out.Tables[i].Sets = append([]policy.Set(nil), r.Tables[i].Sets...)
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

// FuzzDecode: what others put into our tables must not bring the agent down.
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
		r := decodeMessages([]netlink.Message{{Header: netlink.Header{Type: messageType(unix.NFT_MSG_NEWCHAIN)},
			Data: appendString(appendString([]byte{data[0], 0, 0, 0}, unix.NFTA_CHAIN_TABLE, policy.TableName), unix.NFTA_CHAIN_NAME, "egress")}, msg})
		_ = r.String()
	})
}
