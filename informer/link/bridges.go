package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrNoFilter says that the kernel has no br_netfilter.
var ErrNoFilter = errors.New("the kernel module br_netfilter is not loaded: run `modprobe br_netfilter`")

// settle is the least time between two looks at the bridges. Links come and go
// in bursts when pods do.
const settle = 100 * time.Millisecond

// sysctls is where br_netfilter, if it is loaded, shows its switches for all
// bridges of the reader's network namespace.
const sysctls = "/proc/sys/net/bridge"

// Options are what Bridges needs.
type Options struct {
	// Logger gets one line for every change of what is covered.
	Logger *slog.Logger
	// Interval is the time after which the bridges are looked at without a
	// notification: for br_netfilter being loaded or unloaded, which makes
	// none. 30 seconds if it is 0.
	Interval time.Duration
	// Observe, if it is set, is called after every look, one call at a time.
	Observe func(Status)
}

// Bridge is a bridge that carries pods of this node.
type Bridge struct {
	Name  string
	Index int
	// Err is nil if packets between two pods on the bridge meet the rules, and
	// else says why they may not.
	Err error
}

// Status is what was found at the last look.
type Status struct {
	// Checked is false until the bridges were looked at for the first time
	// with the pods known.
	Checked bool
	// Bridges are those that carry pods, sorted by name. There are none where
	// pods are routed; then there is nothing to cover.
	Bridges []Bridge
	// Err says that the links could not be read at all.
	Err error
}

// Uncovered returns why packets between two pods of this node may pass
// without meeting the rules, or nil if they cannot.
func (s Status) Uncovered() error {
	if !s.Checked {
		return errors.New("the pods' bridges were not looked for yet")
	}
	errs := []error{s.Err}
	for _, b := range s.Bridges {
		if b.Err != nil {
			errs = append(errs, fmt.Errorf("bridge %s: packets between pods on it are not covered: %w", b.Name, b.Err))
		}
	}
	return errors.Join(errs...)
}

// Bridges keeps the switches of the pods' bridges on. Its methods are safe for
// concurrent use.
type Bridges struct {
	options Options
	links   *links
	sysctls string
	changed chan struct{}

	// looking is held during a look.
	looking sync.Mutex

	mu     sync.Mutex
	wanted bool
	cidrs  []netip.Prefix
	pods   []netip.Addr
	status Status
}

// NewBridges returns a Bridges for the network namespace of the caller. It
// does nothing before Run. It fails if there is no netlink.
func NewBridges(o Options) (*Bridges, error) {
	if o.Interval == 0 {
		o.Interval = 30 * time.Second
	}
	l, err := newLinks()
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return &Bridges{options: o, links: l, sysctls: sysctls, changed: make(chan struct{}, 1)}, nil
}

// Want says which pods the bridges must be found for: the node's pod CIDRs, and
// the addresses of the pods that run on it, hostNetwork pods left out.
func (b *Bridges) Want(cidrs []netip.Prefix, pods []netip.Addr) {
	b.mu.Lock()
	same := b.wanted && slices.Equal(b.cidrs, cidrs) && slices.Equal(b.pods, pods)
	b.wanted, b.cidrs, b.pods = true, slices.Clone(cidrs), slices.Clone(pods)
	b.mu.Unlock()
	if !same {
		b.poke()
	}
}

// Status returns what was found at the last look.
func (b *Bridges) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

// Run keeps the switches on until ctx ends: after each Want, after each change
// of a link or an address, and at intervals. It leaves them on at its end. It
// fails if the kernel cannot be listened to.
func (b *Bridges) Run(ctx context.Context) error {
	events, err := subscribe()
	if err != nil {
		return fmt.Errorf("subscribe to changes of links: %w", err)
	}
	defer context.AfterFunc(ctx, events.close)()
	done := make(chan error, 1)
	go func() { done <- events.receive(b.poke) }()
	tick := time.NewTicker(b.options.Interval)
	defer tick.Stop()
	for {
		b.Check()
		select { // what happens meanwhile is seen by the next look
		case <-ctx.Done():
		case <-time.After(settle):
		}
		select {
		case <-ctx.Done():
			events.close()
			<-done // it ends by the close
			return nil
		case err := <-done:
			if ctx.Err() != nil {
				return nil // the socket was closed for that reason
			}
			return fmt.Errorf("listen to changes of links: %w", err)
		case <-b.changed:
		case <-tick.C:
		}
	}
}

func (b *Bridges) poke() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// Check looks at once, covers what it finds, and returns what Status will. It
// does nothing before the first Want.
func (b *Bridges) Check() Status {
	b.looking.Lock()
	defer b.looking.Unlock()
	b.mu.Lock()
	wanted, cidrs, pods, before := b.wanted, b.cidrs, b.pods, b.status
	b.mu.Unlock()
	if !wanted {
		return before
	}
	now := b.look(cidrs, pods)
	b.mu.Lock()
	b.status = now
	b.mu.Unlock()
	b.report(before, now)
	if b.options.Observe != nil {
		b.options.Observe(now)
	}
	return now
}

// look finds the bridges, sets their switches and reads them back.
func (b *Bridges) look(cidrs []netip.Prefix, pods []netip.Addr) Status {
	status := Status{Checked: true}
	all, err := b.links.bridges()
	if err != nil {
		status.Err = fmt.Errorf("list bridges: %w", err)
		return status
	}
	carrying, err := b.links.carrying(all, cidrs, pods)
	if err != nil {
		status.Err = fmt.Errorf("find the pods' bridges: %w", err)
		return status
	}
	for _, br := range carrying {
		status.Bridges = append(status.Bridges, Bridge{Name: br.name, Index: br.index, Err: b.cover(br)})
	}
	slices.SortFunc(status.Bridges, func(a, b Bridge) int { return strings.Compare(a.Name, b.Name) })
	return status
}

// cover sees to it that the packets on a bridge meet the rules of both
// families, and returns why they do not.
func (b *Bridges) cover(br bridge) error {
	v4, v6, err := readSwitches(b.sysctls)
	if err != nil {
		return err
	}
	if br.v4 && br.v6 {
		return nil
	}
	if err = b.links.handOver(br.index); err == nil {
		if br, err = b.links.bridge(br.index); err == nil && (!br.v4 || !br.v6) {
			err = errors.New("the kernel took the setting and does not show it")
		}
	}
	if err != nil && v4 && v6 {
		return nil // the switches for all bridges are on: so be it
	}
	if err != nil {
		return fmt.Errorf("set nf_call_iptables and nf_call_ip6tables: %w", err)
	}
	return nil
}

// readSwitches returns br_netfilter's switches for all bridges.
func readSwitches(dir string) (v4, v6 bool, err error) {
	for name, on := range map[string]*bool{"bridge-nf-call-iptables": &v4, "bridge-nf-call-ip6tables": &v6} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return false, false, ErrNoFilter
		}
		if err != nil {
			return false, false, err
		}
		*on = strings.TrimSpace(string(text)) != "0"
	}
	return v4, v6, nil
}

// report logs what differs from before.
func (b *Bridges) report(before, now Status) {
	if now.Err != nil && (before.Err == nil || before.Err.Error() != now.Err.Error()) {
		b.options.Logger.Error("cannot tell whether the pods' bridges are covered", "err", now.Err)
	}
	for _, br := range now.Bridges {
		i := slices.IndexFunc(before.Bridges, func(o Bridge) bool { return o.Index == br.Index && o.Name == br.Name })
		switch {
		case i >= 0 && fmt.Sprint(before.Bridges[i].Err) == fmt.Sprint(br.Err):
		case br.Err == nil:
			b.options.Logger.Info("packets between pods on the bridge meet the rules", "bridge", br.Name)
		default:
			b.options.Logger.Error("packets between pods on the bridge are not covered by policy", "bridge", br.Name, "err", br.Err)
		}
	}
}
