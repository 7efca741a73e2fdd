package nft

import (
	"net/netip"

	"github.com/selvage-net/selvage/policy"
)

// sample returns a change that has one of everything that rulesets are made
// of, but for what is in logSample and masqueradeSample. It leads to nothing: it is for Check
// alone.
func sample() *policy.Change {
	c := &policy.Change{}
	for _, f := range policy.Families {
		c.Tables[f] = sampleTable(f)
	}
	return c
}

func sampleTable(f policy.Family) policy.TableChange {
	addr := netip.IPv4Unspecified()
	if f == policy.IPv6 {
		addr = netip.IPv6Unspecified()
	}
	const target, hash, ranges, verdicts, ports, counter = "check", "check-hash", "check-interval", "check-verdicts", "check-ports", "check-counter"
	key := policy.AddrKey(addr)
	rules := []policy.Rule{
		{Match: []policy.Match{
			{Field: policy.FieldCtState, Op: policy.OpBits, Value: policy.StateEstablished | policy.StateRelated},
			{Field: policy.FieldCtMark, Op: policy.OpMasked, Arg: 1, Value: 1},
		}, Verdict: policy.Verdict{Kind: policy.VerdictAccept}},
		{Match: []policy.Match{
			{Field: policy.FieldCtProtocol, Op: policy.OpEqual, Value: uint32(policy.TCP)},
			{Field: policy.FieldCtReplySaddr, And: policy.FieldCtReplyProtoSrc, Op: policy.OpIn, Name: hash},
		}, Count: counter, Verdict: policy.Verdict{Kind: policy.VerdictDrop}},
		{Match: []policy.Match{{Field: policy.FieldCtOriginalSaddr, Op: policy.OpIn, Name: ranges}}, Stamp: policy.Mark{Mask: 1, Value: 1}},
		{Match: []policy.Match{{Field: policy.FieldSaddr, Op: policy.OpVerdict, Name: verdicts}}},
		{Match: []policy.Match{
			{Field: policy.FieldCtProtocol, Op: policy.OpEqual, Value: uint32(policy.TCP)},
			{Field: policy.FieldCtReplyProtoSrc, Op: policy.OpVerdict, Name: ports},
		}},
		{Match: []policy.Match{{Field: policy.FieldL4Proto, Op: policy.OpEqual, Value: uint32(policy.TCP)}}, Verdict: policy.Verdict{Kind: policy.VerdictReset}},
		{Match: []policy.Match{{Field: policy.FieldIifname, Op: policy.OpEqual, Name: "lo"}}, Verdict: policy.Verdict{Kind: policy.VerdictProhibit}},
	}
	goTo := policy.Verdict{Kind: policy.VerdictGoto, Chain: target}
	return policy.TableChange{
		Family:      f,
		AddCounters: []policy.Counter{{Name: counter}},
		AddSets: []policy.Set{
			{Name: hash, Key: [2]policy.Type{policy.TypeAddr, policy.TypeService}, Elements: []policy.Element{{Key: policy.AddrServiceKey(addr, 1)}}},
			{Name: ranges, Key: [2]policy.Type{policy.TypeAddr}, Interval: true, Elements: []policy.Element{{Key: key, To: key}}},
			{Name: verdicts, Key: [2]policy.Type{policy.TypeAddr}, Verdicts: true, Elements: []policy.Element{{Key: key, Verdict: goTo}}},
			{Name: ports, Key: [2]policy.Type{policy.TypeService}, Verdicts: true, Interval: true, Elements: []policy.Element{
				{Key: policy.ServiceKey(1), To: policy.ServiceKey(2), Verdict: goTo},
			}},
		},
		AddChains: []policy.Chain{{Name: target}},
		SetChains: []policy.Chain{{Name: "check-forward", Hook: &policy.Hook{Name: hookForward}, Rules: rules}},
	}
}

// logSample is sample for CheckLog.
func logSample() *policy.Change {
	c := &policy.Change{}
	for _, f := range policy.Families {
		const sampled = "check-sampled"
		c.Tables[f] = policy.TableChange{
			Family:  f,
			AddSets: []policy.Set{{Name: sampled, Key: [2]policy.Type{policy.TypeAddr}, Dynamic: true, Size: 1, Timeout: 1}},
			SetChains: []policy.Chain{{
				Name: "check-forward", Hook: &policy.Hook{Name: hookForward},
				Rules: []policy.Rule{{
					Sample: policy.Sample{Set: sampled, Key: policy.FieldSaddr, Rate: 1, Burst: 1},
					Log:    policy.Log{Group: policy.LogGroup, Prefix: "check", Snaplen: 1},
				}},
			}},
		}
	}
	return c
}

// masqueradeSample is sample for CheckMasquerade.
func masqueradeSample() *policy.Change {
	c := &policy.Change{}
	for _, f := range policy.Families {
		const ranges = "check-interval"
		c.Tables[f] = policy.TableChange{
			Family:  f,
			AddSets: []policy.Set{{Name: ranges, Key: [2]policy.Type{policy.TypeAddr}, Interval: true}},
			SetChains: []policy.Chain{{
				Name: "check-postrouting", Hook: &policy.Hook{Name: hookPostrouting, NAT: true},
				Rules: []policy.Rule{{
					Match:   []policy.Match{{Field: policy.FieldDaddr, Op: policy.OpNotIn, Name: ranges}},
					Counter: true, Verdict: policy.Verdict{Kind: policy.VerdictMasquerade},
				}},
			}},
		}
	}
	return c
}
