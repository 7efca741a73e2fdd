package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/informer/link"
	"github.com/selvage-net/selvage/informer/link/isolate"
	"github.com/selvage-net/selvage/metrics"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/shaping"
	"github.com/selvage-net/selvage/shaping/tc"
)

// TestBandwidthRemarks tells of each thing once when it appears, and once when it is
// over.
func TestBandwidthRemarks(t *testing.T) {
	var log strings.Builder
	var events []string
	refuse := false
	b := &bandwidth{metrics: metrics.New("test")}
	b.remarks = bandwidthRemarks(slog.New(slog.NewTextHandler(&log, nil)), func(n notice) bool {
		if refuse {
			return false
		}
		events = append(events, fmt.Sprintf("%s %s/%s %s: %s", n.about.Kind, n.about.Namespace, n.about.Name, n.reason, n.note))
		return true
	})
	web := shaping.Pod{Key: shaping.Key{Namespace: "shop", Name: "web"}, UID: "u"}
	wrong := shaping.Problem{Pod: web.Key, UID: "u", Annotation: "kubernetes.io/ingress-bandwidth", Err: errors.New("10Mbit")}
	worse := wrong
	worse.Err = errors.New("-1")
	namespace := shaping.Problem{Pod: shaping.Key{Namespace: "shop"}, Annotation: "kubernetes.io/egress-bandwidth", Err: errors.New("fast")}
	unshaped := func(r tc.Reason, err error) tc.Status {
		return tc.Status{Unshaped: []tc.Unshaped{{Pod: web, Reason: r, Err: err}}}
	}
	reborn := unshaped(tc.ForeignQdisc, errors.New("htb"))
	reborn.Unshaped[0].Pod.UID = "another"
	for i, step := range []struct {
		status tc.Status
		events []string
		lines  int
	}{
		{status: tc.Status{Shaped: 2}},
		{tc.Status{Problems: []shaping.Problem{wrong}}, []string{"Pod shop/web InvalidBandwidth: 10Mbit; what was in force before"}, 1},
		{tc.Status{Problems: []shaping.Problem{wrong}}, nil, 0},
		{tc.Status{Problems: []shaping.Problem{worse, namespace}}, []string{"Pod shop/web InvalidBandwidth: -1;", "Namespace /shop InvalidBandwidth: fast;"}, 2},
		{unshaped(tc.NoInterface, fmt.Errorf("none: %w", link.ErrNotFound)), []string{"Pod shop/web BandwidthNotShaped: the pod's bandwidth is not limited: none: no network namespace has the pod's address: the agent finds interfaces by the files in --netns-dir"}, 3},
		{unshaped(tc.NoInterface, link.ErrAmbiguous), []string{"Pod shop/web BandwidthNotShaped: the pod's bandwidth is not limited: more than one interface has the pod's address: remove the address"}, 1},
		{unshaped(tc.NoPermission, errors.New("may not")), []string{"Pod shop/web BandwidthNotShaped: the pod's bandwidth is not limited: may not: its interface is in its own network namespace"}, 1},
		{unshaped(tc.ForeignQdisc, errors.New("htb")), []string{"Pod shop/web BandwidthNotShaped: the pod's bandwidth is not limited: htb"}, 1},
		{reborn, []string{"Pod shop/web BandwidthNotShaped: the pod's bandwidth is not limited: htb"}, 2},
		{unshaped(tc.Refused, errors.New("no")), nil, 2}, // too many Events
		{unshaped(tc.Refused, errors.New("no")), []string{"Pod shop/web BandwidthNotShaped: the pod's bandwidth is not limited: no: it is tried again"}, 0},
		{tc.Status{}, nil, 1},
	} {
		refuse = i == 9
		log.Reset()
		events = nil
		b.observe(step.status)
		if got := strings.Count(log.String(), "\n"); got != step.lines {
			t.Errorf("step %d: %d lines, want %d:\n%s", i, got, step.lines, log.String())
		}
		if len(events) != len(step.events) {
			t.Errorf("step %d: events %q, want %q", i, events, step.events)
			continue
		}
		for j, want := range step.events {
			if !strings.HasPrefix(events[j], want) {
				t.Errorf("step %d: event %q, want %q", i, events[j], want)
			}
		}
	}
}

func TestShapingFlags(t *testing.T) {
	c, err := parse(t)
	if err != nil || !c.shaping.enabled || c.shaping.defaults.Any() || len(c.shaping.exclude) > 0 || c.shaping.takeOver || c.shaping.perPod || fmt.Sprint(c.shaping.netns) != "[/run/netns]" {
		t.Errorf("defaults %+v: %v", c.shaping, err)
	}
	c, err = parse(t, "--bandwidth=false", "--default-ingress-bandwidth=10M", "--default-egress-bandwidth=1500k", "--exclude-cidrs=10.0.0.0/8, fd00::/8",
		"--exclude-cidrs=192.168.0.0/16", "--take-over-bandwidth-plugin", "--metrics-per-pod", "--netns-dir=/run/netns,/run/docker/netns")
	if err != nil {
		t.Fatal(err)
	}
	want := shapingConfig{
		defaults: shaping.Limits{{Rate: 10_000_000}, {Rate: 1_500_000}}, takeOver: true, perPod: true, netns: []string{"/run/netns", "/run/docker/netns"},
		exclude: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("192.168.0.0/16")},
	}
	if !reflect.DeepEqual(c.shaping, want) {
		t.Errorf("%+v, want %+v", c.shaping, want)
	}
	for flag, want := range map[string]string{
		"--default-ingress-bandwidth=10Mbit": "not a quantity", "--default-egress-bandwidth=0": "is zero", "--default-egress-bandwidth=2P": "bits per second from 1k to 1P",
		"--exclude-cidrs=10.0.0.0": `"10.0.0.0" is no block of addresses`, "--exclude-cidrs=10.0.0.1/8": "10.0.0.0/8 would be the block", "--bandwidth=maybe": "invalid",
	} {
		if _, err := parse(t, flag); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", flag, err, want)
		}
	}
}

// TestNoBandwidth goes without.
func TestNoBandwidth(t *testing.T) {
	var b *bandwidth
	b.update([]policy.Delta{{Object: &policy.Pod{}}})
	b.setPools([]shaping.Pool{{}})
	if err := errors.Join(b.ready(), b.close()); err != nil {
		t.Error(err)
	}
}

// fakeShaper has a model, and counts how often that was changed.
type fakeShaper struct {
	shaper
	model   *shaping.Model
	changes int
	samples []tc.Sample
}

func (*fakeShaper) Ready() bool                     { return true }
func (f *fakeShaper) Samples() ([]tc.Sample, error) { return f.samples, nil }

func (f *fakeShaper) Change(change func(*shaping.Model)) {
	f.changes++
	change(f.model)
}

// TestBandwidthOfPools has the pools be there before the first pods, and told of when
// they have changed.
func TestBandwidthOfPools(t *testing.T) {
	s := &fakeShaper{model: shaping.NewModel(shaping.Limits{})}
	b := &bandwidth{node: "worker", shaper: s}
	pools := func(rate shaping.Rate) []shaping.Pool {
		return []shaping.Pool{{CIDRs: cidrs("10.1.0.0/24"), Limits: shaping.Limits{{Rate: rate}}}}
	}
	for i, step := range []struct {
		do      func()
		changes int
		limited string // the pods that have changed, with their rates
	}{
		{func() { b.update([]policy.Delta{localPod("a", "10.1.0.1")}) }, 0, ""},
		{func() { b.update([]policy.Delta{localPod("b", "10.2.0.1")}) }, 0, ""},
		{func() { b.setPools(pools(1_000_000)) }, 1, "shop/a:1M shop/b:unlimited "},
		{func() { b.setPools(pools(1_000_000)) }, 1, ""},
		{func() { b.update([]policy.Delta{localPod("c", "10.1.0.3")}) }, 2, "shop/c:1M "},
		{func() { b.setPools(pools(2_000_000)) }, 3, "shop/a:2M shop/b:unlimited shop/c:2M "},
		{func() { b.setPools(nil) }, 4, "shop/a:unlimited shop/b:unlimited shop/c:unlimited "},
		{func() { b.setPools(nil) }, 4, ""},
	} {
		step.do()
		limited := ""
		for _, k := range s.model.Changed() {
			limited += fmt.Sprintf("%s:%v ", k, s.model.Limits(k)[shaping.Ingress].Rate)
		}
		if s.changes != step.changes || limited != step.limited {
			t.Errorf("step %d: %d changes, %q; want %d, %q", i, s.changes, limited, step.changes, step.limited)
		}
	}
}

const bandwidthPods = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: web-1, labels: {app: web}, annotations: {kubernetes.io/ingress-bandwidth: WEB, kubernetes.io/egress-bandwidth: 20M}}
spec: {nodeName: worker, containers: [{name: web, image: web}]}
status: {phase: Running, podIP: 10.244.1.2, podIPs: [{ip: 10.244.1.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: mac, namespace: shop, uid: mac-1, annotations: {kubernetes.io/ingress-bandwidth: 30M, kubernetes.io/egress-bandwidth: 40M}}
spec: {nodeName: worker, containers: [{name: mac, image: mac}]}
status: {phase: Running, podIP: 192.168.1.50, podIPs: [{ip: 192.168.1.50}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop, uid: host-1, annotations: {kubernetes.io/ingress-bandwidth: 30M}}
spec: {nodeName: worker, hostNetwork: true, containers: [{name: mac, image: mac}]}
status: {phase: Running, podIP: 192.168.1.10, podIPs: [{ip: 192.168.1.10}]}
`

// bandwidthWorld adds pods with real interfaces to the world: one on the bridge, one
// of macvlan.
func bandwidthWorld(t *testing.T) (manifests string) {
	t.Helper()
	manifests = t.TempDir()
	isolate.Sh(t, `ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0; ip link set cni0 up
		ip netns add web; ip link add veth2 type veth peer name eth0 netns web; ip link set veth2 master cni0 up
		ip -n web link set eth0 up; ip -n web addr add 10.244.1.2/24 dev eth0
		ip link add uplink type veth peer name other; ip addr add 192.168.1.10/24 dev uplink; ip link set uplink up; ip link set other up
		ip netns add mac; ip link add eth0 link uplink netns mac type macvlan mode bridge
		ip -n mac addr add 192.168.1.50/24 dev eth0; ip -n mac link set eth0 up`)
	write(t, manifests, "cluster.yaml", cluster[:strings.Index(cluster, "---\napiVersion: v1\nkind: Pod")])
	return manifests
}

// TestAgentShapes goes through the life of an agent that shapes.
func TestAgentShapes(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	manifests := bandwidthWorld(t)
	web := func(rate string) { write(t, manifests, "pods.yaml", strings.ReplaceAll(bandwidthPods, "WEB", rate)) }
	shows := func(where, want string) func() bool {
		return func() bool { return strings.Contains(isolate.Sh(t, where+"tc qdisc show"), want) }
	}
	const inMac = "ip netns exec mac "
	web("10M")
	a := startAgentWith(t, "agent", "--node-name=worker", "--manifests="+manifests, "--metrics-per-pod")
	eventually(t, "shaped", func() bool { return isMetric(t, "selvage_shaped_pods", 2) })
	for _, want := range []struct{ where, what string }{
		{"", "qdisc tbf 5e1a: dev veth2 root refcnt 3 rate 10Mbit burst"}, {"", "rate 20Mbit"}, {"", "clsact ffff: dev veth2"},
		{inMac, "dev eth0 root refcnt 2 rate 40Mbit"}, {inMac, "rate 30Mbit"},
	} {
		if !shows(want.where, want.what)() {
			t.Errorf("%sno %q in\n%s", want.where, want.what, isolate.Sh(t, want.where+"tc qdisc show"))
		}
	}
	if shows("", "dev uplink root refcnt 2 rate")() || shows("", "tbf 5e1a: dev uplink")() {
		t.Error("the uplink is shaped")
	}
	expectMetrics(t, map[string]float64{
		`selvage_unshaped_pods{reason="HostNetwork"}`: 1, "selvage_invalid_bandwidth_annotations": 0,
		`selvage_bandwidth_limit_bytes_per_second{direction="ingress",namespace="shop",pod="mac"}`: 3_750_000,
		`selvage_bandwidth_limit_bytes_per_second{direction="egress",namespace="shop",pod="web"}`:  2_500_000,
	})
	web("11M")
	eventually(t, "another rate", shows("", "rate 11Mbit"))
	web("fast")
	eventually(t, "in doubt", func() bool { return isMetric(t, "selvage_invalid_bandwidth_annotations", 1) })

	// Nobody watches, an annotation still cannot be used, another one changes.
	if err := a.end(t, os.Kill); err == nil {
		t.Error("not killed")
	}
	if !shows("", "rate 11Mbit")() {
		t.Error("the rate went with the agent")
	}
	write(t, manifests, "pods.yaml", strings.NewReplacer("WEB", "fast", "20M", "21M").Replace(bandwidthPods))
	a = startAgentWith(t, "agent", "--node-name=worker", "--manifests="+manifests)
	eventually(t, "shaped again", func() bool { return isMetric(t, "selvage_shaped_pods", 2) })
	if !shows("", "rate 11Mbit")() || !shows("", "rate 21Mbit")() {
		t.Error(isolate.Sh(t, "tc qdisc show"))
	}
	isolate.Sh(t, "tc qdisc del dev veth2 root")
	eventually(t, "repaired", shows("", "rate 11Mbit"))
	eventually(t, "counted", func() bool { return isMetric(t, "selvage_shaping_repaired_total", 1) })
	if err := a.end(t, os.Interrupt); err != nil {
		t.Errorf("ended with %v", err)
	}
	out, err := selvage(os.Args[0], "cleanup").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "and 3 queues, redirections and IFBs of pods") {
		t.Errorf("cleanup: %s%v", out, err)
	}
	if show := isolate.Sh(t, "tc qdisc show; ip -br link show type ifb"); strings.Contains(show, "tbf") || strings.Contains(show, "clsact") || strings.Contains(show, "selv") {
		t.Errorf("left: %s", show)
	}
}

func isMetric(t *testing.T, series string, want float64) bool {
	t.Helper()
	_, _, err := get("/readyz")
	return err == nil && metric(t, series) == want
}

// TestAgentShapesWithNetAdmin has the capability of the DaemonSet, and no other: that
// suffices for all but pods whose interface is in their own namespace.
func TestAgentShapesWithNetAdmin(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	manifests := bandwidthWorld(t)
	write(t, manifests, "pods.yaml", strings.ReplaceAll(bandwidthPods, "WEB", "10M"))
	cmd := exec.Command("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all", os.Args[0],
		"agent", "--node-name=worker", "--manifests="+manifests)
	a := startCommand(t, cmd)
	eventually(t, "shaped", func() bool { return isMetric(t, "selvage_shaped_pods", 1) })
	expectMetrics(t, map[string]float64{`selvage_unshaped_pods{reason="NoPermission"}`: 1, `selvage_unshaped_pods{reason="HostNetwork"}`: 1})
	if show := isolate.Sh(t, "tc qdisc show"); !strings.Contains(show, "rate 10Mbit") || !strings.Contains(show, "rate 20Mbit") {
		t.Error(show)
	}
	if err := a.end(t, os.Interrupt); err != nil {
		t.Errorf("ended with %v", err)
	}
	if log := a.log.String(); !strings.Contains(log, "give the agent the capability SYS_ADMIN") {
		t.Error("it does not say what to do")
	}
}
