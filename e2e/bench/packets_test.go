package bench

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

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
		t.Run(load.String(), func(t *testing.T) {
			triple := newTriple(t, testShapes[0].Flow())
			if err := triple.LoadText(conntrackOnly); err != nil {
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
		if f.Status.SeenReply() {
			answered++
		}
	}
	return len(all), answered
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
