package shaping

import (
	"math"
	"math/bits"
)

// Bucket are the parameters of a token bucket filter, see tc-tbf(8) and
// net/sched/sch_tbf.c.
type Bucket struct {
	// Rate is in bytes per second.
	Rate uint64
	// Burst is how many bytes may be sent at once after a pause. The kernel cuts a
	// larger GSO packet into its segments, and drops a larger packet of any other
	// kind: it is never less than a frame.
	Burst uint32
	// Limit is how many bytes may wait.
	Limit uint32
	// Largest, if it is not 0, is less than Burst, and packets are cut from that size
	// on. See narrowed.
	Largest uint32
}

// narrowed returns a bucket on the way from another one to b, whose burst is less. What
// waits may be larger than b's burst, and would wait for ever: there are never tokens
// enough for it (tbf_dequeue). This bucket has b's rate and lets nothing in that b
// would not, but lets out what is there.
func (b Bucket) narrowed(from Bucket) Bucket {
	b.Largest = b.Burst
	// Whatever the burst was, packets are hardly larger; and a change fills the bucket.
	b.Burst = min(from.Burst, maxPacket)
	return b
}

// narrows tells whether what waits in another bucket may be too large for b.
func (b Bucket) narrows(from Bucket) bool {
	return min(from.Burst, maxPacket) > b.Burst && !b.same(from)
}

// What bursts and queues are made from. They were measured from 1 Mbit/s to 5
// Gbit/s with one TCP flow.
const (
	// burstTime is the burst in milliseconds of the rate. Under 2 ms, timers and
	// the scheduler of a busy machine cost throughput; over 50 ms, the first half
	// second carries noticeably more than the rate allows.
	burstTime, minBurstTime, maxBurstTime = 5, 2, 50
	// maxNamedTime bounds a burst that somebody asked for: the kernel tells of it
	// in 32 bits of its ticks, which hold some four minutes.
	maxNamedTime = 60_000
	// smallBurst is preferred where burstTime would be less: some frames keep the
	// sender's batches together. What waits for its tokens holds up all flows, however
	// fair the leaf is: with 16 kB that is 12.8 ms at 10 Mbit/s.
	smallBurst = 8_000
	// queueTime is how long a full queue takes to be sent, in milliseconds. It is
	// what a packet waits under load. Slow links need more, for a flow cannot live
	// on less than some packets.
	queueTime, maxQueueTime = 20, 80
	smallQueue              = 24_000
	// minFrames is the least of both.
	minBurstFrames, minQueueFrames = 2, 4
	// maxPacket is the largest packet that segmentation offload makes, as the kernel
	// counts it here: with the header of each segment (qdisc_pkt_len_init in
	// net/core/dev.c). A queue must have room for it, or it would never pass.
	maxPacket = 128 << 10
)

// NewBucket returns the bucket of a limit, for an interface whose largest frame has
// that many bytes, header included. A burst that the limit names is kept within
// what works: a frame and 2 ms of the rate at least.
func NewBucket(l Limit, frame int) Bucket {
	b := Bucket{Rate: l.Rate.bytes()}
	size := uint64(max(frame, 0))
	burst := max(b.during(burstTime), min(smallBurst, b.during(maxBurstTime)), minBurstFrames*size)
	if l.Burst != 0 {
		burst = max(min(uint64(l.Burst), b.during(maxNamedTime)), b.during(minBurstTime), size)
	}
	b.Burst = saturate(burst)
	b.Limit = saturate(max(
		b.during(queueTime), min(smallQueue, b.during(maxQueueTime)), minQueueFrames*size,
		min(burst, maxPacket)))
	return b
}

// during returns the bytes that the rate allows in some milliseconds. The largest
// Rate is far from overflowing it.
func (b Bucket) during(ms uint64) uint64 { return b.Rate * ms / 1000 }

func saturate(n uint64) uint32 { return uint32(min(n, math.MaxUint32)) }

// tick is the kernel's unit of time in traffic control, in nanoseconds
// (PSCHED_SHIFT in include/net/pkt_sched.h).
const tick = 64

// Ticks returns how long it takes to send some bytes at the bucket's rate, in the
// kernel's ticks, or as many as 32 bits hold.
func (b Bucket) Ticks(bytes uint32) uint32 { return saturate(b.ticks(bytes)) }

func (b Bucket) ticks(bytes uint32) uint64 {
	if b.Rate == 0 {
		return math.MaxUint64
	}
	// 2^32 bytes in nanoseconds are less than 2^62.
	return uint64(bytes) * 1_000_000_000 / b.Rate / tick
}

// FromTicks returns how many bytes are sent in some ticks: Ticks, turned round, but
// for what is lost by rounding.
func (b Bucket) FromTicks(ticks uint32) uint32 {
	hi, lo := bits.Mul64(uint64(ticks)*tick, b.Rate)
	if hi >= 1_000_000_000 {
		return math.MaxUint32
	}
	bytes, _ := bits.Div64(hi, lo, 1_000_000_000)
	return saturate(bytes)
}

// same tells whether a bucket read from the kernel is this one. The kernel returns
// the burst in ticks, and computes with a reciprocal of the rate
// (psched_ratecfg_precompute in net/sched/sch_generic.c).
func (b Bucket) same(read Bucket) bool {
	if b.Rate != read.Rate || b.Limit != read.Limit || b.Largest != read.Largest {
		return false
	}
	burst := b.FromTicks(uint32(b.ticks(b.Burst))) // of a longer time the kernel cuts off the upper bits
	slack := 2*tick*b.Rate/1_000_000_000 + uint64(burst)/10_000 + 1
	return max(burst, read.Burst)-min(burst, read.Burst) <= saturate(slack)
}
