package probe_test

import (
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

// TestTransfer sends in both directions, and to nobody.
func TestTransfer(t *testing.T) {
	c, _ := open(t)
	port, err := c.Bulk(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	to := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for _, down := range []bool{false, true} {
		const length = 200 * time.Millisecond
		r, err := c.Transfer(t.Context(), probe.Transfer{To: to, Down: down, Length: length})
		if err != nil {
			t.Fatal(err)
		}
		if r.Bytes < 1<<20 || r.Took < length/2 || r.Took > length+5*time.Second || r.Rate() < 1e6 {
			t.Errorf("down %v: %+v, %v", down, r, r)
		}
		if r.Rate() > 2*probe.Fastest { // the first packets go at once
			t.Errorf("down %v: %v is faster than anybody may be", down, r)
		}
	}
	if r, err := c.Transfer(t.Context(), probe.Transfer{To: "127.0.0.1:1", Length: time.Second}); err == nil {
		t.Errorf("to nobody: %v", r)
	}
	if (probe.TransferResult{}).Rate() != 0 {
		t.Error("nothing in no time is not 0")
	}
}
