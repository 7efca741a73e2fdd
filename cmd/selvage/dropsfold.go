package main

import (
	"net/netip"
	"slices"
	"time"
)

const (
	// foldFor is how long repetitions are counted before they are told.
	foldFor = time.Minute
	// maxFolded is how many drops are told apart at a time.
	maxFolded = 2048
)

// dropFold makes few of many drops: the first of each kind is told at once, and what
// repeats it once a minute, all together. It is for one goroutine.
type dropFold struct {
	kinds map[dropKind]*folded
}

// dropKind is what drops that are told together have in common.
type dropKind struct {
	direction           string
	reason              dropReason
	source, destination netip.Addr
	protocol            string
	port                uint16
	icmpType            uint8
	icmp                bool
}

// folded are the drops of a kind since they were told last.
type folded struct {
	last  drop
	since time.Time
	count int
}

// foldResult is what dropFold made of a drop.
type foldResult int

const (
	// foldNew: it is the first of its kind and to be told.
	foldNew foldResult = iota
	// foldRepeated: it was counted; due will tell.
	foldRepeated
	// foldFull: there are too many kinds.
	foldFull
)

func newDropFold() dropFold { return dropFold{kinds: make(map[dropKind]*folded)} }

func (n *drop) kind() dropKind {
	k := dropKind{
		direction: n.Direction, reason: n.Reason, source: n.Source.Address, destination: n.Destination.Address,
		protocol: n.Protocol, port: n.Port,
	}
	if n.ICMPType != nil {
		k.icmpType, k.icmp = *n.ICMPType, true
	}
	return k
}

// add takes a drop in and says what has to be done.
func (f *dropFold) add(n drop, now time.Time) foldResult {
	kind := n.kind()
	if known := f.kinds[kind]; known != nil {
		known.last = n
		known.count++
		return foldRepeated
	}
	if len(f.kinds) >= maxFolded {
		return foldFull
	}
	f.kinds[kind] = &folded{last: n, since: now}
	return foldNew
}

// due returns what was repeated for long enough, as it was the last time, oldest first.
// A kind that was not repeated is forgotten: its next drop is a first one again.
func (f *dropFold) due(now time.Time) []drop {
	var all []drop
	for kind, known := range f.kinds {
		switch {
		case now.Sub(known.since) < foldFor:
		case known.count == 0:
			delete(f.kinds, kind)
		default:
			n := known.last
			n.Count = known.count
			all = append(all, n)
			known.since, known.count = now, 0
		}
	}
	slices.SortFunc(all, func(a, b drop) int { return a.Time.Compare(b.Time) })
	return all
}
