package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/selvage-net/selvage/e2e/traffic"
	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/shaping"
)

// shaped is the pod whose bandwidth is limited, peer the other end of its flows.
const shaped, peer = "admin", "stats"

// annotated is the manifest of the shaped pod with annotations for a rate, or
// without any if that is 0.
func annotated(rate shaping.Rate) (string, error) {
	data, err := manifests.ReadFile("story/" + shaped + ".yaml")
	if err != nil || rate == 0 {
		return string(data), err
	}
	annotations := "\n  annotations:"
	for _, d := range shaping.Directions() {
		annotations += fmt.Sprintf("\n    %s: %s", d.BandwidthAnnotation(), rate)
	}
	before, after, ok := strings.Cut(string(data), "\nspec:")
	if !ok {
		return "", errors.New("the manifest of the shaped pod has no spec")
	}
	return before + annotations + "\nspec:" + after, nil
}

// annotate changes the annotations of the shaped pod.
func (c *cluster) annotate(rate shaping.Rate) error {
	manifest, err := annotated(rate)
	if err != nil {
		return err
	}
	return c.put(shaped, []byte(manifest))
}

// limit changes the annotations and waits until the kernel has both queues.
func (c *cluster) limit(ctx context.Context, rate shaping.Rate) error {
	if err := c.annotate(rate); err != nil {
		return err
	}
	node := c.nodes[slices.IndexFunc(c.nodes, func(n *world.Node) bool { return n.Name == "node-b" })]
	ctx, cancel := context.WithTimeout(ctx, limitPatience)
	defer cancel()
	for {
		qdiscs, err := node.Run(ctx, "tc", "qdisc", "show")
		if err != nil {
			return fmt.Errorf("a limit of %s is not in force after %v: %w", rate, limitPatience, err)
		}
		wanted, word := 2, fmt.Sprintf(" rate %dMbit ", rate/1e6)
		if rate == 0 {
			wanted, word = 0, "qdisc tbf "
		}
		if strings.Count(qdiscs, word) == wanted {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// limitPatience is how long the agent may take on a machine that has other things
// to do.
const limitPatience = 20 * time.Second

// flowResult is one TCP flow, with an echo beside it.
type flowResult struct {
	// Limit is in bits per second; 0 is none.
	Limit shaping.Rate `json:"limit"`
	// Direction is from the view of the shaped pod.
	Direction string `json:"direction"`
	// Goodput is in bits per second of whole frames, First that of the first half
	// second, which is not in it.
	Goodput float64 `json:"goodput"`
	First   float64 `json:"first"`
	// P50 and P95 are the echo's round trip in milliseconds, 1000 if it was lost.
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
}

// What is held to be right, with room for a machine that has other things to do.
const (
	leastGoodput, mostGoodput = 0.80, 1.05
	mostFirst                 = 1.15
	longestWait               = 100 // ms
	// tries is how often a measurement is made that shows something else.
	tries = 3
)

// flowLength is how long a flow is measured, its first half second included.
const flowLength, half = 1200 * time.Millisecond, 500 * time.Millisecond

// measureLimits measures without a limit, with one and with a higher one.
func (c *cluster) measureLimits(ctx context.Context, res *result) error {
	for _, rate := range []shaping.Rate{0, 10_000_000, 100_000_000} {
		if err := c.limit(ctx, rate); err != nil {
			return err
		}
		for _, d := range shaping.Directions() {
			var f flowResult
			for range tries {
				var err error
				if f, err = c.measureFlow(ctx, rate, d); err != nil {
					return err
				}
				if !slices.ContainsFunc(f.checks(), failed) {
					break
				}
			}
			res.Flows = append(res.Flows, f)
			res.Checks = append(res.Checks, f.checks()...)
		}
	}
	return c.limit(ctx, 0)
}

func failed(c check) bool { return !c.Passed }

func (c *cluster) measureFlow(ctx context.Context, rate shaping.Rate, d shaping.Direction) (flowResult, error) {
	from, to := c.places[peer], c.places[shaped]
	if d == shaping.Egress {
		from, to = to, from
	}
	addr := withPort(to.addrs, 0)[policy.IPv4].Addr()
	type echoed struct {
		result traffic.EchoResult
		err    error
	}
	echo := make(chan echoed, 1)
	go func() {
		r, err := traffic.Echo{From: from, To: to, Addr: addr, Interval: 10 * time.Millisecond, Length: flowLength}.Run(ctx)
		echo <- echoed{r, err}
	}()
	s, err := stream(from, to, addr, flowLength).Run(ctx)
	e := <-echo
	if err := errors.Join(err, e.err); err != nil {
		return flowResult{}, err
	}
	wait := func(q float64) float64 { return math.Min(1000, e.result.Quantile(q).Seconds()*1000) }
	return flowResult{
		Limit: rate, Direction: d.String(), Goodput: s.Rate(half, flowLength), First: s.Rate(0, half), P50: wait(0.5), P95: wait(0.95),
	}, nil
}

// stream sends as nearly every host does that was not told otherwise.
func stream(from, to *placed, addr netip.Addr, length time.Duration) traffic.Stream {
	return traffic.Stream{From: from, To: to, Addr: addr, Congestion: "cubic", Length: length}
}

// checks judge a flow that is limited.
func (f flowResult) checks() []check {
	if f.Limit == 0 {
		return nil
	}
	name := fmt.Sprintf("%s, %s", f.Limit, f.way())
	part := f.Goodput / float64(f.Limit)
	first := f.First / float64(f.Limit)
	return []check{{
		Text:   fmt.Sprintf("%s: the flow gets its rate (%.0f to %.0f %% of it)", name, 100*leastGoodput, 100*mostGoodput),
		Passed: part >= leastGoodput && part <= mostGoodput, Detail: fmt.Sprintf("%.1f %%", 100*part),
	}, {
		Text:   fmt.Sprintf("%s: no more than that in the first half second (at most %.2f times)", name, mostFirst),
		Passed: first <= mostFirst, Detail: fmt.Sprintf("%.2f times", first),
	}, {
		Text:   fmt.Sprintf("%s: a small packet beside it waits little (p95 of the round trip at most %d ms)", name, longestWait),
		Passed: f.P95 <= longestWait, Detail: fmt.Sprintf("%.1f ms", f.P95),
	}}
}

// way says the direction in words.
func (f flowResult) way() string {
	if f.Direction == shaping.Egress.String() {
		return "from " + shaped
	}
	return "to " + shaped
}

// transfer is a flow whose limit changes.
type transfer struct {
	// Changes are in the order of their times.
	Changes []change `json:"changes"`
	// Rates are bits per second of whole frames, one for each graphBin.
	Rates []float64 `json:"rates"`
	// Retransmits are segments that were sent again.
	Retransmits int `json:"retransmits"`

	series traffic.Series
}

// change is a limit that is set, a time after the flow began.
type change struct {
	After time.Duration `json:"after"`
	Limit shaping.Rate  `json:"limit"`
}

// graphBin is the resolution of the graph, stage how long a limit lasts, settled
// after how long a new one must be seen.
const (
	graphBin = 100 * time.Millisecond
	stage    = 1800 * time.Millisecond
	settled  = time.Second
)

// changeLimits changes the limit of a flow that goes on, and then removes it.
func (c *cluster) changeLimits(ctx context.Context, res *result) error {
	for range tries {
		t, err := c.transfer(ctx, 10_000_000, 50_000_000, 20_000_000, 0)
		if err != nil {
			return err
		}
		res.Transfer, res.Checks = t, t.checks()
		if !slices.ContainsFunc(res.Checks, failed) {
			break
		}
	}
	return nil
}

// transfer sends under one limit after the other.
func (c *cluster) transfer(ctx context.Context, limits ...shaping.Rate) (*transfer, error) {
	if err := c.limit(ctx, limits[0]); err != nil {
		return nil, err
	}
	type streamed struct {
		result traffic.StreamResult
		err    error
	}
	from, to := c.places[peer], c.places[shaped]
	done := make(chan streamed, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	length := time.Duration(len(limits)) * stage
	go func() {
		r, err := stream(from, to, withPort(to.addrs, 0)[policy.IPv4].Addr(), length).Run(ctx)
		done <- streamed{r, err}
	}()
	var set []time.Time
	for _, rate := range limits[1:] {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case s := <-done:
			return nil, errors.Join(errors.New("the flow ended"), s.err)
		case <-time.After(stage):
		}
		set = append(set, time.Now())
		if err := c.annotate(rate); err != nil {
			return nil, err
		}
	}
	s := <-done
	t := &transfer{
		Changes: []change{{0, limits[0]}}, Rates: s.result.Coarse(graphBin), Retransmits: s.result.Retransmits, series: s.result.Series,
	}
	for i, at := range set {
		t.Changes = append(t.Changes, change{at.Sub(s.result.Start).Round(time.Millisecond), limits[i+1]})
	}
	return t, s.err
}

// checks judge each limit from a while after it was set until the next one.
func (t *transfer) checks() []check {
	var checks []check
	length := time.Duration(len(t.series.Bytes)) * traffic.Bin
	for i, set := range t.Changes {
		end := length
		if i+1 < len(t.Changes) {
			end = t.Changes[i+1].After
		}
		got := t.series.Rate(set.After+settled, end)
		ch := check{Detail: fmt.Sprintf("%.1f Mbit/s", got/1e6)}
		part := got / float64(set.Limit)
		switch {
		case set.Limit == 0:
			ch.Text = fmt.Sprintf("without the limit, the same flow is beyond %d Mbit/s within a second", unlimited/1_000_000)
			ch.Passed = got > unlimited
		case i == 0:
			ch.Text = fmt.Sprintf("the flow begins at its limit of %s", set.Limit)
			ch.Passed = part >= leastGoodput && part <= mostGoodput
		default:
			ch.Text = fmt.Sprintf("the same flow is at %s within a second of the new limit", set.Limit)
			ch.Passed = part >= leastGoodput && part <= mostGoodput
		}
		checks = append(checks, ch)
	}
	return checks
}

// unlimited is less than any machine does without a limit, and more than any limit
// of the transfer.
const unlimited = 100_000_000
