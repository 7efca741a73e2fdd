package artifacts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// keep is how many of one artifact stay when another one is built.
const keep = 2

// store is the directory of the cache. All but lock and find, which need
// nothing, want the artifact's lock.
type store struct{ dir string }

// id names what is in the store.
type id struct{ name, version, key string }

func (i id) String() string { return i.name + "-" + i.version + "-" + i.key }

// entry is an artifact in the store.
type entry struct {
	dir string
	// held is the file descriptor of dir with a lock on it. It is no os.File:
	// that would be closed when nobody refers to it any more.
	held  int
	fresh bool
}

// lock waits for the lock on an artifact. The kernel takes it back from a
// process that ends, so none is left behind. waiting is called once if somebody
// else has it.
func (s store) lock(ctx context.Context, name string, waiting func()) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "locks", name), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		waiting()
		waiting = func() {}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-ticker.C:
		}
	}
}

// find returns the artifact if it is there with all of its files, and marks it
// as used now.
func (s store) find(i id, files []string) (entry, bool) {
	e, err := s.hold(i, files)
	if err != nil {
		return entry{}, false
	}
	// The time only decides what is removed first.
	_ = os.Chtimes(e.dir, time.Now(), time.Now())
	return e, true
}

// hold keeps an artifact from being removed, until the entry is released.
func (s store) hold(i id, files []string) (entry, error) {
	dir := filepath.Join(s.dir, i.String())
	if err := complete(dir, files); err != nil {
		return entry{}, err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return entry{}, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	if err := unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return entry{}, errors.Join(fmt.Errorf("lock %s: %w", dir, err), unix.Close(fd))
	}
	return entry{dir: dir, held: fd}, nil
}

// complete fails if a file is missing in dir.
func complete(dir string, files []string) error {
	for _, name := range files {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// build lets run fill a directory and makes it the artifact if it did, and
// nothing if it did not.
func (s store) build(i id, files []string, run func(dir string) error) (entry, error) {
	// A process that was killed could not clean up.
	if err := removeAll(filepath.Join(s.dir, "new-"+i.name+"-*")); err != nil {
		return entry{}, err
	}
	temp, err := os.MkdirTemp(s.dir, "new-"+i.name+"-")
	if err != nil {
		return entry{}, err
	}
	if err := run(temp); err != nil {
		return entry{}, errors.Join(err, os.RemoveAll(temp))
	}
	if err := s.publish(i, files, temp); err != nil {
		return entry{}, errors.Join(err, os.RemoveAll(temp))
	}
	e, err := s.hold(i, files)
	if err != nil {
		return entry{}, err
	}
	e.fresh = true
	return e, s.prune(i.name)
}

// publish makes a directory that was filled the artifact.
func (s store) publish(i id, files []string, temp string) error {
	if err := complete(temp, files); err != nil {
		return fmt.Errorf("what was built is not complete: %w", err)
	}
	if err := os.Chmod(temp, 0o755); err != nil {
		return err
	}
	dir := filepath.Join(s.dir, i.String())
	// It can be there, if somebody took files out of it.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(temp, dir)
}

// prune removes all but the newest of an artifact, and what is held.
func (s store) prune(name string) error {
	pattern := regexp.MustCompile("^" + regexp.QuoteMeta(name) + "-.*-[0-9a-f]{12}$")
	all, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	type aged struct {
		dir  string
		used time.Time
	}
	var found []aged
	for _, e := range all {
		info, err := e.Info()
		if err != nil || !e.IsDir() || !pattern.MatchString(e.Name()) {
			continue
		}
		found = append(found, aged{filepath.Join(s.dir, e.Name()), info.ModTime()})
	}
	slices.SortFunc(found, func(a, b aged) int { return cmp.Or(b.used.Compare(a.used), cmp.Compare(a.dir, b.dir)) })
	for _, old := range found[min(keep, len(found)):] {
		if err := removeUnheld(old.dir); err != nil {
			return fmt.Errorf("remove what is old: %w", err)
		}
	}
	return nil
}

// removeUnheld removes a directory that no process holds.
func removeUnheld(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

func removeAll(pattern string) error {
	dirs, err := filepath.Glob(pattern)
	for _, dir := range dirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}
