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
	// sent is what they had sent at the time since, and not more up to now.
	sent  uint64
	since time.Time
}

// narrowingPace is the time between two looks.
const narrowingPace = 500 * time.Millisecond

// set says what is there now.
func (n *narrowing) set(s shaping.State, now time.Time) {
	if len(s.Narrowing()) == 0 {
		*n = narrowing{}
		return
	}
	if !n.on {
		n.on, n.since = true, now
	}
	n.look = now.Add(narrowingPace)
}

// check finds queues that have sent nothing for longer than what waits can need. That is
// a packet larger than any should be (BIG TCP makes some), for which there will never be
// enough tokens.
func (n *narrowing) check(s shaping.State, now time.Time) {
	if !n.on {
		return
	}
	var sent uint64
	var longest time.Duration
	for _, q := range s.Narrowing() {
		sent += q.Sent
		longest = max(longest, time.Duration(q.Bucket.Ticks(q.Bucket.Burst))*tickTime)
	}
	if sent != n.sent {
		n.sent, n.since = sent, now
	}
	if now.Sub(n.since) <= longest+4*narrowingPace {
		return
	}
	for _, q := range s.Narrowing() {
		q.Stuck = !q.Empty
	}
}

// tickTime is the length of a tick.
const tickTime = 64 * time.Nanosecond
