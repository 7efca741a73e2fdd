package shaping

import (
	"errors"
	"fmt"
	"math"
	"strconv"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Rate is a number of bits per second, of whole frames with their link-layer
// header. 0 is no limit.
type Rate uint64

// The bounds of a Rate, those that Kubernetes has for the annotations
// (pkg/util/bandwidth/utils.go there).
const (
	MinRate Rate = 1_000
	MaxRate Rate = 1_000_000_000_000_000
)

// AcceptedRate says what ParseRate takes, for messages.
const AcceptedRate = "bits per second from 1k to 1P, as in 10M or 1500k"

// ErrQuantity says that a text is no quantity.
var ErrQuantity = errors.New("not a quantity")

// ParseRate reads bits per second as Kubernetes does: a resource.Quantity, a
// fraction rounded up, from 1k to 1P. The error says what is wrong and what would
// be accepted.
func ParseRate(s string) (Rate, error) {
	bits, err := parseBits(s, int64(MinRate), int64(MaxRate))
	if err != nil {
		return 0, fmt.Errorf("%w: give %s", err, AcceptedRate)
	}
	return Rate(bits), nil
}

// MaxBurst is the largest burst in bytes: the kernel takes it in 32 bits
// (TCA_TBF_BURST in include/uapi/linux/pkt_sched.h).
const MaxBurst = math.MaxUint32

// AcceptedBurst says what ParseBurst takes, for messages.
const AcceptedBurst = "bits from 1k to 34G, as in 256k or 8M"

// ParseBurst reads the size of a burst, a resource.Quantity of bits like the rate
// that it belongs to, and returns it in bytes. The error says what is wrong and
// what would be accepted.
func ParseBurst(s string) (bytes uint32, err error) {
	bits, err := parseBits(s, 1000, 34_000_000_000)
	if err != nil {
		return 0, fmt.Errorf("%w: give %s", err, AcceptedBurst)
	}
	return uint32((bits + 7) / 8), nil
}

// parseBits reads a quantity that is not less than least and not more than most.
func parseBits(s string, least, most int64) (int64, error) {
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return 0, fmt.Errorf("%w: %q", ErrQuantity, s)
	}
	switch {
	case q.Sign() < 0:
		return 0, fmt.Errorf("%q is negative", s)
	case q.Sign() == 0:
		return 0, fmt.Errorf("%q is zero", s)
	// Value saturates, so that what is too much must be told before.
	case q.CmpInt64(most) > 0:
		return 0, fmt.Errorf("%q is too much", s)
	case q.Value() < least:
		return 0, fmt.Errorf("%q is too little", s)
	}
	return q.Value(), nil
}

// String writes a rate as an annotation would, in the largest unit that leaves no
// fraction.
func (r Rate) String() string {
	if r == 0 {
		return "unlimited"
	}
	units := []struct {
		size Rate
		name string
	}{{1e15, "P"}, {1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}}
	for _, u := range units {
		if r%u.size == 0 {
			return strconv.FormatUint(uint64(r/u.size), 10) + u.name
		}
	}
	return strconv.FormatUint(uint64(r), 10)
}

// bytes returns bytes per second. The kernel counts in whole bytes.
func (r Rate) bytes() uint64 { return uint64(r) / 8 }
