package traffic

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestSeries(t *testing.T) {
	s := newSeries(50 * time.Millisecond)
	start := time.Unix(1000, 0)
	for _, packet := range []struct {
		after time.Duration
		bytes int
	}{{0, 1000}, {9 * time.Millisecond, 250}, {10 * time.Millisecond, 500}, {35 * time.Millisecond, 4000}} {
		if !s.add(start.Add(packet.after), packet.bytes) {
			t.Errorf("%v is not in the series", packet.after)
		}
	}
	if s.add(start.Add(50*time.Millisecond), 1) {
		t.Error("the end is in the series")
	}
	s.add(start.Add(-time.Microsecond), 1) // overtaken
	if want := []uint64{1251, 500, 0, 4000, 0}; !slices.Equal(s.Bytes, want) || s.Total() != 5751 {
		t.Errorf("bins %v, want %v", s.Bytes, want)
	}
	if got := s.Rate(10*time.Millisecond, 40*time.Millisecond); math.Abs(got-4500*8/0.03) > 1 {
		t.Errorf("rate %v", got)
	}
	if got := s.Coarse(20 * time.Millisecond); len(got) != 2 || math.Abs(got[1]-4000*8/0.02) > 1 {
		t.Errorf("rates %v", got)
	}
}

func TestQuantilesHaveTheLostLast(t *testing.T) {
	r := EchoResult{Times: []time.Duration{1, 2, 3}, Sent: 4, Lost: 1}
	for q, want := range map[float64]time.Duration{0: 1, 0.25: 1, 0.5: 2, 0.75: 3, 0.95: math.MaxInt64} {
		if got := r.Quantile(q); got != want {
			t.Errorf("the %v-quantile is %d, want %d", q, got, want)
		}
	}
	if got := (EchoResult{}).Quantile(0.5); got != math.MaxInt64 {
		t.Errorf("the median of nothing is %v", got)
	}
}
