package shape

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/shaping"
)

// CostRate is so high that no packet ever waits: what is left is the work. It is
// about the most that the message of the plugin can say.
const CostRate shaping.Rate = 34_000_000_000

// CostOptions say what Costs measures.
type CostOptions struct {
	// Replicas is how many worlds of each variant there are.
	Replicas int
	// Length is how long each direction is measured.
	Length time.Duration
	// Progress is told what is going on; may be nil.
	Progress func(format string, args ...any)
}

// CostResult is what one packet costs in a direction.
type CostResult struct {
	Direction string         `json:"direction"`
	Figures   []bench.Figure `json:"figures"`
}

// Costs measures what a small packet costs that never waits, from the call that
// sends it to the one that receives it. See bench.Interleave.
func Costs(o CostOptions) (results []CostResult, err error) {
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	var subjects []*subject
	defer func() {
		for _, s := range subjects {
			err = errors.Join(err, s.close())
		}
	}()
	variants := []string{Unshaped, Plugin, Selvage}
	rng := rand.New(rand.NewPCG(5, 6))
	for range o.Replicas {
		for _, i := range rng.Perm(len(variants)) {
			s, err := newSubject(variants[i])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", variants[i], err)
			}
			subjects = append(subjects, s)
			if err := s.limiter.limit(CostRate); err != nil {
				return nil, fmt.Errorf("%s: %w", variants[i], err)
			}
		}
	}
	for _, d := range shaping.Directions() {
		o.Progress("measuring what a packet costs, %s, over %d worlds", d, len(subjects))
		figures, err := cost(subjects, d, o.Length)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d, err)
		}
		results = append(results, CostResult{Direction: d.String(), Figures: order(figures, variants)})
	}
	return results, nil
}

func cost(subjects []*subject, d shaping.Direction, length time.Duration) ([]bench.Figure, error) {
	ends := make([]*bench.Subject, 0, len(subjects))
	for _, s := range subjects {
		t := s.triple
		if d == shaping.Egress {
			var err error
			if t, err = t.Reversed(); err != nil {
				return nil, err
			}
		}
		ends = append(ends, &bench.Subject{Variant: s.variant, Triple: t})
	}
	series, err := bench.Interleave(ends, bench.UDPEstablished, length)
	if err != nil {
		return nil, err
	}
	return bench.Summarize(series, Unshaped), nil
}

// order sorts figures by their variants.
func order(figures []bench.Figure, variants []string) []bench.Figure {
	var out []bench.Figure
	for _, v := range variants {
		for _, f := range figures {
			if f.Variant == v {
				out = append(out, f)
			}
		}
	}
	return out
}
