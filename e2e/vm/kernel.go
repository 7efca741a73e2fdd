package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/e2e/artifacts"
)

// Kernels provides distributions' kernels.
type Kernels struct {
	// Cache is the directory that keeps them. The default is $SELVAGE_CACHE, or
	// else selvage in the user's cache directory.
	Cache string
	// Progress is called with a line for each step that takes time. It may be
	// nil.
	Progress func(string)
}

// Kernel is a kernel in the cache. It stays there until it is closed.
type Kernel struct {
	// Series is the kernel's as it was asked for, such as 6.12; Release is the
	// kernel's own name, and Version that of its package.
	Series, Release, Version string
	// dir has vmlinuz and lib/modules/Release.
	dir  string
	held *os.File
}

// Close lets go of the kernel.
func (k *Kernel) Close() error { return k.held.Close() }

func (k *Kernel) image() string { return filepath.Join(k.dir, "vmlinuz") }

func (k *Kernel) modules() string { return filepath.Join(k.dir, "lib", "modules", k.Release) }

// Get returns the newest kernel of a series that apt offers, from the cache if
// it is there. One that fails or whose context ends leaves the cache as it was.
func (s Kernels) Get(ctx context.Context, series string) (*Kernel, error) {
	if s.Progress == nil {
		s.Progress = func(string) {}
	}
	cache, err := artifacts.CacheDir(s.Cache)
	if err != nil {
		return nil, err
	}
	k, err := s.get(ctx, apt{}, cache, series)
	if err == nil || ctx.Err() != nil {
		return k, err
	}
	// The machine may never have read the lists of packages, or read them so
	// long ago that what they name is gone.
	s.Progress("kernel " + series + ": reading apt's lists of packages")
	dir, err := os.MkdirTemp("", "selvage-vm-apt-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // only lists
	fresh, err := newApt(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", series, err)
	}
	if k, err = s.get(ctx, fresh, cache, series); err != nil {
		return nil, fmt.Errorf("kernel %s: %w", series, err)
	}
	return k, nil
}

// get returns a kernel that the lists of packages offer.
func (s Kernels) get(ctx context.Context, a apt, cache, series string) (*Kernel, error) {
	offered, err := a.newest(ctx, series)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256([]byte(offered.sha256 + strings.Join(wanted(), " ")))
	k := &Kernel{
		Series: series, Version: offered.version,
		Release: strings.TrimPrefix(offered.name, "linux-image-"),
		dir:     filepath.Join(cache, "linux-"+offered.version+"-"+hex.EncodeToString(key[:])[:12]),
	}
	if k.held, err = os.OpenFile(filepath.Join(cache, "locks", "linux-"+series), os.O_CREATE|os.O_RDWR, 0o644); err != nil {
		return nil, err
	}
	if err := s.ensure(ctx, a, offered, k); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// ensure puts the kernel into the cache if it is not there. Who uses a kernel
// has a shared lock on its series, who changes the cache an exclusive one. The
// kernel takes both back from a process that ends.
func (s Kernels) ensure(ctx context.Context, a apt, offered kernelPackage, k *Kernel) error {
	if err := lock(ctx, k.held, unix.LOCK_SH); err != nil {
		return err
	}
	if k.complete() == nil {
		return nil
	}
	s.Progress("kernel " + k.Series + ": downloading " + offered.name + " " + offered.version)
	if err := lock(ctx, k.held, unix.LOCK_EX); err != nil {
		return err
	}
	// Somebody else may have been first.
	if k.complete() != nil {
		if err := k.make(ctx, a, offered); err != nil {
			return err
		}
	}
	return lock(ctx, k.held, unix.LOCK_SH)
}

func (k *Kernel) complete() error {
	_, err := os.Stat(k.image())
	if err != nil {
		return err
	}
	_, err = os.Stat(filepath.Join(k.modules(), "modules.dep"))
	return err
}

// make makes the kernel's directory, beside and then renamed, and removes all
// others of its series.
func (k *Kernel) make(ctx context.Context, a apt, offered kernelPackage) error {
	cache := filepath.Dir(k.dir)
	temp := filepath.Join(cache, "new-linux-"+k.Series)
	// A process that was killed could not clean up.
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := k.fill(ctx, a, offered, temp); err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	old, err := filepath.Glob(filepath.Join(cache, "linux-"+k.Series+".*-*"))
	if err != nil {
		return err
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return os.Rename(temp, k.dir)
}

// fill makes a directory with vmlinuz and lib/modules of a package.
func (k *Kernel) fill(ctx context.Context, a apt, offered kernelPackage, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := a.unpack(ctx, offered, dir); err != nil {
		return err
	}
	if usr := filepath.Join(dir, "usr", "lib", "modules"); exists(usr) {
		// Where Debian has its modules since 13.
		if err := os.MkdirAll(filepath.Join(dir, "lib"), 0o755); err != nil {
			return err
		}
		if err := os.Rename(usr, filepath.Join(dir, "lib", "modules")); err != nil {
			return err
		}
	}
	if err := os.Rename(filepath.Join(dir, "boot", "vmlinuz-"+k.Release), filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	if err := pruneModules(ctx, dir, k.Release); err != nil {
		return err
	}
	rest, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range rest {
		if slices.Contains([]string{"vmlinuz", "lib"}, e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// lock waits for a lock on an open file.
func lock(ctx context.Context, f *os.File, how int) error {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}
