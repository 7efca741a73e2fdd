package shape

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/traffic"
	"github.com/selvage-net/selvage/shaping"
)

// privileged skips the test, loudly, where network namespaces cannot be made.
func privileged(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const why = "network namespaces and traffic control need root"
	if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
		t.Fatal(why)
	}
	t.Skip("SKIPPED, NOT PASSED: " + why)
}

func TestRatesMeasureEveryVariantInBothDirections(t *testing.T) {
	privileged(t)
	const rate shaping.Rate = 20_000_000
	runs, err := Rates(t.Context(), RateOptions{Rates: []shaping.Rate{rate}, Length: time.Second, Repeat: 1, Congestion: "cubic"})
	if err != nil {
		t.Fatal(err)
	}
	figures := Summarize(runs)
	if len(figures) != 6 {
		t.Fatalf("%d figures, want 6", len(figures))
	}
	for _, f := range figures {
		if f.Runs != 1 || f.Sent == 0 || f.Goodput+f.First == 0 {
			t.Errorf("%s, %s: nothing was measured: %+v", f.Variant, f.Direction, f)
		}
		// A busy machine can make it less, but more than the bucket allows would
		// be a pod that is not held.
		if f.Variant == Selvage && f.Goodput > float64(rate)*(1+f.Allowance())*1.05 {
			t.Errorf("%s: %.0f bit/s passed a limit of %s", f.Direction, f.Goodput, f.Rate)
		}
	}
}

func TestTheVariantsShapeBothDirections(t *testing.T) {
	privileged(t)
	for _, variant := range []string{Plugin, Selvage} {
		t.Run(variant, func(t *testing.T) {
			s, err := newSubject(variant)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := s.close(); err != nil {
					t.Error(err)
				}
			}()
			// Over and over, with nothing left behind.
			for _, r := range []shaping.Rate{1_000_000, 5_000_000, 0, 0, CostRate} {
				if err := s.limiter.limit(r); err != nil {
					t.Fatalf("limit of %s: %v", r, err)
				}
				if got, want := filters(t, s.triple.Node), map[bool]int{true: 2}[r != 0]; got != want {
					t.Errorf("limit of %s: %d token bucket filters, want %d", r, got, want)
				}
			}
		})
	}
}

// filters counts the token bucket filters of a namespace.
func filters(t *testing.T, n *bench.Namespace) int {
	t.Helper()
	h, err := n.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, l := range links {
		qdiscs, err := h.QdiscList(l)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range qdiscs {
			if q.Type() == "tbf" {
				count++
			}
		}
	}
	return count
}

// A packet that waits may be larger than the burst of a lower rate, and a token bucket
// filter never sends such a one.
func TestAFlowGoesOnAtALowerRate(t *testing.T) {
	privileged(t)
	s, err := newSubject(Selvage)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	product := s.limiter.(*selvage)
	const higher, lower shaping.Rate = 50_000_000, 20_000_000
	for _, way := range []struct{ from, to *bench.Namespace }{{s.triple.Source, s.triple.Pod}, {s.triple.Pod, s.triple.Source}} {
		addr := s.triple.Flow.Pod
		if way.to == s.triple.Source {
			addr = s.triple.Flow.Peers[0]
		}
		if err := product.limit(higher); err != nil {
			t.Fatal(err)
		}
		changed := make(chan error, 1)
		time.AfterFunc(300*time.Millisecond, func() {
			_, err := product.apply(both(lower))
			changed <- err
		})
		r, err := traffic.Stream{From: way.from, To: way.to, Addr: addr, Congestion: "cubic", Length: 2 * time.Second}.Run(t.Context())
		if err := errors.Join(err, <-changed); err != nil {
			t.Fatal(err)
		}
		if r.Rate(time.Second, 2*time.Second) == 0 {
			t.Errorf("to %s: nothing arrives any more after the change; Mbit/s: %.0f", addr, r.Coarse(200*time.Millisecond))
		}
	}
}

func TestCosts(t *testing.T) {
	privileged(t)
	results, err := Costs(CostOptions{Replicas: 2, Length: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != 2 || results[0].Direction == results[1].Direction {
		t.Fatalf("%+v", results)
	}
	for _, r := range results {
		if len(r.Figures) != 3 || r.Figures[0].Variant != Unshaped || r.Figures[0].Ratio != 1 {
			t.Errorf("%s: %+v", r.Direction, r.Figures)
		}
		for _, f := range r.Figures {
			if f.Replicas != 2 || f.Rounds == 0 || f.Median <= 0 {
				t.Errorf("%s of %s: %+v", r.Direction, f.Variant, f)
			}
		}
	}
}

func TestProgram(t *testing.T) {
	privileged(t)
	r, err := Program(4, 2)
	if err != nil {
		t.Fatal(err)
	}
	// A queue at the veth, and for the other direction an IFB, a queue, a hook, a mark
	// that it is ours, and a redirect.
	if r.Pods != 4 || len(r.New) != 2 || r.Steps != 6 {
		t.Errorf("new pods: %+v", r)
	}
	if len(r.Change) == 0 || len(r.Change) != len(r.Do) || len(r.Change) != len(r.Read) {
		t.Errorf("new rates: %+v", r)
	}
}

func TestSummarizeTakesMediansOfWhatIsTheSame(t *testing.T) {
	var runs []RateRun
	for _, v := range []float64{30, 10, 20} {
		runs = append(runs,
			RateRun{Variant: Selvage, Direction: "egress", Rate: 1000, Goodput: v},
			RateRun{Variant: Plugin, Direction: "ingress", Rate: 2000, P95: v},
			RateRun{Variant: Unshaped, Direction: "ingress", Lost: int(v), P50: -1})
	}
	runs[1].P95 = -1 // lost: longer than 10 and 20
	got := Summarize(runs)
	if len(got) != 3 || got[0].Variant != Unshaped || got[1].Variant != Plugin || got[2].Variant != Selvage {
		t.Fatalf("%+v", got)
	}
	if got[0].Lost != 20 || got[1].P95 != 20 || got[0].P50 != -1 || got[2].Goodput != 20 || got[2].Runs != 3 {
		t.Errorf("%+v", got)
	}
}

func TestSlowRatesTakeLonger(t *testing.T) {
	o := RateOptions{Length: 2 * time.Second}
	for rate, want := range map[shaping.Rate]time.Duration{
		1_000_000: 6 * time.Second, 10_000_000: 2 * time.Second, 0: 2 * time.Second,
	} {
		if got := o.lengthAt(rate); got != want {
			t.Errorf("at %s a run takes %v, want %v", rate, got, want)
		}
	}
	// 6250 bytes of the 5.5 seconds.
	if got := (RateRun{Rate: 1_000_000, Seconds: 6}).Allowance(); got < 0.009 || got > 0.0092 {
		t.Errorf("a bucket may add %v", got)
	}
}
