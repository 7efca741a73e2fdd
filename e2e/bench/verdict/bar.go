package verdict

import (
	"fmt"
	"io"
	"math"
)

// Bar is a limit that the product sets itself.
type Bar struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	// Least and Most are the bounds of the value; Least is 0 where little is good.
	Least float64 `json:"least,omitempty"`
	Most  float64 `json:"most"`
	Unit  string  `json:"unit"`
}

// Holds tells whether the value, to the digit that is written, is within the
// bounds. What was not measured holds nothing.
func (b Bar) Holds() bool {
	v := b.Value
	if b.Unit == "%" {
		v = math.Round(v*10) / 10
	}
	return v >= b.Least && v <= b.Most
}

// Verdict is the judgement in words.
func (b Bar) Verdict() string {
	if b.Holds() {
		return "held"
	}
	return "NOT HELD"
}

// Measured writes the value.
func (b Bar) Measured() string { return b.format(b.Value) }

// Bound writes the bounds.
func (b Bar) Bound() string {
	if b.Least == 0 {
		return "at most " + b.format(b.Most)
	}
	return fmt.Sprintf("%v to %s", b.Least, b.format(b.Most))
}

func (b Bar) format(v float64) string {
	switch b.Unit {
	case "x":
		return fmt.Sprintf("%.3fx", v)
	case "%":
		return fmt.Sprintf("%.1f %%", v)
	}
	return Number(v) + " " + b.Unit
}

// Held counts the bars that hold.
func Held(bars []Bar) int {
	n := 0
	for _, b := range bars {
		if b.Holds() {
			n++
		}
	}
	return n
}

// WriteBars writes a table of bars, and a last line of how many the program holds.
func WriteBars(w io.Writer, program string, bars []Bar) {
	t := NewTable(w)
	t.Row("bar", "measured", "shall be", "")
	for _, b := range bars {
		t.Row(b.Name, b.Measured(), b.Bound(), b.Verdict())
	}
	t.Flush()
	fmt.Fprintf(w, "%s: %d of %d bars held\n", program, Held(bars), len(bars))
}
