package verdict

import (
	"fmt"
	"io"
	"math"
	"text/tabwriter"
)

// Table writes aligned columns.
type Table struct{ w *tabwriter.Writer }

// NewTable returns a table that is written to w by Flush.
func NewTable(w io.Writer) Table {
	return Table{tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)}
}

// Row adds one row, its first column to the left.
func (t Table) Row(first string, cells ...any) {
	fmt.Fprintf(t.w, "%-48s\t", first)
	for _, c := range cells {
		if f, ok := c.(float64); ok {
			c = Number(f)
		}
		fmt.Fprintf(t.w, "%v\t", c)
	}
	fmt.Fprintln(t.w)
}

// Flush writes the table.
func (t Table) Flush() { _ = t.w.Flush() }

// Number writes three significant digits.
func Number(f float64) string {
	switch a := math.Abs(f); {
	case math.IsNaN(f):
		return "-"
	case a >= 100:
		return fmt.Sprintf("%.0f", f)
	case a >= 10:
		return fmt.Sprintf("%.1f", f)
	default:
		return fmt.Sprintf("%.2f", f)
	}
}
