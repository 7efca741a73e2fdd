package tc

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/shaping"
)

// survey is all that is ours in a network namespace.
type survey struct {
	ifbs []ifb
	// roots are the interfaces that have a queue of ours at the root, IFBs among
	// them, and hooks those that can have filters of ours.
	roots, hooks []int
}

// survey takes two dumps.
func (c *Conn) survey() (survey, error) {
	var s survey
	var err error
	if s.ifbs, err = c.listIFBs(); err != nil {
		return s, err
	}
	all, err := c.qdiscs()
	if err != nil {
		return s, err
	}
	for _, q := range all {
		switch {
		case q.handle == rootHandle && q.kind == "tbf" && q.parent == parentRoot:
			s.roots = append(s.roots, q.index)
		case q.parent == parentHook:
			s.hooks = append(s.hooks, q.index)
		}
	}
	return s, nil
}

// qdiscs lists all queueing disciplines.
func (c *Conn) qdiscs() ([]qdisc, error) {
	answers, err := c.dump(unix.RTM_GETQDISC, tcmsg{}.encode())
	if err != nil {
		return nil, fmt.Errorf("list queueing disciplines: %w", err)
	}
	all := make([]qdisc, 0, len(answers))
	for _, m := range answers {
		q, err := decodeQdisc(m.Data)
		if err != nil {
			return nil, fmt.Errorf("list queueing disciplines: %w", err)
		}
		all = append(all, q)
	}
	return all, nil
}

// claims are what is in use.
type claims struct {
	indices map[int]bool
	ifbs    map[string]bool
	// complete says that all interfaces in use are among the indices.
	complete bool
}

// collect removes what is ours and nobody claims. It returns how much that was.
func (c *Conn) collect(k claims) (int, error) {
	s, err := c.survey()
	if err != nil {
		return 0, err
	}
	n := 0
	mine, doomed := make(map[int]bool), make(map[int]ifb)
	for _, l := range s.ifbs {
		mine[l.index] = true
		if l.group == doomedGroup || !k.ifbs[l.name] {
			doomed[l.index] = l
		}
	}
	for _, index := range s.hooks {
		if k.indices[index] || mine[index] {
			continue
		}
		// Before the IFBs: a filter that leads to one that is gone drops everything.
		found, err := c.collectFilters(index, doomed, k.complete)
		if err != nil {
			return n, err
		}
		n += found
	}
	for _, index := range s.roots {
		if k.indices[index] || mine[index] || !k.complete {
			continue
		}
		if err := c.removeQueue(index); err != nil {
			return n, err
		}
		n++
	}
	for _, l := range doomed {
		if err := c.doomIFB(l.name); err != nil {
			return n, err
		}
	}
	if len(doomed) == 0 {
		return n, nil
	}
	return n + len(doomed), c.removeDoomed()
}

// collectFilters removes our filters from an interface if they lead to an IFB that is
// to go, or in any case, and the hook with them if it is ours.
func (c *Conn) collectFilters(index int, doomed map[int]ifb, inAnyCase bool) (int, error) {
	n, ours := 0, false
	for _, place := range hooks() {
		found, err := c.filters(index, place)
		if err != nil {
			return n, err
		}
		leads := false
		for _, f := range found {
			l, ok := doomed[f.to]
			leads, ours = leads || ok, ours || l.madeHook
		}
		if len(found) == 0 || !leads && !inAnyCase {
			continue
		}
		if err := c.removeRedirect(index, place); err != nil {
			return n, err
		}
		n++
	}
	if !ours {
		return n, nil
	}
	return n, c.removeHook(index)
}

// Cleanup removes everything that is ours from the network namespace of c. It
// returns how many queues, redirections and IFBs there were.
func (c *Conn) Cleanup() (int, error) { return c.collect(claims{complete: true}) }

// counted is which direction of which pod a queue is for.
type counted struct {
	pod       shaping.Key
	direction shaping.Direction
	rate      shaping.Rate
}

// Sample is what one direction of a pod has passed.
type Sample struct {
	Pod       shaping.Key
	Direction shaping.Direction
	// Rate is what it is limited to.
	Rate shaping.Rate
	// Counters begin anew with another queue.
	Counters Counters
}

// sample reads the counters of queues, known by the indices of their interfaces, in
// one dump.
func (c *Conn) sample(places map[int]counted) ([]Sample, error) {
	all, err := c.qdiscs()
	if err != nil {
		return nil, err
	}
	var samples []Sample
	seen := make(map[int]bool, len(places))
	add := func(q qdisc) {
		if p, ok := places[q.index]; ok && !seen[q.index] && q.handle == rootHandle && q.kind == "tbf" {
			seen[q.index] = true
			samples = append(samples, Sample{Pod: p.pod, Direction: p.direction, Rate: p.rate, Counters: q.stats})
		}
	}
	for _, q := range all {
		add(q)
	}
	for index := range places {
		if seen[index] {
			continue
		}
		// A dump may pass over one, see listing; to miss it once would count it twice.
		q, err := c.qdisc(index, rootHandle, 0)
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
		add(q)
	}
	return samples, nil
}
