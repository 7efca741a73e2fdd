package informer

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
)

// The pace at which a directory is followed.
const (
	// quiet is how long nothing must have happened in the directory before it
	// is read, so that files are read once they are whole; impatience is how
	// long that is waited for.
	quiet      = 50 * time.Millisecond
	impatience = 500 * time.Millisecond
)

// Defaults of ManifestsOptions.
const (
	DefaultSettle = 200 * time.Millisecond
	DefaultReread = 30 * time.Second
)

// ManifestsOptions are the options of Manifests. The zero value is of use.
type ManifestsOptions struct {
	// Logger gets one line per mistake in the files; nil discards.
	Logger *slog.Logger
	// Observe is told of mistakes.
	Observe Observe
	// Clock is the real one if nil.
	Clock clock.WithTicker
	// Settle is how long an object must be missing from the files before it is
	// removed; 0 means DefaultSettle.
	Settle time.Duration
	// Reread is how often everything is read again even if no change was
	// noticed, as it is not on a network file system; 0 means DefaultReread.
	Reread time.Duration
}

// Manifests returns a directory of YAML and JSON files as a source: every
// document in a file named *.yaml, *.yml or *.json in it or below it, as Decode
// understands it. Changes are noticed. Of two documents that define the same
// object the one that comes first counts, files being ordered by path. What is
// wrong is logged once and counted, and what was in force before remains so.
//
// The directory is read before Manifests returns. It is an error if it is not
// there, but none if it vanishes later. Run must be called.
func Manifests(dir string, o ManifestsOptions) (Source, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Settle == 0 {
		o.Settle = DefaultSettle
	}
	if o.Reread == 0 {
		o.Reread = DefaultReread
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("directory of manifests: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("directory of manifests: %s is not a directory", dir)
	}
	// The kernel names what changes by the path that it was told to watch.
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("directory of manifests: %w", err)
	}
	m := &manifests{dir: dir, o: o, catalogue: newCatalogue(o.Settle)}
	for _, kind := range Kinds {
		m.collections[kind] = newCollection(kind)
	}
	if _, _, err := m.look(); err != nil {
		return nil, err
	}
	return m, nil
}

// manifests is a directory as a Source.
type manifests struct {
	dir         string
	o           ManifestsOptions
	catalogue   *catalogue
	collections [len(Kinds)]*collection
	// unwatched says that the kernel refuses to tell of some changes, which
	// was logged.
	unwatched bool
}

// ListerWatcher implements Source.
func (m *manifests) ListerWatcher(kind Kind) cache.ListerWatcher { return m.collections[kind] }

// look reads everything and passes on what changed. It returns the directories
// to watch, and when to look again for what seems to be gone.
func (m *manifests) look() (dirs map[string]bool, confirm time.Time, err error) {
	t := readTree(m.dir)
	f := m.catalogue.look(t, m.o.Clock.Now())
	for _, e := range f.errors {
		m.o.Logger.Error("manifest refused",
			"file", e.File, "document", e.Document, "line", e.Line, "object", e.Object(),
			"field", e.Field, "reason", string(e.Reason), "in_force", m.catalogue.standing(e), "err", oneLine(e.Err.Error()))
		m.o.Observe.manifestError(e.Reason)
	}
	for _, name := range f.restored {
		m.o.Logger.Info("manifest is in order again", "file", name)
	}
	for _, it := range f.put {
		if err := m.collections[it.id.kind].put(it.id, it.object); err != nil {
			return nil, time.Time{}, fmt.Errorf("manifest %s: %w", it.at.file, err)
		}
	}
	for _, id := range f.removed {
		if err := m.collections[id.kind].remove(id); err != nil {
			return nil, time.Time{}, fmt.Errorf("%s %s/%s: %w", kindInfo[id.kind].kind, id.namespace, id.name, err)
		}
	}
	return t.dirs, f.confirm, nil
}

// Run implements Source: it follows the directory. Where the kernel does not
// say what changes (too few inotify watches), the slow re-read finds out.
func (m *manifests) Run(ctx context.Context) error {
	defer func() {
		for _, c := range m.collections {
			c.shutdown()
		}
	}()
	var changes chan fsnotify.Event
	var failures chan error
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		m.notWatched(m.dir, err)
	} else {
		defer watcher.Close()
		changes, failures = watcher.Events, watcher.Errors
	}

	clk := m.o.Clock
	timer := clk.NewTimer(0)
	defer timer.Stop()
	var since time.Time // when the first change came that was not looked at yet
	due := clk.Now()    // when to look next
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-changes:
			if !ok || m.outside(e.Name) {
				continue
			}
			now := clk.Now()
			if since.IsZero() {
				since = now
			}
			due = earliest(now.Add(quiet), since.Add(impatience))
		case <-failures:
			// The queue of events ran over: what was lost is not known.
			due = clk.Now()
		case <-timer.C():
			if clk.Now().Before(due) {
				break
			}
			since = time.Time{}
			if due, err = m.lookAndWatch(watcher); err != nil {
				return err
			}
		}
		timer.Reset(max(0, due.Sub(clk.Now())))
	}
}

// lookAndWatch looks, watches the directories that were found, and returns when
// to look next.
func (m *manifests) lookAndWatch(watcher *fsnotify.Watcher) (time.Time, error) {
	dirs, confirm, err := m.look()
	if err != nil {
		return time.Time{}, err
	}
	now := m.o.Clock.Now()
	next := now.Add(m.o.Reread)
	if !confirm.IsZero() {
		next = earliest(next, confirm)
	}
	if watcher != nil && m.watch(watcher, dirs) {
		// Something may have changed between the look and the watch.
		next = now
	}
	return next, nil
}

// watch makes the watched directories those in dirs, and the one above all of
// them, in which the directory itself can be replaced. It tells whether there
// is one that was not watched before.
func (m *manifests) watch(watcher *fsnotify.Watcher, dirs map[string]bool) (more bool) {
	dirs[filepath.Dir(m.dir)] = true
	watched := watcher.WatchList()
	for _, dir := range watched {
		if !dirs[dir] {
			// It may be gone already, and its watch with it.
			_ = watcher.Remove(dir)
		}
	}
	for dir := range dirs {
		if slices.Contains(watched, dir) {
			continue
		}
		if err := watcher.Add(dir); err != nil {
			m.notWatched(dir, err)
			continue
		}
		more = true
	}
	return more
}

// notWatched logs once that changes will be noticed late.
func (m *manifests) notWatched(dir string, err error) {
	if m.unwatched {
		return
	}
	m.unwatched = true
	m.o.Logger.Warn("changes of manifests will be noticed late: the kernel does not tell of them",
		"directory", dir, "reread", m.o.Reread, "err", err)
}

// outside tells whether a change concerns a neighbour of the directory only.
func (m *manifests) outside(name string) bool {
	return filepath.Dir(name) == filepath.Dir(m.dir) && name != m.dir
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
