package answers

import (
	"net/netip"
	"testing"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

// explanation is what `selvage explain` says.
type explanation struct {
	Outcome      string
	Certain      bool
	Explanations []struct {
		Kernels []struct {
			Node   string
			Agrees bool
			Answer struct{ Allowed bool }
		}
	}
}

// TestExplain holds `selvage explain` against real connections, and its exit codes
// against what it can tell.
func TestExplain(t *testing.T) {
	s := newStage(t)
	source := []string{"--manifests", s.manifests, "--agent", world.AgentAddress}
	for _, tc := range []struct {
		from, to *world.Pod
		ref      [2]string
		want     world.Outcome
		outcome  string
		code     int
	}{
		{s.friend, s.web, [2]string{"shop/friend", "shop/web"}, world.Allowed, "allowed", 0},
		{s.rogue, s.web, [2]string{"shop/rogue", "shop/web"}, world.Dropped, "denied", 1},
		{s.shut, s.friend, [2]string{"shop/shut", "shop/friend"}, world.Dropped, "denied", 1},
		{s.rogue, s.shut, [2]string{"shop/rogue", "shop/shut"}, world.Allowed, "allowed", 0},
	} {
		for _, a := range tc.to.Addrs() {
			r := s.world.Probe(t.Context(), world.Probe{From: tc.from.Namespace, To: netip.AddrPortFrom(a, tcpPort), Protocol: policy.TCP, Want: tc.want})[0]
			if r.Outcome != tc.want {
				t.Errorf("%s to %s: %s (%v)", tc.ref[0], a, r.Outcome, r.Err)
			}
		}
		var e explanation
		code := s.ask(&e, append([]string{"explain", tc.ref[0], tc.ref[1], "80/TCP"}, source...)...)
		if code != tc.code || e.Outcome != tc.outcome || !e.Certain || len(e.Explanations) != 1 {
			t.Errorf("%s to %s: exit code %d, %+v", tc.ref[0], tc.ref[1], code, e)
			continue
		}
		kernels := e.Explanations[0].Kernels
		if len(kernels) != 1 || kernels[0].Node != s.node.Name || !kernels[0].Agrees || kernels[0].Answer.Allowed != (tc.want == world.Allowed) {
			t.Errorf("%s to %s: the kernels say %+v", tc.ref[0], tc.ref[1], kernels)
		}
	}

	for _, question := range [][]string{{"shop/nobody", "shop/web", "80"}, {"shop/friend", "shop/web", "no-port"}} {
		if r := s.run(append(append([]string{"explain"}, question...), source...)...); r.Code != 2 || r.Err == "" {
			t.Errorf("%v: exit code %d: %s%s", question, r.Code, r.Out, r.Err)
		}
	}
	must(t, s.agent.Kill())
	var e explanation
	if code := s.ask(&e, append([]string{"explain", "shop/friend", "shop/web", "80"}, source...)...); code != 2 || e.Certain || e.Outcome != "allowed" {
		t.Errorf("without an agent: exit code %d, %+v", code, e)
	}
	if code := s.ask(&e, "explain", "shop/friend", "shop/web", "80", "--manifests", s.manifests); code != 0 || !e.Certain {
		t.Errorf("by manifests alone: exit code %d, %+v", code, e)
	}
}
