package verdict

import (
	"bytes"
	"math"
	"strings"
	"testing"
)

func TestBars(t *testing.T) {
	bars := []Bar{
		{"rate", 100.04, 95, 100, "%"}, {"rate", 100.06, 95, 100, "%"}, {"rate", 94.94, 95, 100, "%"},
		{"cost", 1.2, 0, 1.2, "x"}, {"cost", 1.2004, 0, 1.2, "x"},
		{"time", 2, 0, 2, "ms"}, {"nothing", math.NaN(), 0, 2, "ms"},
	}
	want := []bool{true, false, false, true, false, true, false}
	for i, b := range bars {
		if b.Holds() != want[i] {
			t.Errorf("%s %s of %s: %s", b.Name, b.Measured(), b.Bound(), b.Verdict())
		}
	}
	var text bytes.Buffer
	WriteBars(&text, "bench", bars[:2])
	if got := text.String(); !strings.HasSuffix(got, "\nbench: 1 of 2 bars held\n") || strings.Count(got, "NOT HELD") != 1 || !strings.Contains(got, "95 to 100.0 %") {
		t.Errorf("the table is\n%s", got)
	}
}

func TestNumbersHaveThreeDigits(t *testing.T) {
	for f, want := range map[float64]string{1.234: "1.23", 12.34: "12.3", 123.4: "123", -1234: "-1234", math.NaN(): "-"} {
		if got := Number(f); got != want {
			t.Errorf("%v is written %s, want %s", f, got, want)
		}
	}
}

func TestMachine(t *testing.T) {
	if m := Describe(); m.Kernel == "" || m.CPUs == 0 || m.Go == "" {
		t.Errorf("%+v", m)
	}
}
