package conntrack

import (
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"

	ct "github.com/ti-mo/conntrack"
	"github.com/vishvananda/netns"

	"github.com/mdlayher/netlink"

	"github.com/selvage-net/selvage/policy"
)

// newNamespace makes a network namespace that goes away with the test.
func newNamespace(t *testing.T) int {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
			t.Fatal("SELVAGE_REQUIRE_PRIVILEGED=1, but this test needs root to make network namespaces")
		}
		t.Skipf("SKIPPED: %s (needs root to make network namespaces)", t.Name())
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.Set(home); err != nil {
		// The thread must not be used for anything else, and is the only one.
		panic(err)
	}
	t.Cleanup(func() { ns.Close() })
	return int(ns)
}

func dial(t *testing.T, ns int) *ct.Conn {
	t.Helper()
	c, err := ct.Dial(&netlink.Config{NetNS: ns})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

const mask = 0x30c4

// flow returns flow number i; those with an odd number are IPv6.
func flow(i int, mark uint32, zone uint16) ct.Flow {
	from, to := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), netip.MustParseAddr("10.9.9.9")
	if i%2 == 1 {
		from, to = netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)}), netip.MustParseAddr("fd09::9")
	}
	f := ct.NewFlow(6, 0, from, to, 1000, 80, 600, mark)
	f.Zone = zone
	f.ProtoInfo.TCP = &ct.ProtoInfoTCP{State: 3}
	return f
}

// marks are those of all flows, sorted.
func marks(t *testing.T, c *ct.Conn) []uint32 {
	t.Helper()
	flows, err := c.Dump(nil)
	if err != nil {
		t.Fatal(err)
	}
	var out []uint32
	for _, f := range flows {
		out = append(out, f.Mark)
	}
	slices.Sort(out)
	return out
}

func TestReclaim(t *testing.T) {
	ns := newNamespace(t)
	c := dial(t, ns)
	// Others' bits are 0x8003.
	for i, f := range []struct {
		mark uint32
		zone uint16
	}{
		{0x44 | 0x8003, 0}, {0x44 | 0x8003, 0}, {0x44, 0}, {0x44, 7}, {0x44 | 0x8000, 7},
		{0x04 | 0x8003, 0}, {0x40, 0}, {0x8003, 0}, {0x30c4, 0}, {0x30c4, 9},
	} {
		if err := c.Create(flow(i, f.mark, f.zone)); err != nil {
			t.Fatal(err)
		}
	}
	table := Table{NetNS: ns}
	n, err := table.Reclaim(policy.Mark{Mask: mask, Value: 0x44})
	if err != nil || n != 5 {
		t.Fatalf("Reclaim: %d, %v, want 5", n, err)
	}
	want := []uint32{0, 0, 0x40, 0x30c4, 0x30c4, 0x8000, 0x8003, 0x8003, 0x8003, 0x8007}
	if got := marks(t, c); !slices.Equal(got, want) {
		t.Errorf("marks are %#x, want %#x", got, want)
	}
	if n, err := table.Reclaim(policy.Mark{Mask: mask, Value: 0x44}); err != nil || n != 0 {
		t.Errorf("Reclaim again: %d, %v, want 0", n, err)
	}
}

func TestReclaimMany(t *testing.T) {
	ns := newNamespace(t)
	c := dial(t, ns)
	const many = 3*perSend + 17
	for i := range many {
		if err := c.Create(flow(i, 0x1084, 0)); err != nil {
			t.Fatal(err)
		}
	}
	n, err := Table{NetNS: ns}.Reclaim(policy.Mark{Mask: mask, Value: 0x1084})
	if err != nil || n != many {
		t.Fatalf("Reclaim: %d, %v, want %d", n, err, many)
	}
	if got := marks(t, c); slices.Max(got) != 0 {
		t.Errorf("a mark of %#x is left", slices.Max(got))
	}
}
