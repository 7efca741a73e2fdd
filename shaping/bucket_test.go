package shaping

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

const (
	k = Rate(1_000)
	m = 1_000 * k
	g = 1_000 * m
)

// ethernet and jumbo are frames with their header.
const ethernet, jumbo = 1514, 9014

func TestNewBucket(t *testing.T) {
	for _, tt := range []struct {
		name  string
		limit Limit
		frame int
		want  Bucket
	}{
		{"the least rate", Limit{Rate: MinRate}, ethernet, Bucket{Rate: 125, Burst: 2 * ethernet, Limit: 4 * ethernet}},
		{"a modem", Limit{Rate: 64 * k}, ethernet, Bucket{Rate: 8000, Burst: 2 * ethernet, Limit: 4 * ethernet}},
		{"1 Mbit/s: some packets", Limit{Rate: m}, ethernet, Bucket{Rate: 125_000, Burst: 6250, Limit: 10_000}},
		{"10 Mbit/s", Limit{Rate: 10 * m}, ethernet, Bucket{Rate: 1_250_000, Burst: 8_000, Limit: 25_000}},
		{"100 Mbit/s", Limit{Rate: 100 * m}, ethernet, Bucket{Rate: 12_500_000, Burst: 62_500, Limit: 250_000}},
		{"1 Gbit/s", Limit{Rate: g}, ethernet, Bucket{Rate: 125_000_000, Burst: 625_000, Limit: 2_500_000}},
		{"5 Gbit/s", Limit{Rate: 5 * g}, ethernet, Bucket{Rate: 625_000_000, Burst: 3_125_000, Limit: 12_500_000}},
		{"the last rate of 32 bits", Limit{Rate: math.MaxUint32 * 8}, ethernet, Bucket{Rate: math.MaxUint32, Burst: 21_474_836, Limit: 85_899_345}},
		{"the first that needs 64", Limit{Rate: (math.MaxUint32 + 1) * 8}, ethernet, Bucket{Rate: math.MaxUint32 + 1, Burst: 21_474_836, Limit: 85_899_345}},
		{"the largest", Limit{Rate: MaxRate}, ethernet, Bucket{Rate: 125_000_000_000_000, Burst: math.MaxUint32, Limit: math.MaxUint32}},
		{"no whole byte", Limit{Rate: 1007}, ethernet, Bucket{Rate: 125, Burst: 2 * ethernet, Limit: 4 * ethernet}},
		{"large frames", Limit{Rate: m}, jumbo, Bucket{Rate: 125_000, Burst: 2 * jumbo, Limit: 4 * jumbo}},
		{"large frames at a high rate", Limit{Rate: g}, jumbo, Bucket{Rate: 125_000_000, Burst: 625_000, Limit: 2_500_000}},
		{"a burst that is given", Limit{Rate: 10 * m, Burst: 100_000}, ethernet, Bucket{Rate: 1_250_000, Burst: 100_000, Limit: 100_000}},
		{"a burst less than a frame", Limit{Rate: m, Burst: 125}, ethernet, Bucket{Rate: 125_000, Burst: ethernet, Limit: 10_000}},
		{"a burst less than 2 ms", Limit{Rate: g, Burst: 16_000}, ethernet, Bucket{Rate: 125_000_000, Burst: 250_000, Limit: 2_500_000}},
		{"a burst of hours", Limit{Rate: m, Burst: math.MaxUint32}, ethernet, Bucket{Rate: 125_000, Burst: 7_500_000, Limit: maxPacket}},
		{"no frame", Limit{Rate: MinRate}, 0, Bucket{Rate: 125, Burst: 6, Limit: 10}},
	} {
		if got := NewBucket(tt.limit, tt.frame); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// TestTicks has the figures of the kernel's clock: 1000 bytes at 1 MB/s are 1 ms, or
// 15625 ticks of 64 ns.
func TestTicks(t *testing.T) {
	for _, tt := range []struct {
		rate  uint64
		bytes uint32
		ticks uint32
	}{
		{1_000_000, 1000, 15_625},
		{125, 125, 15_625_000},
		{125, math.MaxUint32, math.MaxUint32}, // a year
		{math.MaxUint32, math.MaxUint32, 15_625_000},
		{125_000_000_000_000, math.MaxUint32, 536},
		{0, 1, math.MaxUint32},
	} {
		if got := (Bucket{Rate: tt.rate}).Ticks(tt.bytes); got != tt.ticks {
			t.Errorf("%d bytes at %d B/s: %d ticks, want %d", tt.bytes, tt.rate, got, tt.ticks)
		}
	}
	if got := (Bucket{Rate: math.MaxUint64}).FromTicks(math.MaxUint32); got != math.MaxUint32 {
		t.Errorf("more than 32 bits: %d", got)
	}
}

func drawLimit(t *rapid.T) Limit {
	// Evenly over the orders of magnitude.
	exponent := rapid.Float64Range(3, 15).Draw(t, "exponent")
	l := Limit{Rate: min(max(Rate(math.Pow(10, exponent)), MinRate), MaxRate)}
	if rapid.Bool().Draw(t, "burst given") {
		l.Burst = rapid.Uint32().Draw(t, "burst")
	}
	return l
}

func drawFrame(t *rapid.T) int {
	return rapid.SampledFrom([]int{590, ethernet, 1518, jumbo, 65_549}).Draw(t, "frame")
}

func TestBucketWorks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, frame := drawLimit(t), drawFrame(t)
		b := NewBucket(l, frame)
		if int(b.Burst) < frame {
			t.Errorf("a frame of %d bytes never passes: %+v", frame, b)
		}
		if int(b.Limit) < frame || b.Limit < min(b.Burst, maxPacket) {
			t.Errorf("a packet that passes the bucket never has room: %+v", b)
		}
		if l.Burst == 0 && frame == ethernet && l.Rate >= m && 2*float64(b.Burst) > .15*float64(b.Rate) {
			t.Errorf("the first half second is more than 1.15 times the rate: %+v", b)
		}
		read := b
		if read.Burst = b.FromTicks(uint32(b.ticks(b.Burst))); !b.same(read) {
			t.Errorf("%+v comes back from the kernel as %+v, and is taken for another", b, read)
		}
	})
}

func TestBucketTellsApart(t *testing.T) {
	b := NewBucket(Limit{Rate: 10 * m}, ethernet)
	for name, change := range map[string]func(*Bucket){
		"rate":         func(b *Bucket) { b.Rate++ },
		"larger burst": func(b *Bucket) { b.Burst += 100 },
		"small burst":  func(b *Bucket) { b.Burst -= 100 },
		"limit":        func(b *Bucket) { b.Limit++ },
		"largest":      func(b *Bucket) { b.Largest = b.Burst },
	} {
		other := b
		if change(&other); b.same(other) {
			t.Errorf("another %s is taken for the same", name)
		}
	}
}

// TestNarrowed has a bucket in between that lets out what another one let in, and lets
// nothing in that the next one would not let out.
func TestNarrowed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		frame := drawFrame(t)
		from, to := NewBucket(drawLimit(t), frame), NewBucket(drawLimit(t), frame)
		if !to.narrows(from) {
			if to.Burst < min(from.Burst, maxPacket) && !to.same(from) {
				t.Errorf("what waits in %+v is stuck in %+v", from, to)
			}
			return
		}
		between := to.narrowed(from)
		if between.Rate != to.Rate || between.Limit != to.Limit || between.Largest != to.Burst || between.Burst < min(from.Burst, maxPacket) || int(between.Largest) < frame {
			t.Errorf("from %+v to %+v by %+v", from, to, between)
		}
		if between.same(to) || !to.narrows(between) || to.narrowed(between) != between {
			t.Errorf("%+v is taken for %+v", between, to)
		}
	})
}

func TestNewLeaf(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rate  Rate
		frame int
		want  Leaf
	}{
		{"1 Mbit/s: one and a half frames", m, ethernet, Leaf{FQCodel: true, Target: 18_168, Interval: 181_680, Memory: minMemory, Packets: 10_240, Quantum: ethernet, Flows: 256}},
		{"10 Mbit/s", 10 * m, ethernet, Leaf{FQCodel: true, Target: 5000, Interval: 100_000, Memory: minMemory, Packets: 10_240, Quantum: ethernet, Flows: 256}},
		{"100 Mbit/s", 100 * m, ethernet, Leaf{FQCodel: true, Target: 5000, Interval: 100_000, Memory: 2_500_000, Packets: 10_240, Quantum: ethernet, Flows: 256}},
		{"5 Gbit/s", 5 * g, jumbo, Leaf{FQCodel: true, Target: 5000, Interval: 100_000, Memory: maxMemory, Packets: 10_240, Quantum: jumbo, Flows: 256}},
		{"1 kbit/s: bounded", k, 65_549, Leaf{FQCodel: true, Target: 10_000_000, Interval: 100_000_000, Memory: minMemory, Packets: 10_240, Quantum: 65_549, Flows: 256}},
	} {
		b := NewBucket(Limit{Rate: tt.rate}, tt.frame)
		got := NewLeaf(b, tt.frame, true)
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
		read := got
		read.Target-- // as the kernel rounds
		read.Flows = 1024
		if !got.same(read) {
			t.Errorf("%s: not recognised as it comes back", tt.name)
		}
		if read.Memory++; got.same(read) || got.same(Leaf{}) {
			t.Errorf("%s: another one is taken for the same", tt.name)
		}
		if got := NewLeaf(b, tt.frame, false); got != (Leaf{}) {
			t.Errorf("%s: %+v without fq_codel", tt.name, got)
		}
	}
}
