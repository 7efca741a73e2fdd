package informer

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/clock"
)

// deliver calls sink until ctx is done.
func (i *Informer) deliver(ctx context.Context, sink Sink) {
	d := &delivery{Informer: i, sink: sink, backoff: i.o.RetryBackoff, initial: true}
	d.timer = i.o.Clock.NewTimer(time.Hour)
	defer d.timer.Stop()
	d.call(ctx)
	for d.next(ctx) {
		d.call(ctx)
	}
}

// delivery is the state of deliver.
type delivery struct {
	*Informer
	sink  Sink
	timer clock.Timer
	// started is when the last call started.
	started time.Time
	// compared is when the last call that was a resync, or the initial one,
	// started.
	compared time.Time
	// failures counts the calls that have failed since one did not; backoff
	// paces them. text is the last error that was logged.
	failures int
	backoff  wait.Backoff
	text     string
	retryAt  time.Time
	initial  bool
	resync   bool
}

// next waits for the time of the next call. It returns false if ctx is done.
func (d *delivery) next(ctx context.Context) bool {
	if d.failures > 0 {
		// Changes must wait as well: as long as the sink fails, each would be
		// one more failure.
		return d.sleep(ctx, d.retryAt)
	}
	var compare <-chan time.Time
	if d.o.ResyncInterval > 0 {
		d.set(d.compared.Add(d.o.ResyncInterval))
		compare = d.timer.C()
	}
	select {
	case <-ctx.Done():
		return false
	case <-d.pending.wake:
	case <-compare:
		d.resync = true
	}
	return d.sleep(ctx, d.started.Add(d.o.MinInterval))
}

// sleep waits until the time has come. It returns false if ctx is done.
func (d *delivery) sleep(ctx context.Context, until time.Time) bool {
	if !d.o.Clock.Now().Before(until) {
		return ctx.Err() == nil
	}
	d.set(until)
	select {
	case <-ctx.Done():
		return false
	case <-d.timer.C():
		return true
	}
}

// set sets the timer. It may have run out unnoticed.
func (d *delivery) set(at time.Time) {
	if !d.timer.Stop() {
		select {
		case <-d.timer.C():
		default:
		}
	}
	d.timer.Reset(at.Sub(d.o.Clock.Now()))
}

// call calls the sink once.
func (d *delivery) call(ctx context.Context) {
	b := d.pending.take()
	b.Initial, b.Resync = d.initial, d.resync
	d.started = d.o.Clock.Now()
	if b.Initial || b.Resync {
		d.compared = d.started
	}
	d.initial, d.resync = false, false
	err := d.sink(ctx, b)
	if err == nil {
		if d.failures > 0 {
			d.o.Logger.Info("changes are in force again", "failures", d.failures)
		}
		d.failures, d.text, d.backoff = 0, "", d.o.RetryBackoff
		return
	}
	if ctx.Err() != nil {
		return
	}
	d.failures++
	d.resync = b.Resync
	pause := d.backoff.Step()
	d.retryAt = d.o.Clock.Now().Add(pause)
	if text := err.Error(); text != d.text {
		d.text = text
		d.o.Logger.Error("changes could not be put into force, trying again", "err", err, "pause", pause)
	}
}
