package tc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/selvage-net/selvage/shaping"
)

// Options are what a Shaper needs.
type Options struct {
	// Logger gets one line for what an operator acts on.
	Logger *slog.Logger
	// Find finds the interface of a pod by its addresses, or says why there is none.
	Find func([]netip.Addr) (shaping.Interface, error)
	// Defaults are for pods of which nothing else is said.
	Defaults shaping.Limits
	// Exclude are blocks of addresses; traffic with them is not shaped.
	Exclude []netip.Prefix
	// TakeOver allows to replace what the CNI's bandwidth plugin has made.
	TakeOver bool
	// ResyncInterval is the time between two comparisons with all that is in the
	// kernel; 5 minutes if it is 0.
	ResyncInterval time.Duration
	// Lasting is how long a pod may be without an interface before that is told: one
	// that starts has an address before everything is set up. 10 seconds if it is 0.
	Lasting time.Duration
	// Observe, if it is set, is told how things are after each round that did
	// something, one call at a time.
	Observe func(Status)
}

// Status is how things are.
type Status struct {
	// Shaped is the number of pods of which at least one direction is shaped.
	Shaped int
	// Problems are the annotations that cannot be used.
	Problems []shaping.Problem
	// Unshaped are the pods that have a limit which is not in force.
	Unshaped []Unshaped
	// Repaired is how often, since the Shaper was made, what somebody else had
	// removed or changed was put right; Failed how often the kernel refused.
	Repaired, Failed int
}

// Unshaped is a pod with a limit that is not in force.
type Unshaped struct {
	Pod    shaping.Pod
	Reason Reason
	// Err says what is the matter.
	Err error
}

// Reason sorts what keeps pods from being shaped.
type Reason string

// The reasons.
const (
	// NoInterface is a pod whose interface is not found.
	NoInterface Reason = "NoInterface"
	// HostNetwork is a pod that has no interface of its own.
	HostNetwork Reason = "HostNetwork"
	// ForeignQdisc is a pod at whose interface somebody else shapes already.
	ForeignQdisc Reason = "ForeignQdisc"
	// NoPermission is a pod whose interface is in its own namespace, which takes a
	// capability to be reached.
	NoPermission Reason = "NoPermission"
	// Refused is everything else that the kernel says.
	Refused Reason = "Refused"
)

// pace is the least time between the starts of two rounds: what comes meanwhile is
// done at once.
const pace = 10 * time.Millisecond

// A Shaper keeps the kernel as the limits of the node's pods want it. It takes over
// what the one before it left, flushes nothing, and leaves everything in force at its
// end. Change, Suspect, Look, Ready and Samples may be called at any time.
type Shaper struct {
	options Options
	wake    chan struct{}

	mu       sync.Mutex // guards what follows
	changes  []func(*shaping.Model)
	suspects map[int]uint32 // interfaces that somebody has changed, and who
	arrived  bool           // there may be new interfaces
	first    chan struct{}  // closed by the first Change
	done     bool           // the first round has ended

	// working is held during a round, and guards what follows.
	working sync.Mutex
	model   *shaping.Model
	node    *Conn
	fqCodel bool
	pods    map[shaping.Key]*record
	status  Status
	// later are pods for which the last round had no time.
	later []shaping.Key
	// doomed says that IFBs of the node are to be removed, uncollected that what no pod
	// has any use for could not be listed.
	doomed, uncollected bool

	sampling sync.Mutex
	sampler  *Conn // guarded by sampling
}

// New returns a Shaper for the caller's network namespace. It does nothing before
// Run.
func New(o Options) (*Shaper, error) {
	if o.ResyncInterval == 0 {
		o.ResyncInterval = 5 * time.Minute
	}
	if o.Lasting == 0 {
		o.Lasting = 10 * time.Second
	}
	s := &Shaper{
		options: o, wake: make(chan struct{}, 1), first: make(chan struct{}), suspects: make(map[int]uint32),
		model: shaping.NewModel(o.Defaults), pods: make(map[shaping.Key]*record),
	}
	var err error
	if s.node, err = Open(); err != nil {
		return nil, err
	}
	if s.sampler, err = Open(); err != nil {
		return nil, errors.Join(err, s.node.Close())
	}
	if s.fqCodel, err = s.node.HasFQCodel(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close closes the connections. Run must have ended.
func (s *Shaper) Close() error {
	return errors.Join(s.node.Close(), s.sampler.Close())
}

// Change has f tell the model what is new. The first call must tell of everything
// that there is: what no pod wants then is removed.
func (s *Shaper) Change(f func(*shaping.Model)) {
	s.mu.Lock()
	if s.changes = append(s.changes, f); len(s.changes) == 1 && !s.begun() {
		close(s.first)
	}
	s.mu.Unlock()
	s.poke()
}

// begun tells whether there was a Change. mu is held.
func (s *Shaper) begun() bool {
	select {
	case <-s.first:
		return true
	default:
		return false
	}
}

// Suspect says that the traffic control of an interface may have changed, or that of
// any if the index is 0.
func (s *Shaper) Suspect(c Change) {
	s.mu.Lock()
	s.suspects[c.Index] = c.Port
	s.mu.Unlock()
	s.poke()
}

// Look says that there may be new interfaces.
func (s *Shaper) Look() {
	s.mu.Lock()
	s.arrived = true
	s.mu.Unlock()
	s.poke()
}

func (s *Shaper) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Ready tells whether the first round has ended.
func (s *Shaper) Ready() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

// Run works until ctx ends. It fails if it cannot learn of changes, and can be called
// again then.
func (s *Shaper) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var monitoring sync.WaitGroup
	defer monitoring.Wait()
	defer cancel(nil)
	monitoring.Go(func() {
		if err := s.node.Monitor(ctx, s.Suspect); err != nil {
			cancel(err)
		}
	})
	select {
	case <-ctx.Done():
		return s.cause(ctx)
	case <-s.first:
	}
	if !s.Ready() {
		s.adopt()
	}
	resync := time.NewTicker(s.options.ResyncInterval)
	defer resync.Stop()
	for full := true; ; {
		retry := s.round(full)
		full = false
		timer := time.NewTimer(retry)
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-timer.C:
		case <-resync.C:
			full = true
		}
		timer.Stop()
		select { // more may come at once
		case <-ctx.Done():
			return s.cause(ctx)
		case <-time.After(pace):
		}
	}
}

// cause is why ctx ended, or nil if that is no failure.
func (s *Shaper) cause(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// news is what has come since the last round.
type news struct {
	changes  []func(*shaping.Model)
	suspects map[int]uint32
	arrived  bool
}

func (s *Shaper) take() news {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := news{s.changes, s.suspects, s.arrived}
	s.changes, s.suspects, s.arrived = nil, make(map[int]uint32), false
	return n
}

// round brings everything that is new into force, and everything at all if it is a
// full one. It returns when the next one must be at the latest.
func (s *Shaper) round(full bool) (retry time.Duration) {
	s.working.Lock()
	defer s.working.Unlock()
	n := s.take()
	for _, f := range n.changes {
		f(s.model)
	}
	changed := s.model.Changed()
	s.suspect(n, full)
	now := time.Now()
	keys := append(changed, s.later...)
	s.later = nil
	for k, r := range s.pods {
		if r.suspect || r.failed != nil && !now.Before(r.retry) || r.narrowing.on && !now.Before(r.narrowing.look) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, shaping.Key.Compare)
	keys = slices.Compact(keys)
	s.reconcile(keys, now, full || len(keys) >= many)
	if full || s.uncollected {
		s.collect()
	}
	s.removeDoomed()
	if len(keys) > 0 || full {
		s.report(now)
	}
	retry = time.Hour
	if s.uncollected || s.doomed {
		retry = time.Second
	}
	if len(s.later) > 0 {
		retry = 0
	}
	for _, r := range s.pods {
		if r.failed != nil {
			retry = min(retry, max(0, r.retry.Sub(now)))
		}
		if r.narrowing.on {
			retry = min(retry, max(0, r.narrowing.look.Sub(now)))
		}
	}
	return retry
}

// suspect marks the pods whose state in the kernel is not sure any more, and those
// that may have what they lacked.
func (s *Shaper) suspect(n news, full bool) {
	_, all := n.suspects[0]
	for _, r := range s.pods {
		if full || all {
			r.suspect, r.by = true, 0
		} else if port, ok := r.concerned(n.suspects); ok {
			r.suspect, r.by = true, port
		}
		if n.arrived && errors.Is(r.failed, errPlace) && r.plan.Pod.Located() {
			r.retry = time.Time{}
		}
	}
}

// many is from how many pods on one listing of all queueing disciplines is better than
// to ask for each: it costs less, and nobody else hears of it.
const many = 8

// reconcile brings pods into the state that they shall have.
func (s *Shaper) reconcile(keys []shaping.Key, now time.Time, list bool) {
	look := s.node.qdisc
	if list {
		look = s.look()
	}
	slices.SortStableFunc(keys, func(a, b shaping.Key) int { return cmp.Compare(s.turn(a), s.turn(b)) })
	for i, k := range keys {
		if i > 0 && time.Since(now) > budget {
			s.later = keys[i:]
			return
		}
		s.reconcilePod(k, look, now)
	}
}

// budget is how long a round may take until what is left has to wait for the next one:
// pods that have started meanwhile go first.
const budget = 200 * time.Millisecond

// turn is when a pod is looked at in a round.
func (s *Shaper) turn(k shaping.Key) int {
	pod, ok := s.model.Pod(k)
	switch {
	case s.pods[k] != nil && s.pods[k].outdated(pod, ok):
		return 0 // another one may have its interface by now
	case s.model.Limits(k).Any():
		return 1
	}
	return 2 // to take a limit away takes time, as long as something waits there
}

// look is a look at all that is in force or, if that cannot be listed, at one thing
// after the other: where pods come and go all the time, no listing is complete.
func (s *Shaper) look() look {
	listing, err := s.node.listing()
	if err == nil {
		return listing
	}
	if !errors.Is(err, errInterrupted) {
		s.fail(fmt.Errorf("read what is in force: %w", err))
	}
	return s.node.qdisc
}

// removeDoomed removes the IFBs that are to go, all at once. What fails is tried
// again with the next comparison.
func (s *Shaper) removeDoomed() {
	if !s.doomed {
		return
	}
	err := s.node.removeDoomed()
	if s.doomed = errors.Is(err, errInterrupted); err != nil && !s.doomed {
		s.fail(fmt.Errorf("remove IFBs that nobody uses any more: %w", err))
	}
}

// collect removes what no pod has any use for.
func (s *Shaper) collect() {
	k := claims{indices: make(map[int]bool), ifbs: make(map[string]bool), complete: true}
	for _, r := range s.pods {
		for _, d := range shaping.Directions() {
			k.ifbs[shaping.IFBName(r.plan.Pod, d)] = true
		}
		switch at := r.plan.Interface; {
		case at.Index == 0:
			// As long as its interface is not found, nobody can say whose a queue is.
			k.complete = k.complete && !r.plan.Pod.Located()
		case at.NetNS == "":
			k.indices[at.Index] = true
		}
	}
	n, err := s.node.collect(k)
	s.uncollected = errors.Is(err, errInterrupted)
	if err != nil && !s.uncollected {
		s.fail(fmt.Errorf("remove what no pod has any use for: %w", err))
	}
	if n > 0 {
		s.options.Logger.Info("removed what was there for pods that are gone", "objects", n)
	}
}

// fail tells of what went wrong for no pod in particular. It is tried again with the
// next comparison.
func (s *Shaper) fail(err error) {
	s.status.Failed++
	s.options.Logger.Error("shaping failed, trying again later", "err", err)
}
