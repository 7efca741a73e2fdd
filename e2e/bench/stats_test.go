package bench

import (
	"math"
	"testing"
)

func TestQuantile(t *testing.T) {
	values := []float64{5, 1, 3, 2, 4}
	for q, want := range map[float64]float64{0: 1, 0.05: 1.2, 0.25: 2, 0.5: 3, 0.99: 4.96, 1: 5} {
		if got := Quantile(values, q); math.Abs(got-want) > 1e-9 {
			t.Errorf("the %v-quantile is %v, want %v", q, got, want)
		}
	}
	if values[0] != 5 {
		t.Error("the values were sorted in place")
	}
	if got := Quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %v", got)
	}
}

func TestSummarizePairsRounds(t *testing.T) {
	// The machine was three times as slow in the second round. The variant
	// costs half as much again in every round.
	series := []Series{
		{Variant: "base", Nanos: []float64{100, 300, 100}},
		{Variant: "slow", Nanos: []float64{150, 450, 150}},
		{Variant: "base", Nanos: []float64{100, 300, 120}},
	}
	got := Summarize(series, "base")
	if len(got) != 2 || got[0].Variant != "base" || got[1].Variant != "slow" {
		t.Fatalf("figures of %v", got)
	}
	if got[0].Ratio != 1 || got[0].Replicas != 2 || got[0].Rounds != 3 {
		t.Errorf("the baseline is %+v", got[0])
	}
	if want := (120.0 - 100) / 110; math.Abs(got[0].Spread-want) > 1e-9 {
		t.Errorf("the baseline's spread is %v, want %v", got[0].Spread, want)
	}
	if got[1].Ratio != 1.5 || got[1].Median != 150 {
		t.Errorf("the variant is %+v", got[1])
	}
}
