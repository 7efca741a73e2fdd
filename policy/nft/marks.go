package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/selvage-net/selvage/policy"
)

// A Reclaimer clears the bits of mark.Mask in all flows that carry mark.Value
// there, and returns how many these were.
type Reclaimer interface {
	Reclaim(mark policy.Mark) (int, error)
}

var errReclaim = errors.New("flows may still carry the generation from long ago")

// marks sees to it that no flow carries a generation before it comes into
// force: as soon as one is in force it has the next one reclaimed in the
// background.
type marks struct {
	reclaimer Reclaimer
	mask      policy.MarkMask
	retry     time.Duration
	log       *slog.Logger
	errors    atomic.Uint64

	// ahead is the work in the background; the rest belongs to it.
	ahead *reclaiming
	// unclean is the generation that came into force although flows may have
	// carried it; 0 if there is none.
	unclean uint32
}

// reclaiming is work in the background. Flows that lose a generation that is
// in force are just judged once more, so that it need not stop for that.
type reclaiming struct {
	generation uint32
	// tried is closed after the first try, done when nothing is left to do.
	tried, done chan struct{}
	clean       atomic.Bool
	stop        context.CancelFunc
}

// await returns once no flow carries generation next, or nothing can be done
// about it: that a new policy comes into force matters more. It only fails if
// ctx ends. current is the generation in force; it needs no reclaiming.
func (m *marks) await(ctx context.Context, current, next uint32) error {
	if m.reclaimer == nil || current == next {
		return nil
	}
	if a := m.ahead; a != nil && a.generation == next {
		select {
		case <-a.tried:
		case <-ctx.Done():
			return fmt.Errorf("wait until no flow carries generation %d: %w", next, ctx.Err())
		}
		if a.clean.Load() {
			return nil
		}
	} else if m.reclaim(next) {
		return nil
	}
	m.log.Error("changing the rules before all flows are ready for it; some may not be judged by them until this is made up for",
		"generation", next, "error", errReclaim)
	m.unclean = next
	return nil
}

// entered starts to make the generation after gen ready for use.
func (m *marks) entered(gen uint32) {
	next := m.mask.Next(gen)
	if m.reclaimer == nil || m.ahead != nil && m.ahead.generation == next && m.unclean == 0 {
		return
	}
	m.close()
	generations := []uint32{next}
	if m.unclean != 0 && m.unclean != next {
		generations = append(generations, m.unclean)
	}
	m.unclean = 0
	ctx, stop := context.WithCancel(context.Background())
	m.ahead = &reclaiming{generation: next, tried: make(chan struct{}), done: make(chan struct{}), stop: stop}
	go m.ahead.run(ctx, m, generations)
}

// close ends the work in the background.
func (m *marks) close() {
	if m.ahead == nil {
		return
	}
	m.ahead.stop()
	<-m.ahead.done
	m.ahead = nil
}

// run reclaims generations, again and again until it has succeeded with all.
func (a *reclaiming) run(ctx context.Context, m *marks, generations []uint32) {
	defer close(a.done)
	pause := m.retry
	for first := true; ; first = false {
		var left []uint32
		for _, gen := range generations {
			switch {
			case !m.reclaim(gen):
				left = append(left, gen)
			case gen == a.generation:
				a.clean.Store(true)
			}
		}
		if first {
			close(a.tried)
		}
		if len(left) == 0 {
			return
		}
		generations = left
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
			pause = min(2*pause, 64*m.retry)
		}
	}
}

// reclaim takes a generation back, and tells whether that succeeded.
func (m *marks) reclaim(gen uint32) bool {
	n, err := m.reclaimer.Reclaim(m.mask.Mark(gen))
	if err != nil {
		m.errors.Add(1)
		m.log.Warn("cannot take a generation back from the flows that carry it", "generation", gen, "error", err)
		return false
	}
	if n > 0 {
		m.log.Debug("took a generation back from flows", "generation", gen, "flows", n)
	}
	return true
}
