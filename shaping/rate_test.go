package shaping

import (
	"errors"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
)

func TestParseRate(t *testing.T) {
	for text, want := range map[string]Rate{
		"1k": 1000, "1000": 1000, "999.5": 1000, "10M": 10_000_000, "1.5M": 1_500_000, "1e6": 1_000_000, "1Ki": 1024, "10Mi": 10 << 20,
		"100G": 100_000_000_000, "1P": MaxRate, "1000T": MaxRate, "1024001m": 1025, "+5M": 5_000_000,
	} {
		if got, err := ParseRate(text); got != want || err != nil {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"": "not a quantity", "fast": "not a quantity", "10Mbit": "not a quantity", "10 M": "not a quantity", "10M ": "not a quantity",
		"10MB/s": "not a quantity", "0x10": "not a quantity", "1,5M": "not a quantity", "NaN": "not a quantity", "10m": "too little",
		"0": "is zero", "0M": "is zero", "-10M": "is negative", "999": "too little", "0.5k": "too little",
		"1001T": "too much", "2P": "too much", "1Pi": "too much", "1E": "too much", "99999999999999999999E": "too much",
	} {
		got, err := ParseRate(text)
		if got != 0 || err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), AcceptedRate) {
			t.Errorf("%q: %d, %v, want an error with %q and what is accepted", text, got, err, want)
		}
	}
}

func TestParseBurst(t *testing.T) {
	for text, want := range map[string]uint32{"8k": 1000, "8001": 1001, "256k": 32_000, "34G": 4_250_000_000} {
		if got, err := ParseBurst(text); got != want || err != nil {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "-1k", "999", "35G", "4Gi bytes"} {
		if got, err := ParseBurst(text); got != 0 || err == nil || !strings.Contains(err.Error(), AcceptedBurst) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestRateString(t *testing.T) {
	for rate, want := range map[Rate]string{0: "unlimited", 1000: "1k", 1500: "1500", 1_500_000: "1500k", 10_000_000: "10M", MaxRate: "1P", 50_000_000_000: "50G", 1_000_000_000_000: "1T"} {
		if got := rate.String(); got != want {
			t.Errorf("%d: %s, want %s", rate, got, want)
		}
	}
}

// FuzzParseRate holds ParseRate to the words of the API: a quantity, within bounds,
// rounded up to whole bits.
func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"10M", "1k", "1P", "-1", "0", "1e3", "1.0000001k", "9223372036854775807", "1e-9", "0.1E", "10Mbit", "999999u", "1e15", "1e16"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseRate(s)
		q, qerr := resource.ParseQuantity(s)
		if qerr != nil {
			if !errors.Is(err, ErrQuantity) {
				t.Fatalf("%q: %d, %v, but it is no quantity", s, got, err)
			}
			return
		}
		least, most := resource.MustParse("1k"), resource.MustParse("1P")
		// What is less than the least by a fraction of a bit is rounded up to it.
		bits := resource.NewQuantity(q.Value(), resource.DecimalSI)
		if valid := q.Cmp(most) <= 0 && bits.Cmp(least) >= 0; valid != (err == nil) {
			t.Fatalf("%q: %d, %v, but valid is %v", s, got, err, valid)
		}
		if err != nil {
			return
		}
		if int64(got) != q.Value() {
			t.Fatalf("%q: %d, but the quantity is %d", s, got, q.Value())
		}
		if again, err := ParseRate(got.String()); again != got || err != nil {
			t.Fatalf("%q is written %s, and read as %d, %v", s, got, again, err)
		}
	})
}

func FuzzParseBurst(f *testing.F) {
	f.Add("256k")
	f.Add("34G")
	f.Add("1e99")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseBurst(s)
		if (err == nil) != (got != 0) || err == nil && (got < 125 || uint64(got) > MaxBurst) {
			t.Fatalf("%q: %d, %v", s, got, err)
		}
	})
}
