package informer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
)

// Defaults of Options.
const (
	DefaultMinInterval    = 10 * time.Millisecond
	DefaultResyncInterval = 5 * time.Minute
)

// DefaultRetryBackoff is the pace of calls after the sink has failed. It does
// not slow down to more than some seconds: what waits meanwhile may be a policy
// that somebody needs now.
func DefaultRetryBackoff() wait.Backoff {
	return wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 16, Cap: 5 * time.Second}
}

// stillWaiting is how often is said what is waited for.
const stillWaiting = 10 * time.Second

// Options are the options of an Informer. Only Source is needed.
type Options struct {
	Source Source
	// Node is the name of the node whose labels are kept; those of others are not.
	Node string
	// Logger gets what goes wrong, once; nil discards.
	Logger *slog.Logger
	// Clock is the real one if nil.
	Clock clock.WithTicker
	// MinInterval is the least time between the starts of two calls of the
	// sink. A change after a pause of that length is passed on at once. 0
	// means DefaultMinInterval.
	MinInterval time.Duration
	// RetryBackoff paces the calls after one that failed. The zero value means
	// DefaultRetryBackoff.
	RetryBackoff wait.Backoff
	// ResyncInterval is how often the sink is called to compare everything; 0
	// means DefaultResyncInterval, less than 0 never.
	ResyncInterval time.Duration
	// Observe is told of the state of the source.
	Observe Observe
}

// Sink takes changes in. Calls follow one another, none overlaps the next. If
// it returns an error it is called again, after a while, with no deltas or with
// those that came meanwhile: it must remember what it was given.
type Sink func(ctx context.Context, b Batch) error

// Informer follows the objects of a source and feeds them to a Sink.
type Informer struct {
	o       Options
	pace    pace
	contact *contact
	pending *pending
}

// New returns an Informer that does nothing yet.
func New(o Options) *Informer {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.MinInterval == 0 {
		o.MinInterval = DefaultMinInterval
	}
	if o.RetryBackoff.Duration == 0 {
		o.RetryBackoff = DefaultRetryBackoff()
	}
	if o.ResyncInterval == 0 {
		o.ResyncInterval = DefaultResyncInterval
	}
	return &Informer{
		o:       o,
		pace:    defaultPace(),
		contact: &contact{logger: o.Logger, clock: o.Clock, observe: o.Observe},
		pending: newPending(o.Clock),
	}
}

// Connected tells whether the source answers: every kind that there is is being
// watched. While it does not, what is known stays in force. It may be called at any time.
func (i *Informer) Connected() bool {
	ok, _ := i.contact.connected()
	return ok
}

// LastContact returns when the source was last heard of, or the zero time. An
// API server is heard of at least about once a minute while it answers.
func (i *Informer) LastContact() time.Time {
	_, last := i.contact.connected()
	return last
}

// Run follows the source until ctx is done, and then returns nil once
// everything that it started has ended. It waits until all objects that there
// are have come, calls sink with all of them, and from then on with what
// changes. It is called once.
func (i *Informer) Run(ctx context.Context, sink Sink) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	// The reflectors must be told to end before they are waited for.
	defer cancel(nil)

	synced, err := i.start(withClientLog(ctx, i.o.Logger), &wg)
	if err != nil {
		return err
	}
	var failed error
	wg.Go(func() {
		if failed = i.o.Source.Run(ctx); failed != nil {
			cancel(failed)
		}
	})
	if i.wait(ctx, synced) {
		i.deliver(ctx, sink)
	}
	cancel(nil)
	wg.Wait()
	if failed != nil {
		return fmt.Errorf("source of objects: %w", failed)
	}
	return nil
}

// start starts an informer for each kind.
func (i *Informer) start(ctx context.Context, wg *sync.WaitGroup) (map[Kind]cache.DoneChecker, error) {
	shared := &interner{self: i.o.Node}
	synced := map[Kind]cache.DoneChecker{}
	for _, kind := range Kinds {
		inf := cache.NewSharedIndexInformerWithOptions(
			i.listerWatcher(kind),
			kindInfo[kind].object(),
			cache.SharedIndexInformerOptions{ObjectDescription: kind.String()},
		)
		registration, err := inf.AddEventHandler(events{kind, i.pending})
		err = errors.Join(err, inf.SetTransform(shared.trim),
			inf.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
				// Most errors have been seen by the listener already; what
				// is left is a list that makes no sense.
				if ctx.Err() == nil && !routine(err) {
					i.contact.failed(kind, err)
				}
			}))
		if err != nil {
			return nil, fmt.Errorf("informer for %s: %w", kind, err)
		}
		synced[kind] = registration.HasSyncedChecker()
		wg.Go(func() { inf.RunWithContext(ctx) })
	}
	return synced, nil
}

// listerWatcher returns what a reflector asks for the objects of a kind.
func (i *Informer) listerWatcher(kind Kind) cache.ListerWatcher {
	lw := i.o.Source.ListerWatcher(kind)
	l := newListener(kind, lw, i.contact)
	if !kindInfo[kind].optional {
		return l
	}
	return newOptional(l, definitionOf(lw), i.pace)
}

// wait waits until all objects that there were at the start have come. It
// returns false if ctx is done before.
func (i *Informer) wait(ctx context.Context, synced map[Kind]cache.DoneChecker) bool {
	ticker := i.o.Clock.NewTicker(stillWaiting)
	defer ticker.Stop()
	for _, kind := range Kinds {
		for done := false; !done; {
			select {
			case <-synced[kind].Done():
				done = true
			case <-ticker.C():
				i.o.Logger.Info("still waiting for the first list of objects", "kinds", missing(synced))
			case <-ctx.Done():
				return false
			}
		}
	}
	return true
}

// missing names the kinds that have not come.
func missing(synced map[Kind]cache.DoneChecker) string {
	var names []string
	for _, kind := range Kinds {
		if !cache.IsDone(synced[kind]) {
			names = append(names, kind.String())
		}
	}
	return strings.Join(names, ", ")
}
