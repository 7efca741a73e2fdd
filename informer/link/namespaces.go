package link

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// What is known of a namespace is believed, when it is another one that has the
// address that is looked for, as long as it had existed when it was read: a young
// one is about to get its addresses. But not longer than this; the shorter time is
// for namespaces without addresses.
const (
	trust      = time.Minute
	trustEmpty = 100 * time.Millisecond
)

// share bounds the part of the time that goes into reading all namespaces anew
// because some address is not found: one of so many.
const share = 20

// NetNS is a network namespace of a pod.
type NetNS struct {
	// Inode tells it from all others that exist at the same time.
	Inode uint64
	// Path is a file that leads to it.
	Path string
	// ID is the number that the agent's network namespace has for it (nsid).
	ID int
}

// identity tells a namespace from all others, also from later ones: the kernel
// gives the inode's number to the next one at once, but the inode is a new one.
type identity struct {
	inode uint64
	ctime unix.Timespec
}

// namespace is what is known of one. born is when it was made or, if the clock says
// otherwise, first seen; read is when its addresses were read.
type namespace struct {
	NetNS
	identity   identity
	addrs      []address
	born, read time.Time
	failed     bool
}

func newNamespace(id identity, path string) *namespace {
	n := &namespace{NetNS: NetNS{Inode: id.inode, Path: path, ID: none}, identity: id, born: time.Unix(id.ctime.Unix())}
	if now := time.Now(); n.born.After(now) {
		n.born = now
	}
	return n
}

// has tells whether any of the addresses is known to be there.
func (n *namespace) has(addrs []netip.Addr) bool {
	return slices.ContainsFunc(n.addrs, func(a address) bool { return slices.Contains(addrs, a.addr) })
}

// due tells whether what is known of a namespace is too old.
func (n *namespace) due(now time.Time) bool {
	limit := trust
	if len(n.addrs) == 0 {
		limit = trustEmpty
	}
	return now.Sub(n.read) > min(n.read.Sub(n.born), limit)
}

// look sees to it that the namespaces are those of now, and returns their version.
func (f *Finder) look() (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.refresh()
	return f.version, err
}

// refresh looks for namespaces that came or went.
func (f *Finder) refresh() error {
	if f.closed {
		return errClosed
	}
	changed, err := f.mounts.changed()
	if err != nil {
		return err
	}
	if f.stale = f.stale || changed; !f.stale {
		return nil
	}
	return f.scan()
}

// scan reads the directories, and those namespaces that are new.
func (f *Finder) scan() error {
	old, known := make(map[identity]*namespace, len(f.known)), make(map[identity]*namespace, len(f.known))
	for _, n := range f.known {
		old[n.identity] = n
	}
	changed := false
	for _, dir := range f.options.Dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for network namespaces: %w", err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			id, ok := f.identify(path)
			if !ok || known[id] != nil {
				continue
			}
			n := old[id]
			if n == nil {
				n = newNamespace(id, path)
				if err := f.visit(n); errors.Is(err, errChanged) || errors.Is(err, errOther) {
					continue
				}
				changed = true
			}
			n.Path = path
			known[id] = n
		}
	}
	if changed || len(known) != len(f.known) {
		f.version++
	}
	f.known, f.stale = slices.Collect(maps.Values(known)), false
	return nil
}

// identify tells which namespace a file is, if it may be a pod's. It opens nothing:
// all files of namespaces, and no others, are on the one file system nsfs.
func (f *Finder) identify(path string) (identity, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Dev != f.remote.dev || st.Ino == f.remote.inode {
		return identity{}, false
	}
	return identity{inode: st.Ino, ctime: st.Ctim}, true
}

// reread reads those namespaces anew of which is not known well enough whether
// they have the addresses.
func (f *Finder) reread(wanted []netip.Addr) {
	began := time.Now()
	all := false
	if began.After(f.next) {
		all = slices.ContainsFunc(wanted, f.unknown)
	}
	for _, n := range f.known {
		if all || n.due(began) {
			_ = f.visit(n) // it is logged
		}
	}
	if all {
		now := time.Now()
		f.next = now.Add((share - 1) * now.Sub(began))
	}
}

// unknown tells whether no namespace is known to have an address.
func (f *Finder) unknown(addr netip.Addr) bool {
	for _, n := range f.known {
		if n.has([]netip.Addr{addr}) {
			return false
		}
	}
	return true
}

// visit holds and reads a namespace, and logs if that begins to fail.
func (f *Finder) visit(n *namespace) error {
	release, err := f.hold(n)
	if err == nil {
		err = f.read(n)
		release()
	}
	if err != nil {
		n.addrs, n.read = nil, time.Now()
	}
	failed := err != nil && !errors.Is(err, errChanged) && !errors.Is(err, errOther)
	if failed && !n.failed {
		f.options.Logger.Warn("cannot look into a network namespace", "err", err)
	}
	n.failed = failed
	return err
}

// hold opens a namespace, so that it stays, and finds out its number.
func (f *Finder) hold(n *namespace) (release func(), err error) {
	fd, err := unix.Open(n.Path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, errChanged
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", n.Path, err)
	}
	if err := f.check(fd, n); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", n.Path, err)
	}
	return func() { _ = unix.Close(fd) }, nil
}

// check tells whether a file is open on that namespace.
func (f *Finder) check(fd int, n *namespace) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Dev != f.remote.dev || (identity{inode: st.Ino, ctime: st.Ctim}) != n.identity {
		return errChanged
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		return fmt.Errorf("ask for the kind of the namespace: %w", err)
	}
	if kind != unix.CLONE_NEWNET {
		return errOther
	}
	n.ID, err = f.remote.nsid(fd)
	return err
}

// read reads the addresses of a namespace that is held.
func (f *Finder) read(n *namespace) error {
	addrs, err := f.remote.addresses(n.ID)
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", n.Path, err)
	}
	n.addrs, n.read = addrs, time.Now()
	return nil
}
