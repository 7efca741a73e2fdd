package bench

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

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

func TestPacketsMeasuresEveryVariantUnderEveryLoad(t *testing.T) {
	privileged(t)
	s := testShapes[0]
	results, err := Packets(PacketOptions{
		Shapes: []Shape{s, testShapes[3]}, Plain: s, Loads: Loads[:], Replicas: 2, Length: time.Millisecond,
		Extra: map[string]string{"extra": conntrackOnly},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != len(Loads) {
		t.Fatalf("%d loads, want %d", len(results), len(Loads))
	}
	for _, r := range results {
		for _, variant := range []string{NoRules, ConntrackOnly, s.String(), testShapes[3].String(), "extra"} {
			if f, ok := r.Figure(variant); !ok || f.Replicas != 2 || f.Rounds == 0 || f.Median <= 0 {
				t.Errorf("%s of %s: %+v", r.Load, variant, f)
			}
		}
	}
}

func TestConntrackSeesWhatTheLoadsAreMeantToBe(t *testing.T) {
	privileged(t)
	// One operation comes before the ten that are timed.
	for load, want := range map[Load]struct{ flows, answered int }{
		UDPConnect: {11, 0}, UDPConnectPeers: {11, 0}, UDPUnanswered: {1, 0},
		UDPEstablished: {1, 1}, TCPEstablished: {1, 1}, TCPConnect: {11, 11},
	} {
		for name, flow := range map[string]Flow{"IPv4": testShapes[0].Flow(), "IPv6": ipv6Flow()} {
			t.Run(load.String()+" "+name, func(t *testing.T) {
				triple := newTriple(t, flow)
				if err := triple.LoadText(strings.ReplaceAll(conntrackOnly, "table ip ", "table inet ")); err != nil {
					t.Fatal(err)
				}
				s := &Subject{Triple: triple}
				var err error
				if s.ends, err = load.open(triple); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := s.ends.close(); err != nil {
						t.Error(err)
					}
				}()
				if _, err := s.batch(10); err != nil {
					t.Fatal(err)
				}
				flows, answered := tracked(t, triple)
				if flows != want.flows || answered != want.answered {
					t.Errorf("%d flows, %d of them answered; want %d and %d", flows, answered, want.flows, want.answered)
				}
				if err := triple.FlushConntrack(); err != nil {
					t.Fatal(err)
				}
				// A live connection's delayed acknowledgement opens its flow anew.
				if flows, _ := tracked(t, triple); flows != 0 && load != TCPEstablished {
					t.Errorf("%d flows after the flush", flows)
				}
			})
		}
	}
}

func ipv6Flow() Flow {
	return Flow{
		Pod: netip.MustParseAddr("2001:db8::1"), Port: Port,
		Peers: []netip.Addr{netip.MustParseAddr("fd44::2"), netip.MustParseAddr("fd44::3")},
	}
}

// TestChecksumsAreRight folds the packet with its pseudo header as a receiver does.
func TestChecksumsAreRight(t *testing.T) {
	f := ipv6Flow()
	p := newPacket(f)
	for port := range uint16(65535) {
		b := p.from(f.Peers[port%2], port)
		s := sum(b[8:]) + udpHeader + payload + unix.IPPROTO_UDP
		for s>>16 != 0 {
			s = s&0xffff + s>>16
		}
		if s != 0xffff || b[46] == 0 && b[47] == 0 {
			t.Fatalf("from port %d: the sum is %#x, the checksum % x", port, s, b[46:48])
		}
	}
}

func tracked(t *testing.T, triple *Triple) (flows, answered int) {
	t.Helper()
	var c *conntrack.Conn
	if err := triple.Node.Do(func() (err error) {
		c, err = conntrack.Dial(nil)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	all, err := c.Dump(nil)
	if err := errors.Join(err, c.Close()); err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.TupleOrig.Proto.Protocol == unix.IPPROTO_ICMPV6 {
			continue // the kernel's own, as it makes multicast groups known
		}
		flows++
		if f.Status.SeenReply() {
			answered++
		}
	}
	return flows, answered
}

func newTriple(t *testing.T, f Flow) *Triple {
	t.Helper()
	triple, err := NewTriple(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := triple.Close(); err != nil {
			t.Error(err)
		}
	})
	return triple
}

func TestDeniedPacketsAreNoticed(t *testing.T) {
	privileged(t)
	s := testShapes[0]
	f := s.Flow()
	f.Peers = slices.Insert(f.Peers, 0, v4(firstRemote-1)) // nobody's address
	triple := newTriple(t, f)
	c := policy.NewCompiler(policy.DefaultConfig(Node))
	c.Update(Deltas(s.Snapshot())...)
	if err := triple.Apply(c.Changes()); err != nil {
		t.Fatal(err)
	}
	_, err := Interleave([]*Subject{{Variant: "denied", Triple: triple}}, UDPConnect, time.Millisecond)
	if !errors.Is(err, errLost) {
		t.Errorf("the error is %v, want that the packet was lost", err)
	}
}

func TestCommitAndScratch(t *testing.T) {
	privileged(t)
	s := testShapes[2]
	commit, err := Commit(s, 3)
	if err != nil {
		t.Fatal(err)
	}
	if commit.Want == 0 || commit.Excess != 0 || len(commit.Add) != 3 || len(commit.Delete) != 3 {
		t.Errorf("commit: %+v", commit)
	}
	scratch, err := Scratch(s, 2)
	if err != nil {
		t.Fatal(err)
	}
	if len(scratch.Total) != 2 || scratch.Elements == 0 || scratch.Elements != commit.Elements || scratch.Messages == 0 {
		t.Errorf("from nothing: %+v, and %d elements", scratch, commit.Elements)
	}
}
