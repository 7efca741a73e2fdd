package tc

import (
	"time"

	"github.com/selvage-net/selvage/shaping"
)

// narrowing watches over queues that wait for being empty to get their last parameters.
// Meanwhile they have the right rate, and a burst that is too large by one packet.
type narrowing struct {
	on bool
	// look is when they are looked at again.
	look time.Time
	// progress is that of each, by its device.
	progress map[string]progress
}

// progress is what a queue had sent at a time, and not more up to now.
type progress struct {
	sent  uint64
	since time.Time
}

// narrowingPace is the time between two looks.
const narrowingPace = 500 * time.Millisecond

// set says what is there now.
func (n *narrowing) set(s shaping.State, now time.Time) {
	waiting := s.Narrowing()
	if len(waiting) == 0 {
		*n = narrowing{}
		return
	}
	before := n.progress
	n.on, n.look, n.progress = true, now.Add(narrowingPace), make(map[string]progress, len(waiting))
	for device, q := range waiting {
		p, ok := before[device]
		if !ok || p.sent != q.Sent {
			p = progress{q.Sent, now}
		}
		n.progress[device] = p
	}
}

// check finds queues that have sent nothing for longer than what waits can need. That is
// a packet larger than any should be (BIG TCP makes some), for which there will never be
// enough tokens.
func (n *narrowing) check(s shaping.State, now time.Time) {
	for device, q := range s.Narrowing() {
		p, ok := n.progress[device]
		longest := time.Duration(q.Bucket.Ticks(q.Bucket.Burst)) * tickTime
		q.Stuck = ok && p.sent == q.Sent && !q.Empty && now.Sub(p.since) > longest+4*narrowingPace
	}
}

// tickTime is the length of a tick.
const tickTime = 64 * time.Nanosecond
