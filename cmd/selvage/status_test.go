package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/informer/link"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nft"
	"github.com/selvage-net/selvage/shaping"
	"github.com/selvage-net/selvage/shaping/tc"
)

func versionOf(name, version string) policy.Delta {
	return policy.Delta{Object: &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, ResourceVersion: version}}}
}

// TestInForce follows versions of policies, in syncs that fail and succeed.
func TestInForce(t *testing.T) {
	var f inForce
	at := func(seconds int64) time.Time { return time.Unix(seconds, 0) }
	gone := versionOf("web", "9")
	gone.Deleted = true
	for i, step := range []struct {
		do   func()
		want arrived
		last bool
	}{
		{func() {}, arrived{}, false},
		{func() { f.come([]policy.Delta{thisNode, versionOf("web", "1"), versionOf("db", "2")}) }, arrived{}, false},
		{func() { f.arrive(at(10)) }, arrived{"1", at(10)}, true},
		{func() { f.arrive(at(11)) }, arrived{"1", at(10)}, true},
		{func() { f.come([]policy.Delta{versionOf("web", "3")}) }, arrived{"1", at(10)}, false},
		{func() { f.come([]policy.Delta{versionOf("db", "4")}); f.arrive(at(12)) }, arrived{"3", at(12)}, true},
		{func() { f.come([]policy.Delta{gone}) }, arrived{"3", at(12)}, false},
		{func() { f.arrive(at(13)) }, arrived{}, false},
	} {
		step.do()
		if got, last := f.of(types.NamespacedName{Namespace: "shop", Name: "web"}); got != step.want || last != step.last {
			t.Errorf("step %d: %v, %v; want %v, %v", i, got, last, step.want, step.last)
		}
	}
}

// TestSince remembers since when the agent is, or is not, in sync, whoever asks.
func TestSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, e, b := newTestAgent()
		began := time.Now()
		check := func(when string, inSync bool, after time.Duration) {
			t.Helper()
			if s := a.status(false); s.InSync != inSync || s.Since.Sub(began) != after || (len(s.Missing) == 0) != inSync {
				t.Errorf("%s: %v since %v, %q; want %v since %v", when, s.InSync, s.Since.Sub(began), s.Missing, inSync, after)
			}
		}
		_ = a.ready()
		time.Sleep(time.Second)
		check("at the start", false, 0)
		_ = a.sync(t.Context(), initial(thisNode))
		time.Sleep(time.Second)
		check("in sync", true, time.Second)
		b.status.Bridges = []link.Bridge{{Name: "cni0", Err: link.ErrNoFilter}}
		_ = a.ready() // the kubelet asks
		time.Sleep(time.Second)
		check("uncovered", false, 2*time.Second)
		b.status.Bridges = nil
		e.err = errors.New("no luck")
		_ = a.sync(t.Context(), batch())
		check("for another reason", false, 2*time.Second)
		e.err = nil
		_ = a.sync(t.Context(), batch())
		check("in sync again", true, 3*time.Second)
		if s := a.status(false); !s.LastSync.Equal(time.Now()) || s.Generation != 3 || !s.Started.Equal(began) {
			t.Errorf("last sync %v, generation %d, started %v", s.LastSync, s.Generation, s.Started)
		}
	})
}

// TestStatus has everything in it that may be.
func TestStatus(t *testing.T) {
	a, e, _ := newTestAgent()
	e.policies = []policy.PolicyPods{{Namespace: "shop", Name: "db"}, {Namespace: "shop", Name: "web", Pods: 2}}
	web := policy.PolicyRef{Namespace: "shop", Name: "web"}
	e.tallied = nft.PolicyCounts{
		Policies: []nft.PolicyCount{
			{PolicyRef: web, Direction: "egress", Allowed: nft.Count{Packets: 1}, Denied: nft.Count{Packets: 2}},
			{PolicyRef: web, Direction: "ingress", Allowed: nft.Count{Packets: 30}, Denied: nft.Count{Packets: 40}},
		},
		Denied: []nft.DeniedCount{
			{Count: nft.Count{Packets: 5}},
			{Namespace: "shop", Direction: "egress", Count: nft.Count{Packets: 2}}, {Namespace: "shop", Direction: "ingress", Count: nft.Count{Packets: 40}},
		},
	}
	e.problems = []policy.Problem{{Namespace: "shop", Name: "wrong", Err: errors.New("no such port")}}
	a.source.connect(informer.Pods, true)
	a.source.trouble(informer.Nodes, trouble(informer.Nodes, informer.Forbidden, forbidden("nodes")))
	a.conditions.set("test", condition{reason: reasonOtherEngine, about: "calico", message: "there is calico"})
	s := &fakeShaper{model: shaping.NewModel(shaping.Limits{}), samples: []tc.Sample{{
		Pod: shaping.Key{Namespace: "shop", Name: "web-0"}, Direction: shaping.Egress, Rate: 8_000_000,
		Counters: tc.Counters{Bytes: 7, Drops: 6, Backlog: 5},
	}}}
	a.bandwidth = &bandwidth{metrics: a.metrics, shaper: s, remarks: bandwidthRemarks(a.log, nil)}
	a.bandwidth.observe(tc.Status{
		Shaped:   1,
		Problems: []shaping.Problem{{Pod: shaping.Key{Namespace: "shop"}, Annotation: "kubernetes.io/egress-bandwidth", Err: errors.New("fast")}},
		Unshaped: []tc.Unshaped{{Pod: shaping.Pod{Key: shaping.Key{Namespace: "shop", Name: "host"}}, Reason: tc.HostNetwork, Err: errors.New("it has none")}},
	})
	if err := a.sync(t.Context(), initial(thisNode, versionOf("web", "7"), versionOf("db", "8"))); err != nil {
		t.Fatal(err)
	}
	a.pools.report(e.Pools(), policy.Use{})
	w := httptest.NewRecorder()
	a.serveStatus(w, httptest.NewRequest(http.MethodGet, "/status", nil))
	if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("headers %v", w.Header())
	}
	golden(t, "status.json", indented(t, w.Body.Bytes()))
	var all nodeStatus
	w = httptest.NewRecorder()
	a.serveStatus(w, httptest.NewRequest(http.MethodGet, "/status?policies=all", nil))
	if err := json.Unmarshal(w.Body.Bytes(), &all); err != nil || len(all.Policies) != 2 || all.Policies[0].Name != "db" {
		t.Errorf("%v, %v", all.Policies, err)
	}
}

// indented makes times that are not known before the same.
func indented(t *testing.T, data []byte) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`"20\d\d-[^"]*"`).ReplaceAllString(string(out), `"TIME"`) + "\n"
}

// TestStatusOfNothing never has null for a list, and does not wait for a sync that hangs.
func TestStatusOfNothing(t *testing.T) {
	a, e, _ := newTestAgent()
	e.uncounted = errors.New("no permission")
	a.drops.fail(errors.New("no nflog"))
	data, err := json.Marshal(a.status(true))
	if err != nil || strings.Contains(string(data), "null") {
		t.Errorf("%s, %v", data, err)
	}
	if s := a.status(true); s.CountsError != "no permission" || s.DropsError != "no nflog" || s.Bandwidth.Enabled {
		t.Errorf("%+v", s)
	}
	a.setBusy(time.Now().Add(-time.Minute))
	e.policies = []policy.PolicyPods{{Name: "web", Pods: 1}}
	if s := a.status(true); len(s.Policies) != 0 || !strings.Contains(s.CountsError, "takes long") {
		t.Errorf("%+v", s)
	}
}
