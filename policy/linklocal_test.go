package policy_test

import (
	"net/netip"
	"testing"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
	"github.com/selvage-net/selvage/policy/policytest"
	"github.com/selvage-net/selvage/policy/trace"
)

// TestLinkLocal: every interface has a link-local address, of which the API
// knows nothing. Once a pod is isolated, they must not lead around its policies
// on a bridge; what else uses them is left alone.
func TestLinkLocal(t *testing.T) {
	p := oracle.Packet{Src: netip.MustParseAddr("fe80::1"), Dst: netip.MustParseAddr("fe80::2"), Protocol: policy.TCP, Port: 80}
	tests := []struct {
		name     string
		isolated bool
		bridge   string
		accepted bool
	}{
		{"nothing is isolated", false, "cni0", true},
		{"a pod is isolated", true, "cni0", false},
		{"on another interface", true, "cbr0", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := policy.Snapshot{
				Pods:    []*policy.Pod{somePod("web", policytest.NodeA, "10.1.0.2")},
				Bridges: []*policy.Bridge{{Meta: policy.Meta{Name: tt.bridge}}},
			}
			if tt.isolated {
				s.Policies = append(s.Policies, allow("clients", "client"))
			}
			ruleset, _ := policy.Compile(policy.DefaultConfig(policytest.NodeA), s)
			opening, stateless, discovery := policytest.Opening(p), policytest.Stateless(p, true), policytest.Stateless(p, true)
			discovery.Protocol, discovery.ICMPv6Type, discovery.HopLimit = trace.ICMPv6, 135, 255
			for _, packet := range []*trace.Packet{&opening, &stateless, &discovery} {
				packet.Iifname = "cni0"
				got, err := trace.Run(ruleset, "forward", *packet)
				want := tt.accepted || packet == &discovery
				if err != nil || (got.Verdict == policy.VerdictAccept) != want {
					t.Errorf("%+v: want accepted %v, error %v\n%s", packet, want, err, got)
				}
			}
		})
	}
	t.Run("a bridge that is found late", func(t *testing.T) {
		cl := newCluster(t, somePod("web", policytest.NodeA, "10.1.0.2"), allow("clients", "client"))
		cl.put(&policy.Bridge{Meta: policy.Meta{Name: "cni0"}})
		cl.want("flows of it were judged without knowing", true)
		cl.put(&policy.Bridge{Meta: policy.Meta{Name: "cni0"}})
		cl.want("the same once more", false)
	})
}
