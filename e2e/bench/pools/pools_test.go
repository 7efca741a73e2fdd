package pools

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/policy"
)

// privileged skips the test, loudly, where network namespaces cannot be made.
func privileged(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const why = "network namespaces and nftables need root"
	if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
		t.Fatal(why)
	}
	t.Skip("SKIPPED, NOT PASSED: " + why)
}

func testClusters() []Cluster { return []Cluster{{Pools: 1, Nodes: 1}, {Pools: 600, Nodes: 300}} }

func TestClustersAreWhatTheySay(t *testing.T) {
	for _, c := range testClusters() {
		r := masquerade(c.compiler().Ruleset())
		for _, f := range policy.Families {
			table := r.Tables[f]
			if len(table.Chains) != 2 || len(table.Sets) != 3 {
				t.Fatalf("%s: %d chains and %d sets of %s", c, len(table.Chains), len(table.Sets), f)
			}
			for i, want := range []int{2*c.Nodes + 1, c.Pools, c.Pools} { // kept, masquerade, pools
				if s := table.Sets[i]; len(s.Elements) != want {
					t.Errorf("%s: %s has %d elements, want %d", c, s.Name, len(s.Elements), want)
				}
			}
		}
		if ch := c.change(); ch.Empty() || ch.Tightens {
			t.Errorf("%s: the change is empty, or is about policy", c)
		}
	}
	if got := (Cluster{Pools: 1, Nodes: 5000}).String(); got != "1 pool, 5000 nodes" {
		t.Errorf("a cluster is called %q", got)
	}
}

// TestWorldsTranslateWhatTheyShall looks at the source that arrives in each world.
func TestWorldsTranslateWhatTheyShall(t *testing.T) {
	privileged(t)
	o := CostOptions{Clusters: testClusters()}
	for _, f := range policy.Families {
		for _, way := range []Way{Leaving, Inside} {
			for _, v := range o.variants(f, way) {
				triple, err := bench.NewTriple(way.flow(f))
				if err != nil {
					t.Fatal(err)
				}
				defer triple.Close()
				if err := v.load(triple); err != nil {
					t.Fatal(err)
				}
				if got := source(t, triple); (got == pod[f]) != (way == Inside) {
					t.Errorf("%s, %s, %s: the source is %s", v.name, way, f, got)
				}
			}
		}
	}
}

// source sends a datagram and returns the source that is seen.
func source(t *testing.T, triple *bench.Triple) netip.Addr {
	t.Helper()
	var server, client *net.UDPConn
	to := netip.AddrPortFrom(triple.Flow.Pod, triple.Flow.Port)
	err := triple.Pod.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	err = triple.Source.Do(func() (err error) {
		client, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(triple.Flow.Peers[0], 0)), net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	if err := server.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, from, err := server.ReadFromUDPAddrPort(make([]byte, 10))
	if err != nil {
		t.Fatal(err)
	}
	return from.Addr().Unmap()
}

func TestCostsMeasuresEveryVariant(t *testing.T) {
	privileged(t)
	const extra = "table ip x {\n\tchain y {\n\t\ttype nat hook postrouting priority 110;\n\t}\n}\n"
	results, err := Costs(CostOptions{
		Families: policy.Families[:], Clusters: testClusters(), Loads: []bench.Load{bench.UDPConnect, bench.TCPEstablished},
		Extra: map[string]string{"mine": extra}, Replicas: 2, Length: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range results {
		got = append(got, fmt.Sprintf("%s %s %s %t", r.Family, r.Way, r.Load, r.New))
		for _, v := range []string{r.Way.Baseline(), Flannel, "1 pool, 1 node", "600 pools, 300 nodes", "mine"} {
			if f, ok := r.Figure(v); !ok || f.Replicas != 2 || f.Median <= 0 || r.ToFlannel[v] <= 0 {
				t.Errorf("%s of %s: %+v", v, got[len(got)-1], f)
			}
		}
	}
	want := "ip leaving udp-connect true, ip leaving tcp-established false, ip inside udp-connect true, ip inside tcp-established false"
	if all := strings.Join(got, ", "); all != want+", "+strings.ReplaceAll(want, "ip ", "ip6 ") {
		t.Errorf("measured %s", all)
	}
}

func TestChanges(t *testing.T) {
	privileged(t)
	r, err := Changes(Cluster{Pools: 3, Nodes: 2}, 2)
	if err != nil {
		t.Fatal(err)
	}
	if r.Elements != 2*(3+3+5) || len(r.Steps) != 3 {
		t.Errorf("%+v", r)
	}
	for _, s := range r.Steps {
		if s.Own == 0 || s.Elements != s.Own || s.Others != 0 || s.Batches != 1 || len(s.Commit) != 2 {
			t.Errorf("%+v", s)
		}
	}
	// What is not the pool's own is noticed.
	c := Cluster{Pools: 1, Nodes: 1}.compiler()
	c.Changes()
	c.Update(policy.Delta{Object: pool(1)}, policy.Delta{Object: pool(2)})
	if n := others(c.Changes(), pool(1)); n != 4 {
		t.Errorf("%d elements are not the pool's own, want 4", n)
	}
}
