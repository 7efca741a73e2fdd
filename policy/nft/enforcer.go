package nft

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/selvage-net/selvage/policy"
)

// EnforcerOptions say how an Enforcer is made.
type EnforcerOptions struct {
	// Conn is used by nobody else from now on.
	Conn *Conn
	// Config must be valid. Its Generation is what to start with if no tables
	// are found; 0 means 1.
	Config policy.Config
	// Reclaimer takes a generation from the flows that still carry it, before
	// it is used again; see package policy/conntrack. Without one, a flow that
	// was idle while all generations were used up passes for judged.
	Reclaimer Reclaimer
	// RetryReclaim is the first pause after a Reclaimer's error, and is
	// doubled up to 64 times as much. 0 means a second.
	RetryReclaim time.Duration
	// Logger may be nil.
	Logger *slog.Logger
}

// Result says what a Sync did.
type Result struct {
	Stats
	// Generation is the one in force, or 0 if it is not known.
	Generation uint32
	// Tightened says that it is another one than before.
	Tightened bool
	// Resynced says that the tables were read back, Repaired how many sets,
	// chains and elements were then not as this Enforcer had left them.
	Resynced bool
	Repaired int
	// Replaced says that the tables were made anew; see Conn.Replace.
	Replaced bool
}

// replaceAfter is how many changes in a row, each made from what was just
// read, the kernel refuses before the tables are replaced.
const replaceAfter = 2

// An Enforcer keeps the kernel's tables as the cluster's objects demand. It
// compiles what it is told and applies what changed. At the start and after
// any error it reads the tables back first, and continues from what is there:
// an agent that comes back to tables that are right sends nothing.
//
// It may be used by several goroutines at once.
type Enforcer struct {
	conn    *Conn
	cfg     policy.Config
	log     *slog.Logger
	marks   *marks
	tallies *tallies

	inSync     atomic.Bool
	generation atomic.Uint32

	mu sync.Mutex
	// compiler is nil until the tables were read for the first time: it starts
	// with the generation found there. early are the deltas that came before.
	compiler *policy.Compiler
	early    []policy.Delta
	// verify asks the next Sync to read back.
	verify bool
	// refused counts the changes that were refused in a row.
	refused int
}

// NewEnforcer returns an Enforcer that has done nothing yet.
func NewEnforcer(opts EnforcerOptions) *Enforcer {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.RetryReclaim == 0 {
		opts.RetryReclaim = time.Second
	}
	return &Enforcer{
		conn: opts.Conn,
		cfg:  opts.Config,
		log:  opts.Logger,
		marks: &marks{
			reclaimer: opts.Reclaimer, mask: opts.Config.MarkMask,
			retry: opts.RetryReclaim, log: opts.Logger,
		},
		tallies: newTallies(opts.Conn.opts),
	}
}

// Sync takes in deltas and brings the tables up to date. Deltas are never lost:
// after an error the next Sync, with other deltas or none, makes up for it.
// The error wraps the system call's and says what object it is about.
func (e *Enforcer) Sync(ctx context.Context, deltas []policy.Delta) (Result, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.compiler == nil {
		e.early = append(e.early, deltas...)
	} else {
		e.compiler.Update(deltas...)
	}
	var r Result
	err := e.sync(ctx, &r)
	if slices.ContainsFunc(deltas, func(d policy.Delta) bool { return d.Deleted }) {
		e.forget()
	}
	e.inSync.Store(err == nil)
	if err != nil {
		// What is in force can only be known by reading it.
		e.generation.Store(0)
	}
	r.Generation = e.generation.Load()
	return r, err
}

// Resync makes the next Sync read the tables back and repair what somebody
// else has changed.
func (e *Enforcer) Resync() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.verify = true
}

// InSync tells whether the last Sync succeeded.
func (e *Enforcer) InSync() bool { return e.inSync.Load() }

// Generation is the generation in force, or 0 if it is not known.
func (e *Enforcer) Generation() uint32 { return e.generation.Load() }

// ReclaimErrors is how often generations could not be taken back from flows.
func (e *Enforcer) ReclaimErrors() uint64 { return e.marks.errors.Load() }

// Problems are the objects that could not be compiled as they were written.
func (e *Enforcer) Problems() []policy.Problem {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.compiler == nil {
		return nil
	}
	return e.compiler.Problems()
}

// Objects counts what is known and compiled, for metrics.
func (e *Enforcer) Objects() policy.Counts {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.compiler == nil {
		return policy.Counts{}
	}
	return e.compiler.Counts()
}

// Pools returns the pools in force.
func (e *Enforcer) Pools() *policy.Pools {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.compiler == nil {
		return &policy.Pools{}
	}
	return e.compiler.Pools()
}

// PoolUse counts how much of the pools is in use; see policy.Compiler.PoolUse.
func (e *Enforcer) PoolUse() policy.Use {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.compiler == nil {
		return policy.Use{}
	}
	return e.compiler.PoolUse()
}

// Policies returns all policies that are known; see policy.Compiler.Policies.
func (e *Enforcer) Policies() []policy.PolicyPods {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.compiler == nil {
		return nil
	}
	return e.compiler.Policies()
}

// Owner names the pod that has an address; see policy.Compiler.Owner.
func (e *Enforcer) Owner(a netip.Addr) (namespace, name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.compiler == nil {
		return "", ""
	}
	return e.compiler.Owner(a)
}

// PolicyCounts reads what the rules have let through and denied. It does not wait for
// a Sync. After an error the counts are those that were read before.
func (e *Enforcer) PolicyCounts() (PolicyCounts, error) { return e.tallies.counts() }

// Counter says what a counter of the rules counts, by its name, which is also the
// prefix of what a chain logs that it denies. It does not wait for a Sync.
func (e *Enforcer) Counter(name string) (policy.CounterInfo, bool) { return e.tallies.info(name) }

// Isolating returns the policies that isolate the pods which a chain denies something,
// by the prefix of what it logs; nil if there is no such chain any more. It does not
// wait for a Sync.
func (e *Enforcer) Isolating(chain string) []policy.PolicyRef {
	info, _ := e.tallies.info(chain)
	if !info.Denied {
		return nil
	}
	return info.Policies
}

// forget drops the counts of policies and namespaces that are no more.
func (e *Enforcer) forget() {
	if e.compiler != nil {
		e.tallies.forget(e.compiler.HasPolicy, e.compiler.HasNamespace)
	}
}

// Close stops what goes on in the background and closes the Conn. The tables
// stay in force.
func (e *Enforcer) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.marks.close()
	e.inSync.Store(false)
	return errors.Join(e.conn.Close(), e.tallies.close())
}

func (e *Enforcer) sync(ctx context.Context, r *Result) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if e.inSync.Load() {
		if err := e.apply(ctx, e.compiler.Changes(), r); err != nil || !e.verify {
			return err
		}
		repaired, err := e.converge(ctx, r)
		r.Repaired = repaired
		if repaired > 0 && err == nil {
			e.log.Warn("repaired tables that somebody else had changed", "objects", repaired, "replaced", r.Replaced)
		}
		return err
	}
	_, err := e.converge(ctx, r)
	return err
}

// converge reads the tables and makes of them what they should be. It returns
// how many parts of them were otherwise.
func (e *Enforcer) converge(ctx context.Context, r *Result) (different int, err error) {
	r.Resynced = true
	was := e.generation.Load()
	actual, err := e.conn.Read()
	if err != nil {
		return 0, err
	}
	found := generationOf(actual, e.cfg.MarkMask)
	e.generation.Store(found)
	first := e.compiler == nil
	if first {
		cfg := e.cfg
		if found != 0 {
			cfg.Generation = found
		}
		e.compiler = policy.NewCompiler(cfg)
		e.compiler.Update(e.early...)
		e.early = nil
	}
	// What changed since the last success is part of the difference.
	e.compiler.Changes()
	desired := e.compiler.Ruleset()
	change, mendable := policy.Diff(actual, desired), sameSets(actual, desired)
	// Flows carry the generation that was found or, if somebody has made that
	// impossible to find, the compiler's.
	if (change.Tightens || !mendable) && (found == e.compiler.Generation() || found == 0 && !first) {
		e.compiler.Tighten()
		e.compiler.Changes()
		desired = e.compiler.Ruleset()
		change = policy.Diff(actual, desired)
	}
	e.tallies.adopt(actual, desired, e.compiler.Counter)
	different = countParts(change)
	if mendable && e.refused < replaceAfter {
		err = e.apply(ctx, change, r)
	} else {
		different = max(different, 1)
		err = e.replace(ctx, desired, r)
	}
	switch {
	case err == nil:
		r.Tightened = r.Tightened || was != 0 && was != e.generation.Load()
		e.refused = 0
		e.verify = false
	case errors.Is(err, ErrRefused):
		e.refused++
	}
	return different, err
}

// apply applies a change that was made from what is in force.
func (e *Enforcer) apply(ctx context.Context, change *policy.Change, r *Result) error {
	if change.Empty() {
		e.enter(r)
		return nil
	}
	if err := e.marks.await(ctx, e.generation.Load(), e.compiler.Generation()); err != nil {
		return err
	}
	e.tallies.add(change, e.compiler.Counter)
	stats, err := e.conn.Apply(change)
	r.Stats.Add(stats)
	if err != nil {
		return err
	}
	if e.tallies.del(&e.conn.last) {
		e.forget()
	}
	e.enter(r)
	return nil
}

func (e *Enforcer) replace(ctx context.Context, desired *policy.Ruleset, r *Result) error {
	if err := e.marks.await(ctx, e.generation.Load(), e.compiler.Generation()); err != nil {
		return err
	}
	e.log.Warn("the tables cannot be changed into what they should be; replacing them")
	r.Replaced = true
	// What would be read now could not be told from what was counted before.
	e.tallies.reading.Lock()
	defer e.tallies.reading.Unlock()
	stats, err := e.conn.Replace(desired)
	r.Stats.Add(stats)
	if err != nil {
		return err
	}
	e.tallies.del(&e.conn.last)
	e.tallies.adopt(&policy.Ruleset{}, desired, e.compiler.Counter)
	e.enter(r)
	return nil
}

// enter notes that the compiler's generation is in force.
func (e *Enforcer) enter(r *Result) {
	gen := e.compiler.Generation()
	was := e.generation.Swap(gen)
	r.Tightened = r.Tightened || was != 0 && was != gen
	e.marks.entered(gen)
}

// generationOf finds the generation that the tables accept without judging; 0
// if there is none within the mask.
func generationOf(r *policy.Ruleset, mask policy.MarkMask) uint32 {
	for i := range r.Tables {
		for _, ch := range r.Tables[i].Chains {
			if ch.Hook == nil || ch.Name != hookForward {
				continue
			}
			for _, rule := range ch.Rules {
				for _, m := range rule.Match {
					if m.Field == policy.FieldCtMark && m.Op == policy.OpMasked && m.Arg == uint32(mask) {
						return mask.Generation(m.Value)
					}
				}
			}
		}
	}
	return 0
}

// sameSets tells whether the sets that are in both rulesets are of the same
// kind. The kind of a set cannot be changed, and under its name no other can
// be made while a rule uses it.
func sameSets(actual, desired *policy.Ruleset) bool {
	for i := range desired.Tables {
		kinds := map[string]policy.Set{}
		for _, s := range actual.Tables[i].Sets {
			kinds[s.Name] = s
		}
		for _, d := range desired.Tables[i].Sets {
			a, ok := kinds[d.Name]
			if ok && (a.Key != d.Key || a.Interval != d.Interval || a.Verdicts != d.Verdicts || a.Dynamic != d.Dynamic || a.Timeout != d.Timeout || a.Size != d.Size) {
				return false
			}
		}
	}
	return true
}

// countParts is how many counters, sets, chains and elements a change is about.
func countParts(c *policy.Change) int {
	n := countElements(c)
	for i := range c.Tables {
		t := &c.Tables[i]
		n += len(t.AddCounters) + len(t.AddSets) + len(t.AddChains) + len(t.SetChains) + len(t.DelChains) + len(t.DelSets) + len(t.DelCounters)
	}
	return n
}
