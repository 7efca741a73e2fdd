package shaping

// Leaf is what packets wait in, below a token bucket filter: a FIFO, or fq_codel
// where the kernel has it. The zero value is the FIFO.
type Leaf struct {
	// FQCodel says that it is fq_codel. The other fields are for that only.
	FQCodel bool
	// Target and Interval are CoDel's, in microseconds, see tc-fq_codel(8).
	Target, Interval uint32
	// Memory bounds what waits, in bytes as the kernel counts its buffers.
	Memory uint32
	// Packets bounds how many wait, Quantum is a flow's turn in bytes.
	Packets, Quantum uint32
	// Flows is the number of hash buckets. It cannot be changed, and costs memory
	// for every pod, so that it is less than the default.
	Flows uint32
}

// The parameters of fq_codel: its defaults, but for what is said at NewLeaf.
const (
	codelTarget, codelInterval = 5_000, 100_000
	codelPackets               = 10_240
	codelFlows                 = 256
	minMemory, maxMemory       = 256 << 10, 32 << 20
	memoryTime                 = 200
)

// NewLeaf returns the leaf of a bucket. fqCodel says whether the kernel has that.
// On a slow link CoDel's target grows to one and a half times what a frame takes:
// with less, it would drop where a single packet waits.
func NewLeaf(b Bucket, frame int, fqCodel bool) Leaf {
	if !fqCodel {
		return Leaf{}
	}
	size := uint64(max(frame, 1))
	target := uint64(codelTarget)
	if b.Rate != 0 {
		target = min(max(target, size*1_500_000/b.Rate), 10_000_000)
	}
	return Leaf{
		FQCodel:  true,
		Target:   uint32(target),
		Interval: uint32(max(codelInterval, 10*target)),
		Memory:   uint32(min(max(b.during(memoryTime), minMemory), maxMemory)),
		Packets:  codelPackets, Quantum: uint32(size), Flows: codelFlows,
	}
}

// same tells whether a leaf read from the kernel is this one. CoDel keeps times in
// units of 1024 ns (include/net/codel.h).
func (l Leaf) same(read Leaf) bool {
	if !l.FQCodel || !read.FQCodel {
		return l.FQCodel == read.FQCodel
	}
	near := func(a, b uint32) bool { return max(a, b)-min(a, b) <= 2 }
	return near(l.Target, read.Target) && near(l.Interval, read.Interval) && l.Memory == read.Memory &&
		l.Packets == read.Packets && l.Quantum == read.Quantum
}
