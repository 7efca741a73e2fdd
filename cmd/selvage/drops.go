package main

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/time/rate"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nflog"
)

const (
	// maxKept is how many drops are kept for who asks later.
	maxKept = 1024
	// maxQueued is how many packets wait for their names at most: the enforcer, which
	// knows them, may be busy for a moment.
	maxQueued = 1024
	// sweepEach is how often is looked for repetitions that are to be told.
	sweepEach = time.Second
	// reopenAfter is the first pause after nflog failed, and is doubled up to maxReopen.
	reopenAfter = time.Second
	maxReopen   = time.Minute
)

// dropsConfig is what can be said about drops.
type dropsConfig struct {
	// logRate is how many lines a second the log may get; 0 means none.
	logRate float64
}

func defaultDropsConfig() dropsConfig { return dropsConfig{logRate: 10} }

// addFlags are the flags for drops.
func (c *dropsConfig) addFlags(f *pflag.FlagSet) {
	f.Float64Var(&c.logRate, "drop-log-rate", c.logRate, "lines a second that the log may get of packets that policy denies, ten times as many at once; 0 for none: they are counted, and `selvage drops` shows them, all the same")
}

// validate says what is wrong with the flags.
func (c *dropsConfig) validate() error {
	if c.logRate < 0 || math.IsNaN(c.logRate) || math.IsInf(c.logRate, 0) {
		return fmt.Errorf("--drop-log-rate: %v is no number of lines", c.logRate)
	}
	return nil
}

// dropLookup knows whose addresses and chains are. Its methods are safe for concurrent
// use.
type dropLookup interface {
	// Owner names the pod that has an address; both are empty if no pod is known to.
	Owner(a netip.Addr) (namespace, name string)
	// Isolating returns the policies that isolate the pods whose packets end in a chain,
	// by its name: none for a chain that is gone by now, or is no pod's.
	Isolating(chain string) []policy.PolicyRef
}

// drops is what becomes of the packets that policy denies: they get names, those that
// repeat are folded, and the rest goes to the log and to whoever asks for it.
type drops struct {
	log    *slog.Logger
	node   string
	lookup dropLookup
	queue  chan nflog.Packet
	// logged and left count denied packets; see loggedPackets and leftOut.
	logged, left atomic.Uint64

	// What follows belongs to run.
	fold    dropFold
	limiter *rate.Limiter // nil if there are to be no lines
	// saidLeft is what left was when a line last said so, at saidAt.
	saidLeft uint64
	saidAt   time.Time

	mu sync.Mutex
	// kept are the last drops, once there are maxKept of them as a ring that begins at
	// next.
	kept    []drop
	next    int
	readers map[*dropReader]struct{}
	failure error // why there are none, if the kernel does not give any
}

// newDrops returns drops of a node that have not begun.
func newDrops(c dropsConfig, node string, lookup dropLookup, log *slog.Logger) *drops {
	d := &drops{
		log: log, node: node, lookup: lookup,
		queue: make(chan nflog.Packet, maxQueued), fold: newDropFold(), readers: make(map[*dropReader]struct{}),
	}
	if c.logRate > 0 {
		d.limiter = rate.NewLimiter(rate.Limit(c.logRate), int(max(1, math.Ceil(min(10*c.logRate, math.MaxInt32)))))
	}
	return d
}

// loggedPackets is how many denied packets the lines in the log tell of.
func (d *drops) loggedPackets() uint64 { return d.logged.Load() }

// leftOut is how many denied packets no line in the log tells of, of those that the
// kernel's rules have passed on: there were too many lines, or too many packets.
func (d *drops) leftOut() uint64 { return d.left.Load() }

// err says why no drops are seen, or nil.
func (d *drops) err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failure
}

// run looks after drops until ctx ends. That none can be seen is told, and tried again:
// it ends nothing.
func (d *drops) run(ctx context.Context) error {
	var listening sync.WaitGroup
	listening.Go(func() { d.listen(ctx) })
	d.work(ctx)
	listening.Wait()
	return nil
}

// listen has packets come into the queue until ctx ends.
func (d *drops) listen(ctx context.Context) {
	for pause := reopenAfter; ; pause = min(2*pause, maxReopen) {
		err := d.listenOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		d.fail(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// listenOnce listens until ctx ends or nflog fails.
func (d *drops) listenOnce(ctx context.Context) error {
	r, err := nflog.Open(nflog.Options{Group: policy.LogGroup, Take: d.take, Lost: func(n uint32) { d.left.Add(uint64(n)) }})
	if err != nil {
		return err
	}
	d.fail(nil)
	select {
	case <-ctx.Done():
	case <-r.Done():
	}
	return r.Close()
}

// fail notes why no drops are seen, or that they are.
func (d *drops) fail(err error) {
	d.mu.Lock()
	before := d.failure
	d.failure = err
	d.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		d.log.Warn("denied packets are not seen, but counted all the same", "err", err)
	case err == nil && before != nil:
		d.log.Info("denied packets are seen again")
	}
}

// take puts a packet into the queue, or counts it if there is no room.
func (d *drops) take(p nflog.Packet) {
	select {
	case d.queue <- p:
	default:
		d.left.Add(1)
	}
}

// work looks after what is in the queue until ctx ends.
func (d *drops) work(ctx context.Context) {
	sweep := time.NewTicker(sweepEach)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-d.queue:
			d.add(p, time.Now())
		case now := <-sweep.C:
			d.sweep(now)
		}
	}
}

// add takes a packet in.
func (d *drops) add(p nflog.Packet, now time.Time) {
	if !p.Source.IsValid() { // nothing can be said of it
		d.left.Add(1)
		return
	}
	n := d.resolve(p)
	switch d.fold.add(n, now) {
	case foldNew:
		d.tell(n, now)
	case foldFull:
		d.left.Add(1)
	case foldRepeated:
	}
}

// sweep tells of what was repeated, and how much was not told.
func (d *drops) sweep(now time.Time) {
	for _, n := range d.fold.due(now) {
		d.tell(n, now)
	}
	left := d.left.Load()
	if d.limiter == nil || left == d.saidLeft || now.Sub(d.saidAt) < foldFor {
		return
	}
	d.log.Info("denied packets of which no line tells, there were too many", "count", left-d.saidLeft)
	d.saidLeft, d.saidAt = left, now
}

// tell passes a drop on: to the log, and to all who ask.
func (d *drops) tell(n drop, now time.Time) {
	if d.limiter != nil && d.limiter.AllowN(now, 1) {
		d.log.LogAttrs(context.Background(), slog.LevelInfo, "denied", n.attrs()...)
		d.logged.Add(uint64(n.Count))
	} else {
		d.left.Add(uint64(n.Count))
	}
	d.publish(n)
}
