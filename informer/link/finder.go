package link

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound says that no namespace has any of the addresses. One that was
	// added a moment ago may not be found yet.
	ErrNotFound = errors.New("no network namespace has the pod's address")
	// ErrAmbiguous says that an address is in more than one place.
	ErrAmbiguous = errors.New("more than one interface has the pod's address")
	// ErrSplit says that the addresses are in different places.
	ErrSplit = errors.New("the pod's addresses are not on one interface")

	errClosed = errors.New("the finder is closed")
	// errChanged says that something changed while it was looked at.
	errChanged = errors.New("the pod's network changed while it was looked at")
	// errOther says that a file is no network namespace.
	errOther = errors.New("not a network namespace")
)

// End is a network interface, which may be one end of a pair.
type End struct {
	Index int
	Name  string
	// Kind is what the kernel calls the kind, for example veth; empty if it is a
	// physical one.
	Kind string
	MTU  int
	// Ethernet says that packets have Ethernet headers there.
	Ethernet bool
}

// Found is where a pod's traffic passes.
type Found struct {
	NetNS NetNS
	// Pod is the interface in the pod's namespace that has the address.
	Pod End
	// Host is its other end, in the agent's namespace; nil if there is none.
	Host *End
	// Parent is the name of the interface in the agent's namespace that the pod's
	// is on top of; empty if there is none.
	Parent string
}

// FinderOptions are what a Finder needs.
type FinderOptions struct {
	// Dirs are the directories that have the files of the pods' namespaces.
	// /run/netns if there are none. They may be missing.
	Dirs []string
	// Logger is told of namespaces that cannot be read.
	Logger *slog.Logger
}

// Finder finds the network namespace and the interfaces of a pod by its addresses,
// without the help of whoever made them, and without entering a namespace. Its
// methods are safe for concurrent use.
//
// What it keeps is only where to look. Every answer is read from the kernel at
// the time that it is given, and while a file is open on the pod's namespace, so
// that the namespace and its number cannot pass to others meanwhile.
type Finder struct {
	options FinderOptions

	mu     sync.Mutex
	remote *remote
	mounts mounts
	closed bool
	known  []*namespace
	// stale says that the directories must be read again.
	stale bool
	// version counts the changes of the set of namespaces.
	version uint64
	// next is when all namespaces may be read anew because some address is not
	// found.
	next time.Time
}

// NewFinder returns a Finder for the network namespace of the caller. It fails if
// there is no netlink, or without CAP_NET_ADMIN.
func NewFinder(o FinderOptions) (*Finder, error) {
	if len(o.Dirs) == 0 {
		o.Dirs = []string{"/run/netns"}
	}
	m, err := openMounts()
	if err != nil {
		return nil, err
	}
	r, err := newRemote()
	if err != nil {
		m.close()
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	f := &Finder{options: o, remote: r, mounts: m}
	if err := f.scan(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close ends the use of a Finder. Run must have returned.
func (f *Finder) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		f.remote.close()
		f.mounts.close()
	}
	return nil
}

// Find finds the pod that has the addresses. Those that are not on any interface
// yet do not matter if one is.
func (f *Finder) Find(addrs []netip.Addr) (Found, error) {
	var wanted []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap(); usable(a) {
			wanted = append(wanted, a)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var found Found
	var err error
	for range dumps {
		if err = f.refresh(); err != nil {
			return Found{}, err
		}
		f.reread(wanted)
		if found, err = f.find(wanted); !errors.Is(err, errChanged) {
			break
		}
	}
	return found, err
}

// place is an interface of a namespace that has the address.
type place struct {
	namespace *namespace
	address
}

func (p place) String() string {
	return fmt.Sprintf("%s (interface %d)", p.namespace.Path, p.index)
}

// find reads those namespaces anew that had any of the addresses.
func (f *Finder) find(wanted []netip.Addr) (Found, error) {
	var places []place
	had := false
	for _, n := range f.known {
		if !n.has(wanted) {
			continue
		}
		had = true
		release, err := f.hold(n)
		if err != nil {
			return Found{}, err
		}
		defer release()
		if err := f.read(n); err != nil {
			return Found{}, err
		}
		for _, a := range n.addrs {
			if slices.Contains(wanted, a.addr) {
				places = append(places, place{n, a})
			}
		}
	}
	if len(places) == 0 && had { // then another may have it now
		return Found{}, errChanged
	}
	if len(places) == 0 {
		return Found{}, fmt.Errorf("%w: %v", ErrNotFound, wanted)
	}
	if err := oneInterface(places); err != nil {
		return Found{}, err
	}
	return f.trace(places[0])
}

// oneInterface tells whether all addresses are in the same place, and each but once.
func oneInterface(places []place) error {
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(a.addr.Compare(b.addr), strings.Compare(a.namespace.Path, b.namespace.Path), cmp.Compare(a.index, b.index))
	})
	for i, p := range places[1:] {
		before := places[i]
		if before.addr == p.addr && (before.namespace != p.namespace || before.index != p.index) { // else it has two prefixes
			return fmt.Errorf("%w: %s is in %s and in %s", ErrAmbiguous, p.addr, before, p)
		}
	}
	first := places[0]
	for _, p := range places[1:] {
		if p.namespace != first.namespace || p.index != first.index {
			return fmt.Errorf("%w: %s is in %s, %s in %s", ErrSplit, first.addr, first, p.addr, p)
		}
	}
	return nil
}

// trace follows a pod's interface to the agent's namespace. That of the pod is
// held.
func (f *Finder) trace(p place) (Found, error) {
	n := p.namespace
	pod, err := f.link(n.ID, p.index)
	if err != nil {
		return Found{}, fmt.Errorf("ask for interface %d of %s: %w", p.index, n.Path, err)
	}
	found := Found{NetNS: n.NetNS, Pod: pod.End}
	if pod.peer == 0 || pod.peerNS != f.remote.id {
		return found, nil
	}
	other, err := f.link(f.remote.id, pod.peer)
	if err != nil {
		return Found{}, fmt.Errorf("ask for interface %d: %w", pod.peer, err)
	}
	switch {
	case pod.Kind != "veth" && pod.Kind != "netkit":
		found.Parent = other.Name
	case paired(pod, n.ID, other, f.remote.id):
		found.Host = &other.End
	default:
		return Found{}, fmt.Errorf("%w: %s of %s is not the other end of %s", errChanged, other.Name, pod.Name, n.Path)
	}
	return found, nil
}

// link reads an interface. That it is gone is a change.
func (f *Finder) link(nsid, index int) (port, error) {
	p, err := f.remote.link(nsid, index)
	if errors.Is(err, unix.ENODEV) {
		err = errChanged
	}
	return p, err
}

// paired tells whether two interfaces are the ends of one pair: each must name the
// other, in the other's namespace. An index alone says little, as each namespace
// counts its own.
func paired(a port, aNS int, b port, bNS int) bool {
	return a.Kind == b.Kind && a.peer == b.Index && a.peerNS == bNS && b.peer == a.Index && b.peerNS == aNS
}
