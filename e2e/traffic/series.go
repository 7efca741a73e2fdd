package traffic

import (
	"encoding/binary"
	"time"
)

// Bin is the resolution of a Series.
const Bin = 10 * time.Millisecond

// Series is what arrived, by the time of its arrival.
type Series struct {
	// Start is when the first byte arrived.
	Start time.Time `json:"start"`
	// Bytes are those of whole frames, one number for each Bin since Start.
	Bytes []uint64 `json:"bytes"`
}

// Rate returns bits per second between two moments after Start.
func (s Series) Rate(from, to time.Duration) float64 {
	var sum uint64
	for i := max(0, int(from/Bin)); i < int(to/Bin) && i < len(s.Bytes); i++ {
		sum += s.Bytes[i]
	}
	return float64(sum) * 8 / (to - from).Seconds()
}

// Total returns all bytes.
func (s Series) Total() uint64 {
	var sum uint64
	for _, b := range s.Bytes {
		sum += b
	}
	return sum
}

// Coarse returns the rates in bits per second over longer spans, one after the
// other.
func (s Series) Coarse(span time.Duration) []float64 {
	var rates []float64
	for at := time.Duration(0); at+span <= time.Duration(len(s.Bytes))*Bin; at += span {
		rates = append(rates, s.Rate(at, at+span))
	}
	return rates
}

// newSeries has room for all that arrives in some time.
func newSeries(length time.Duration) Series {
	return Series{Bytes: make([]uint64, int(length/Bin))}
}

// add counts what arrived. It returns false for what is beyond the series.
func (s *Series) add(at time.Time, bytes int) bool {
	if s.Start.IsZero() {
		s.Start = at
	}
	// A packet may have overtaken the first one.
	i := max(0, int(at.Sub(s.Start)/Bin))
	if i >= len(s.Bytes) {
		return false
	}
	s.Bytes[i] += uint64(bytes)
	return true
}

// timespec reads struct timespec of 64 bits.
func timespec(b []byte) time.Time {
	return time.Unix(int64(binary.NativeEndian.Uint64(b)), int64(binary.NativeEndian.Uint64(b[8:])))
}
