package informer

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/watchlist"
	"k8s.io/utils/clock"
)

// contact knows whether the source answers. It sits between the reflectors and
// the source, because a reflector keeps the most common outage, a refused
// connection, to itself: it tries again without calling its error handler.
type contact struct {
	logger  *slog.Logger
	clock   clock.PassiveClock
	observe Observe

	mu    sync.Mutex
	kinds [len(Kinds)]contactState
	// since is when the outage began; zero if there is none.
	since time.Time
	// last is when the source was last heard of.
	last time.Time
}

type contactState uint8

const (
	// notYet is the state before the first watch.
	notYet contactState = iota
	reached
	// absent is an answer, too: the source does not have the kind, nor need it.
	absent
	// away is no answer: an outage, which will end by itself.
	away
	// refused is an answer that is of no use: somebody has to do something.
	refused
	// garbled is refused, too. It is not over when a watch begins, but when
	// all that there is could be decoded.
	garbled
)

// watching notes that a watch of the kind began, which is when all of it is
// known or about to be.
func (c *contact) watching(kind Kind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = c.clock.Now()
	if c.kinds[kind] != garbled {
		c.well(kind, reached)
	}
}

// heard notes that there was a sign of life. all says that everything that
// there is of the kind has been decoded: a list, or the bookmark after a stream.
func (c *contact) heard(kind Kind, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = c.clock.Now()
	if all && c.kinds[kind] == garbled {
		c.well(kind, reached)
	}
}

// without notes that the source does not have an optional kind.
func (c *contact) without(kind Kind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = c.clock.Now()
	c.well(kind, absent)
}

// well notes that there is no trouble with a kind.
func (c *contact) well(kind Kind, now contactState) {
	before := c.kinds[kind]
	c.kinds[kind] = now
	if before.fine() {
		return
	}
	c.observe.connected(kind, true)
	c.observe.trouble(kind, nil)
	c.back()
}

// fine tells whether there is nothing to wait for.
func (s contactState) fine() bool { return s == reached || s == absent }

// back notes the end of an outage, if there was one and it is over.
func (c *contact) back() {
	if c.since.IsZero() || slices.Contains(c.kinds[:], away) {
		return
	}
	c.logger.Info("the source of objects answers again", "outage", c.clock.Now().Sub(c.since).Round(time.Millisecond))
	c.since = time.Time{}
}

// failed notes that the source did not answer as it should. Only the first
// failure of an outage is logged: each kind tries again and again.
func (c *contact) failed(kind Kind, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, trouble := c.kinds[kind], &Trouble{Kind: kind, Cause: causeOf(err), Err: err}
	if before.fine() || before == notYet {
		c.observe.connected(kind, false)
	}
	c.observe.trouble(kind, trouble)
	switch trouble.Cause {
	case Forbidden, Unauthenticated, NotServed:
		c.kinds[kind] = refused
	case Undecodable:
		c.kinds[kind] = garbled
	case Unanswered:
		c.kinds[kind] = away
		if c.since.IsZero() {
			c.since = c.clock.Now()
			c.logger.Warn("the source of objects does not answer; what is in force stays in force, trying again",
				"kind", kind.String(), "err", err)
		}
		return
	}
	c.back()
}

// connected tells whether all kinds that there are are being watched, and when the source was
// last heard of.
func (c *contact) connected() (ok bool, last time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.kinds {
		if !s.fine() {
			return false, c.last
		}
	}
	return true, c.last
}

// listener is a ListerWatcher that tells contact how its calls go.
type listener struct {
	cache.ListerWatcherWithContext
	kind    Kind
	contact *contact
	// noStream is what the wrapped ListerWatcher says of itself.
	noStream bool
	// pauses are those between tries.
	pauses wait.Backoff
	// known tells whether an error is for the caller to act on.
	known func(error) bool
}

// pauses grow to between 5 and 10 seconds. A reflector's grow to between 30 and
// 60, and nothing resets them when the source is back: for that long after an
// outage a node would enforce what was true before it.
func pauses() wait.Backoff {
	return wait.Backoff{Duration: 250 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 100, Cap: 5 * time.Second}
}

func newListener(kind Kind, lw cache.ListerWatcher, c *contact) *listener {
	return &listener{
		ListerWatcherWithContext: cache.ToListerWatcherWithContext(lw),
		kind:                     kind,
		contact:                  c,
		noStream:                 watchlist.DoesClientNotSupportWatchListSemantics(lw),
		pauses:                   pauses(),
		known:                    routine,
	}
}

// IsWatchListSemanticsUnSupported is how client-go asks whether initial events
// can be streamed.
func (l *listener) IsWatchListSemanticsUnSupported() bool { return l.noStream }

// List implements cache.ListerWatcher.
func (l *listener) List(o metav1.ListOptions) (runtime.Object, error) {
	return l.ListWithContext(context.Background(), o)
}

// Watch implements cache.ListerWatcher.
func (l *listener) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return l.WatchWithContext(context.Background(), o)
}

// ListWithContext implements cache.ListerWatcherWithContext. It tries again until
// the source answers, see pauses, or the caller knows better.
func (l *listener) ListWithContext(ctx context.Context, o metav1.ListOptions) (list runtime.Object, err error) {
	err = l.persist(ctx, func() error {
		list, err = l.ListerWatcherWithContext.ListWithContext(ctx, o)
		return err
	}, l.known)
	if err != nil {
		return nil, err
	}
	l.contact.heard(l.kind, true)
	return list, nil
}

// WatchWithContext implements cache.ListerWatcherWithContext. It tries again until
// the source answers, see pauses, or the caller knows better.
func (l *listener) WatchWithContext(ctx context.Context, o metav1.ListOptions) (w watch.Interface, err error) {
	err = l.persist(ctx, func() error {
		w, err = l.ListerWatcherWithContext.WatchWithContext(ctx, o)
		return err
	}, func(err error) bool {
		// A server that does not know how to stream says that the request is
		// invalid; it is asked for a list then.
		return l.known(err) || o.SendInitialEvents != nil && (apierrors.IsInvalid(err) || apierrors.IsBadRequest(err))
	})
	if err != nil {
		return nil, err
	}
	l.contact.watching(l.kind)
	return newTap(w, func(e watch.Event) {
		if e.Type != watch.Error {
			l.contact.heard(l.kind, e.Type == watch.Bookmark)
		} else if err := apierrors.FromObject(e.Object); ctx.Err() == nil && !routine(err) {
			l.contact.failed(l.kind, err)
		}
	}), nil
}

// persist calls ask until it succeeds, ctx ends, or the caller knows better what to
// do about the error.
func (l *listener) persist(ctx context.Context, ask func() error, known func(error) bool) error {
	pauses := l.pauses
	for {
		err := ask()
		if err == nil || ctx.Err() != nil || known(err) {
			return err
		}
		l.contact.failed(l.kind, err)
		if !sleep(ctx, pauses.Step()) {
			return err
		}
	}
}

// sleep returns false if ctx is done before.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// tap lets somebody see the events of a watch. It is not watch.Filter, which
// leaves a goroutine behind if it is stopped with an event in its hands.
type tap struct {
	watch.Interface
	result  chan watch.Event
	stopped chan struct{}
	once    sync.Once
}

func newTap(w watch.Interface, see func(watch.Event)) *tap {
	t := &tap{Interface: w, result: make(chan watch.Event), stopped: make(chan struct{})}
	go func() {
		defer close(t.result)
		for e := range w.ResultChan() {
			see(e)
			select {
			case t.result <- e:
			case <-t.stopped:
				return
			}
		}
	}()
	return t
}

// ResultChan implements watch.Interface.
func (t *tap) ResultChan() <-chan watch.Event { return t.result }

// Stop implements watch.Interface.
func (t *tap) Stop() {
	t.once.Do(func() { close(t.stopped) })
	t.Interface.Stop()
}

// routine tells whether an error belongs to the normal course of things: the
// server has forgotten the version that a watch wants to go on from, or does
// not have it yet.
func routine(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) ||
		apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}
