package bench

import (
	"cmp"
	"math"
	"slices"
)

// Quantile returns the q-quantile of values (0 the least, 1 the greatest),
// between two values the line that joins them; NaN if there are none.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Clone(values)
	slices.Sort(s)
	at := q * float64(len(s)-1)
	i := int(at)
	if i+1 == len(s) {
		return s[i]
	}
	return s[i] + (at-float64(i))*(s[i+1]-s[i])
}

// Median is the 0.5-quantile.
func Median(values []float64) float64 { return Quantile(values, 0.5) }

// Figure is what one variant cost under one load.
type Figure struct {
	Variant string `json:"variant"`
	// P5 and Median are nanoseconds per operation: quantiles over the rounds,
	// averaged over the replicas.
	P5     float64 `json:"p5"`
	Median float64 `json:"median"`
	// RatioP5 is P5 over that of the baseline; Ratio is the median over the
	// rounds of the replicas' average over the baseline's in the same round.
	RatioP5 float64 `json:"ratioP5"`
	Ratio   float64 `json:"ratio"`
	// Spread is how far the medians of the replicas are apart, as a part of
	// Median: what two worlds with the same rules differ by. Differences
	// below it mean nothing.
	Spread   float64 `json:"spread"`
	Replicas int     `json:"replicas"`
	Rounds   int     `json:"rounds"`
}

// Summarize turns the series of one run into figures, one per variant in the
// order of their first series, and compares them with the baseline variant.
func Summarize(series []Series, baseline string) []Figure {
	byVariant := make(map[string][]Series)
	var names []string
	for _, s := range series {
		if byVariant[s.Variant] == nil {
			names = append(names, s.Variant)
		}
		byVariant[s.Variant] = append(byVariant[s.Variant], s)
	}
	base := average(byVariant[baseline])
	baseP5 := mean(quantiles(byVariant[baseline], 0.05))
	figures := make([]Figure, 0, len(names))
	for _, name := range names {
		replicas := byVariant[name]
		medians := quantiles(replicas, 0.5)
		f := Figure{
			Variant: name, Replicas: len(replicas), Rounds: len(replicas[0].Nanos),
			P5: mean(quantiles(replicas, 0.05)), Median: mean(medians),
		}
		f.RatioP5 = f.P5 / baseP5
		f.Spread = (slices.MaxFunc(medians, cmp.Compare[float64]) - slices.MinFunc(medians, cmp.Compare[float64])) / f.Median
		own := average(replicas)
		ratios := make([]float64, 0, len(own))
		for i := range min(len(own), len(base)) {
			ratios = append(ratios, own[i]/base[i])
		}
		f.Ratio = Median(ratios)
		figures = append(figures, f)
	}
	return figures
}

// average returns the mean of the replicas, round by round.
func average(replicas []Series) []float64 {
	if len(replicas) == 0 {
		return nil
	}
	out := make([]float64, len(replicas[0].Nanos))
	for _, r := range replicas {
		for i, v := range r.Nanos {
			out[i] += v / float64(len(replicas))
		}
	}
	return out
}

func quantiles(replicas []Series, q float64) []float64 {
	out := make([]float64, 0, len(replicas))
	for _, r := range replicas {
		out = append(out, Quantile(r.Nanos, q))
	}
	return out
}

func mean(values []float64) float64 {
	var sum float64
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
