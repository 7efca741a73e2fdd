package trace_test

import (
	"strings"
	"testing"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/trace"
)

// denying is a ruleset with a chain that samples, logs, counts and drops.
func denying() *policy.Ruleset {
	r := ruleset([]policy.Set{{
		Name: "sampled-v4", Key: [2]policy.Type{policy.TypeAddr}, Dynamic: true, Size: 1, Timeout: 1,
	}},
		chain("deny",
			policy.Rule{
				Sample: policy.Sample{Set: "sampled-v4", Key: policy.FieldSaddr, Rate: 2, Burst: 5},
				Log:    policy.Log{Group: 1, Prefix: "deny", Snaplen: 128},
			},
			policy.Rule{Count: "deny", Verdict: drop}),
		chain("forward", rule(jump("deny"))))
	r.Tables[policy.IPv4].Counters = []policy.Counter{{Name: "deny", Comment: "isolated by shop/db"}}
	return r
}

// TestDeny: what is logged and counted on the way changes nothing.
func TestDeny(t *testing.T) {
	if err := trace.Check(denying()); err != nil {
		t.Fatal(err)
	}
	result, err := trace.Run(denying(), "forward", trace.Packet{Saddr: client, Daddr: server, Protocol: policy.TCP})
	if err != nil {
		t.Fatal(err)
	}
	want := `forward[0]: jump deny
deny[0]: update @sampled-v4 { ip saddr limit rate 2/second burst 5 packets } log prefix "deny" group 1 snaplen 128
deny[1]: counter name "deny" drop
=> drop, mark 0x0`
	if got := result.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestDenyUnknown spoils the ruleset in one place each. The tracer must not walk
// through what it does not know, nor Check let it pass.
func TestDenyUnknown(t *testing.T) {
	sample := func(s *policy.Sample) func(*policy.Table) {
		return func(p *policy.Table) { p.Chains[0].Rules[0].Sample = *s }
	}
	log := func(l policy.Log) func(*policy.Table) {
		return func(p *policy.Table) { p.Chains[0].Rules[0].Log = l }
	}
	tests := []struct {
		name  string
		spoil func(*policy.Table)
		want  string
	}{
		{"a counter that is not there", func(p *policy.Table) { p.Counters[0].Name = "another" }, "counter deny"},
		{"a sample in a set that is not there", sample(&policy.Sample{Set: "none-v4", Key: policy.FieldSaddr, Rate: 1, Burst: 1}), "none-v4"},
		{"a sample without a rate", sample(&policy.Sample{Set: "sampled-v4", Key: policy.FieldSaddr, Burst: 1}), "unknown: a sample"},
		{"a sample without a burst", sample(&policy.Sample{Set: "sampled-v4", Key: policy.FieldSaddr, Rate: 1}), "unknown: a sample"},
		{"a sample of flows", sample(&policy.Sample{Set: "sampled-v4", Key: policy.FieldCtReplySaddr, Rate: 1, Burst: 1}), "unknown: a sample"},
		{"a sample in a set of ours", func(p *policy.Table) { p.Sets[0] = addrs("sampled-v4", client) }, "not one that packets fill"},
		{"a sample of ports", func(p *policy.Table) { p.Sets[0].Key[0] = policy.TypeService }, "not keyed"},
		{"a log to no group", log(policy.Log{Prefix: "deny", Snaplen: 1}), "unknown: a log"},
		{"a log without a prefix", log(policy.Log{Group: 1, Snaplen: 1}), "unknown: a log"},
		{"a log of no bytes", log(policy.Log{Group: 1, Prefix: "deny"}), "unknown: a log"},
		{"a log with a long prefix", log(policy.Log{Group: 1, Prefix: strings.Repeat("x", 128), Snaplen: 1}), "unknown: a log"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := denying()
			tt.spoil(&r.Tables[policy.IPv4])
			if err := trace.Check(r); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check: want an error with %q, got %v", tt.want, err)
			}
			_, err := trace.Run(r, "forward", trace.Packet{Saddr: client, Daddr: server, Protocol: policy.TCP})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Run: want an error with %q, got %v", tt.want, err)
			}
		})
	}
}

// TestCheckDeny spoils the ruleset in ways that a packet does not notice.
func TestCheckDeny(t *testing.T) {
	second := policy.Counter{Name: "zero"}
	tests := []struct {
		name  string
		spoil func(*policy.Table)
		want  string
	}{
		{"counters out of order", func(p *policy.Table) { p.Counters = []policy.Counter{second, p.Counters[0]} }, "not in order"},
		{"a counter twice", func(p *policy.Table) { p.Counters = append(p.Counters, p.Counters[0]) }, "there twice"},
		{"a counter that nothing uses", func(p *policy.Table) { p.Counters = append(p.Counters, second) }, "no rule uses it"},
		{"a counter that nft cannot read", func(p *policy.Table) { p.Counters[0].Name = "a b" }, "cannot read this name"},
		{"a comment that nft cannot read", func(p *policy.Table) { p.Counters[0].Comment = `a "b"` }, "cannot read the comment"},
		{"elements of ours in a dynamic set", func(p *policy.Table) { p.Sets[0].Elements = addrs("x", client).Elements }, "packets cannot fill it"},
		{"a dynamic map", func(p *policy.Table) { p.Sets[0].Verdicts = true }, "packets cannot fill it"},
		{"a dynamic set without a size", func(p *policy.Table) { p.Sets[0].Size = 0 }, "packets cannot fill it"},
		{"a dynamic set for ever", func(p *policy.Table) { p.Sets[0].Timeout = 0 }, "for ever"},
		{"a set of ours that times out", func(p *policy.Table) { p.Sets[0].Dynamic = false }, "do not time out"},
		{"a look-up in a dynamic set", func(p *policy.Table) {
			p.Chains[0].Rules[1].Match = []policy.Match{{Field: policy.FieldSaddr, Op: policy.OpIn, Name: "sampled-v4"}}
		}, "what packets fill decides"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := denying()
			tt.spoil(&r.Tables[policy.IPv4])
			if err := trace.Check(r); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("want an error with %q, got %v", tt.want, err)
			}
		})
	}
	sampled := denying()
	sampled.Tables[policy.IPv4].Chains[0].Rules[0].Verdict = drop
	if _, err := trace.Run(sampled, "forward", trace.Packet{Saddr: client, Daddr: server}); err == nil || !strings.Contains(err.Error(), "how many packets") {
		t.Errorf("a verdict for some of the packets: %v", err)
	}
}
