package shape

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/traffic"
	"github.com/selvage-net/selvage/shaping"
)

// RateOptions say what Rates measures.
type RateOptions struct {
	// Rates are what the pod is held to.
	Rates []shaping.Rate
	// Length is how long each run lasts, more than half a second; at slow rates as
	// long as some hundred frames take.
	Length time.Duration
	// Repeat is how often each one is measured.
	Repeat int
	// Congestion is the algorithm of the senders.
	Congestion string
	// Progress is told what is going on; may be nil.
	Progress func(format string, args ...any)
}

// RateRun is one TCP flow through a world, and an echo beside it.
type RateRun struct {
	Variant string `json:"variant"`
	// Direction is ingress or egress, from the pod's view.
	Direction string `json:"direction"`
	// Rate is what the pod is held to, in bits per second; 0 if it is not.
	Rate shaping.Rate `json:"rate"`
	// Seconds is how long the flow was measured.
	Seconds float64 `json:"seconds"`
	// Goodput is the flow's rate in bits per second of whole frames, after the first
	// half second, and First that of the first half second, from the first byte
	// that arrived. The echo's frames are not in them.
	Goodput float64 `json:"goodput"`
	First   float64 `json:"first"`
	// P50 and P95 are the echo's round trip in milliseconds; -1 if it was lost.
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	// Sent and Lost count the echo's datagrams.
	Sent        int `json:"sent"`
	Lost        int `json:"lost"`
	Retransmits int `json:"retransmits"`
}

// half is how long the beginning of a flow is.
const half = 500 * time.Millisecond

// echoShare is the part of the rate that the echo may take, echoInterval the least
// time between two.
const (
	echoShare    = 0.004
	echoInterval = 5 * time.Millisecond
)

// rateFlow is what goes through the worlds. Each end has one address.
func rateFlow() bench.Flow {
	return bench.Flow{
		Pod: netip.MustParseAddr("10.244.1.2"), Port: 5000, Peers: []netip.Addr{netip.MustParseAddr("10.244.2.2")},
	}
}

// subject is a world under measurement.
type subject struct {
	variant string
	triple  *bench.Triple
	limiter limiter
}

func newSubject(variant string) (*subject, error) {
	t, err := bench.NewTriple(rateFlow())
	if err != nil {
		return nil, err
	}
	l, err := newLimiter(variant, t.Node)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return &subject{variant, t, l}, nil
}

func (s *subject) close() error { return errors.Join(s.limiter.close(), s.triple.Close()) }

// Rates holds the pods of a world for each variant to one rate after the other, in
// another order each time, and measures what passes.
func Rates(ctx context.Context, o RateOptions) (runs []RateRun, err error) {
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	subjects := map[string]*subject{}
	defer func() {
		for _, s := range subjects {
			err = errors.Join(err, s.close())
		}
	}()
	var todo []RateRun
	for _, d := range shaping.Directions() {
		todo = append(todo, RateRun{Variant: Unshaped, Direction: d.String()})
		for _, r := range o.Rates {
			todo = append(todo,
				RateRun{Variant: Plugin, Direction: d.String(), Rate: r}, RateRun{Variant: Selvage, Direction: d.String(), Rate: r})
		}
	}
	for _, variant := range []string{Unshaped, Plugin, Selvage} {
		if subjects[variant], err = newSubject(variant); err != nil {
			return nil, fmt.Errorf("%s: %w", variant, err)
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range o.Repeat {
		o.Progress("sending by TCP (%s) at %d rates, round %d of %d", cmp.Or(o.Congestion, "the kernel's default"), len(o.Rates), round+1, o.Repeat)
		for _, i := range rng.Perm(len(todo)) {
			r := todo[i]
			if err := subjects[r.Variant].run(ctx, o, &r); err != nil {
				return nil, fmt.Errorf("%s, %s at %s: %w", r.Variant, r.Direction, r.Rate, err)
			}
			runs = append(runs, r)
		}
	}
	return runs, nil
}

// lengthAt is how long a run takes at a rate. What the bucket, or a packet that all
// after it wait for, moves from one end of the time to the other must not count.
func (o RateOptions) lengthAt(r shaping.Rate) time.Duration {
	const frames, frame = 500, 1514
	if r == 0 {
		return o.Length
	}
	needed := time.Duration(frames * frame * 8 * float64(time.Second) / float64(r))
	return max(o.Length, needed.Truncate(half))
}

// Allowance is what a token bucket may let pass beyond its rate, as a part of that,
// in the time from the first half second to the end: it may have been full.
func (r RateRun) Allowance() float64 {
	const frame = 1514
	b := shaping.NewBucket(shaping.Limit{Rate: r.Rate}, frame)
	return float64(b.Burst) * 8 / (float64(r.Rate) * (r.Seconds - half.Seconds()))
}

// run measures once.
func (s *subject) run(ctx context.Context, o RateOptions, r *RateRun) error {
	if err := s.limiter.limit(r.Rate); err != nil {
		return err
	}
	length := o.lengthAt(r.Rate)
	r.Seconds = length.Seconds()
	from, to, addr := s.triple.Source, s.triple.Pod, s.triple.Flow.Pod
	if r.Direction == shaping.Egress.String() {
		from, to, addr = s.triple.Pod, s.triple.Source, s.triple.Flow.Peers[0]
	}
	interval := echoInterval
	if r.Rate > 0 {
		interval = max(interval, time.Duration(traffic.EchoFrame*8/(echoShare*float64(r.Rate))*float64(time.Second)))
	}
	type echoed struct {
		result traffic.EchoResult
		err    error
	}
	echo := make(chan echoed, 1)
	go func() {
		e, err := traffic.Echo{From: from, To: to, Addr: addr, Interval: interval, Length: length}.Run(ctx)
		echo <- echoed{e, err}
	}()
	stream, err := traffic.Stream{From: from, To: to, Addr: addr, Congestion: o.Congestion, Length: length}.Run(ctx)
	e := <-echo
	if err := errors.Join(err, e.err, s.limiter.limit(0)); err != nil {
		return err
	}
	r.Goodput, r.First = stream.Rate(half, length), stream.Rate(0, half)
	r.P50, r.P95 = roundTrip(e.result, 0.5), roundTrip(e.result, 0.95)
	r.Sent, r.Lost, r.Retransmits = e.result.Sent, e.result.Lost, stream.Retransmits
	return nil
}

// roundTrip is a quantile in milliseconds, or -1 if it was lost.
func roundTrip(e traffic.EchoResult, q float64) float64 {
	d := e.Quantile(q)
	if d > time.Hour {
		return -1
	}
	return float64(d.Microseconds()) / 1000
}

// never is longer than any round trip, in milliseconds. It is not infinite, because a
// quantile can be between it and another one.
const never = 1e12

// orNever has what was lost take longer than everything else; orLost is that turned
// round.
func orNever(ms float64) float64 {
	if ms < 0 {
		return never
	}
	return ms
}

func orLost(ms float64) float64 {
	if ms > never/1000 {
		return -1
	}
	return ms
}

// RateFigure are the medians of the runs that were the same.
type RateFigure struct {
	RateRun
	Runs int `json:"runs"`
}

// Summarize returns the medians, sorted by direction, rate and variant.
func Summarize(runs []RateRun) []RateFigure {
	type kind struct {
		direction string
		rate      shaping.Rate
		variant   string
	}
	same := make(map[kind][]RateRun)
	var kinds []kind
	for _, r := range runs {
		k := kind{r.Direction, r.Rate, r.Variant}
		if same[k] == nil {
			kinds = append(kinds, k)
		}
		same[k] = append(same[k], r)
	}
	slices.SortFunc(kinds, func(a, b kind) int {
		return cmp.Or(-cmp.Compare(a.direction, b.direction), cmp.Compare(a.rate, b.rate), cmp.Compare(a.variant, b.variant))
	})
	figures := make([]RateFigure, 0, len(kinds))
	for _, k := range kinds {
		figures = append(figures, medianOf(same[k]))
	}
	return figures
}

func medianOf(runs []RateRun) RateFigure {
	of := func(value func(RateRun) float64) float64 {
		values := make([]float64, 0, len(runs))
		for _, r := range runs {
			values = append(values, value(r))
		}
		return bench.Median(values)
	}
	f := RateFigure{RateRun: runs[0], Runs: len(runs)}
	f.Goodput = of(func(r RateRun) float64 { return r.Goodput })
	f.First = of(func(r RateRun) float64 { return r.First })
	f.P50 = orLost(of(func(r RateRun) float64 { return orNever(r.P50) }))
	f.P95 = orLost(of(func(r RateRun) float64 { return orNever(r.P95) }))
	f.Retransmits = int(of(func(r RateRun) float64 { return float64(r.Retransmits) }))
	f.Sent = int(of(func(r RateRun) float64 { return float64(r.Sent) }))
	f.Lost = int(of(func(r RateRun) float64 { return float64(r.Lost) }))
	return f
}
