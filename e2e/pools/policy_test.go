package pools

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-net/selvage/e2e/traffic"
	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/informer/api/v1alpha1"
	"github.com/selvage-net/selvage/policy"
)

// server is a UDP socket outside of the cluster, which speaks first when it likes.
type server struct{ *net.UDPConn }

func (s *stage) listen(at *world.Namespace, a netip.Addr) server {
	s.t.Helper()
	var c *net.UDPConn
	must(s.t, at.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		return err
	}))
	s.t.Cleanup(func() { c.Close() })
	return server{c}
}

// flow opens a flow to the server, and returns the pod's end and the source that the
// server sees.
func (v server) flow(t *testing.T, from *world.Pod) (client *net.UDPConn, source netip.AddrPort) {
	t.Helper()
	client, err := from.DialUDP(netip.Addr{}, v.LocalAddr().(*net.UDPAddr).AddrPort())
	must(t, err)
	t.Cleanup(func() { client.Close() })
	_, err = client.Write([]byte("hello"))
	must(t, err)
	must(t, v.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, source, err = v.ReadFromUDPAddrPort(make([]byte, 100))
	must(t, err)
	if !answered(t, v, client, source, true) {
		t.Fatalf("the first answer to %s does not arrive", source)
	}
	return client, source
}

// answered sends an answer and tells whether it arrives. It waits long only if it shall.
func answered(t *testing.T, v server, client *net.UDPConn, source netip.AddrPort, shall bool) bool {
	t.Helper()
	_, err := v.WriteToUDPAddrPort([]byte("answer"), source)
	must(t, err)
	wait := 300 * time.Millisecond
	if shall {
		wait = 10 * time.Second
	}
	must(t, client.SetReadDeadline(time.Now().Add(wait)))
	_, err = client.Read(make([]byte, 100))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == nil
}

// TestPolicySeesTheTrueSource has policies of blocks that are single addresses judge
// what is masqueraded on its way, by the agent and by flannel: the pod's own address
// counts, on the pod's node and on the other one, and when an answer comes first.
func TestPolicySeesTheTrueSource(t *testing.T) {
	for _, tc := range []struct {
		name    string
		nat     bool
		flannel []netip.Prefix
	}{{"agent", true, nil}, {"flannel", false, cidrs}, {"both", true, cidrs}} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStage(t)
			s.put("gold", pool("gold", tc.nat))
			for _, n := range []*world.Node{s.a, s.b} {
				must(t, n.FlannelMasquerade(t.Context(), tc.flannel...))
			}
			in := netpol("bus-in", "app", "bus", networkingv1.PolicyTypeIngress)
			in.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: blocksOf(append(s.one.Addrs(), far...)...)}}
			out := netpol("one-out", "app", "one", networkingv1.PolicyTypeEgress)
			out.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: blocksOf(append(s.bus.Addrs(), far...)...)}}
			s.put("policies", in, out)
			s.start()
			s.check("policies",
				ways(s.one.Namespace, s.bus.Addrs(), s.one.Addr), ways(s.two.Namespace, s.bus.Addrs(), nothing),
				ways(s.outside.Namespace, s.bus.Addrs(), s.outside.Addr), ways(s.kept.Namespace, s.bus.Addrs(), nothing),
				ways(s.one.Namespace, far, s.a.Addr), ways(s.one.Namespace, spared, nothing),
				ways(s.two.Namespace, far, s.a.Addr), ways(s.two.Namespace, spared, s.a.Addr),
				ways(s.bus.Namespace, far, s.b.Addr))

			// Of flows that go on, the next packet after a change is an answer.
			type open struct {
				server server
				client *net.UDPConn
				source netip.AddrPort
				lives  bool
			}
			var flows []open
			for _, a := range far {
				v := s.listen(s.outside.Namespace, a)
				for _, from := range []*world.Pod{s.one, s.two} {
					client, source := v.flow(t, from)
					if want := s.a.Addr(policy.FamilyOf(a)); source.Addr() != want {
						t.Errorf("%s is seen as %s, want %s", from.Name, source, want)
					}
					flows = append(flows, open{v, client, source, from == s.two})
				}
			}
			out.Spec.Egress[0].To = blocksOf(s.bus.Addrs()...)
			s.put("policies", in, out)
			s.become("the pod denied", ways(s.one.Namespace, far, nothing))
			for _, f := range flows {
				if got := answered(t, f.server, f.client, f.source, f.lives); got != f.lives {
					t.Errorf("an answer to %s of %s arrives: %t, want %t", f.source, f.client.LocalAddr(), got, f.lives)
				}
			}
		})
	}
}

// TestPoolLabel has policies name a pool, as peer and as subject, while it comes and
// goes.
func TestPoolLabel(t *testing.T) {
	s := newStage(t)
	// The label that a pod has does not count.
	s.declarePod(s.ray, map[string]string{"app": "ray", policy.PoolLabel: "gold"})
	in := netpol("bus-in", "app", "bus", networkingv1.PolicyTypeIngress)
	in.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{
		PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{policy.PoolLabel: "gold"}},
	}}}}
	walls := netpol("walls", policy.PoolLabel, "iron", networkingv1.PolicyTypeIngress)
	s.put("policies", in, walls)
	s.put("silver", pool("silver", false, cidrsB...))
	s.start()
	toBus := func(from *world.Pod) []way { return ways(from.Namespace, s.bus.Addrs(), from.Addr) }
	notToBus := func(from *world.Pod) []way { return ways(from.Namespace, s.bus.Addrs(), nothing) }
	toOne := func(source func(policy.Family) netip.Addr) []way { return ways(s.ray.Namespace, s.one.Addrs(), source) }
	s.check("without the pool", notToBus(s.one), notToBus(s.solo), notToBus(s.ray), toOne(s.ray.Addr))

	s.put("gold", pool("gold", true, cidrsA...))
	s.become("the pool as a peer", toBus(s.one), toBus(s.solo))
	s.check("with the pool", notToBus(s.ray), toOne(s.ray.Addr))
	flows := s.hold(s.one.Namespace, s.bus.Addrs()...)

	// Its place is taken by one that no policy lets in, but that is a subject.
	s.drop("gold")
	s.put("iron", pool("iron", true, cidrsA...))
	s.become("the pod out of the pool denied, and isolated in its new one", notToBus(s.one), toOne(nothing))
	s.check("with another pool", notToBus(s.solo), notToBus(s.ray), ways(s.one.Namespace, s.ray.Addrs(), s.one.Addr))
	for _, h := range flows {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if a, err := world.Exchange(ctx, h.conn, "cut"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s goes on after its pool is gone: %v, %v", h.name, a, err)
		}
		cancel()
	}
}

// TestBandwidthOfPool has a pool limit its pods, and others in its place.
func TestBandwidthOfPool(t *testing.T) {
	s := newStage(t)
	limit := func(text string) *v1alpha1.IPPool {
		p := pool("gold", false, cidrsB...)
		if text != "" {
			q := resource.MustParse(text)
			p.Spec.Bandwidth = &v1alpha1.Bandwidth{Ingress: &q}
		}
		return p
	}
	rates := func() []float64 {
		var out []float64
		for _, to := range []*world.Pod{s.bus, s.ray, s.two} {
			r, err := traffic.Stream{From: s.one, To: to, Addr: to.Addr(policy.IPv4), Congestion: "cubic", Length: time.Second}.Run(t.Context())
			must(t, err)
			out = append(out, r.Rate(time.Second/4, time.Second))
		}
		return out
	}
	s.put("gold", limit("20M"))
	s.start()
	for _, step := range []struct {
		limit string
		want  []int64
	}{{"20M", []int64{20e6, 20e6}}, {"40M", []int64{40e6, 40e6}}, {"", nil}} {
		s.put("gold", limit(step.limit))
		s.eventually(fmt.Sprintf("a limit of %q", step.limit), func() bool { return slices.Equal(s.limits(s.b), step.want) })
		for i, rate := range rates() {
			if i < len(step.want) {
				if bits := float64(step.want[i]); rate < .7*bits || rate > 1.1*bits {
					t.Errorf("a pod with a limit of %q has %.1f Mbit/s", step.limit, rate/1e6)
				}
			} else if rate < 80e6 {
				t.Errorf("a pod without a limit has %.1f Mbit/s", rate/1e6)
			}
		}
	}
}
