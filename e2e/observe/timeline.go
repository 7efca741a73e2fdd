package observe

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/common/model"
)

// timeline is a graph of states over time. All lengths are pixels.
type timeline struct {
	Wide, High, Left, Right float64
	Rows                    []stateRow
	Times                   []tick
	Legend                  []drawnNumber
}

type stateRow struct {
	Name   string
	At     float64 // of the text
	Blocks []stateBlock
}

type stateBlock struct {
	X, Y, W, H float64
	Colour     string
}

// rowHigh is the height of a row, if there is room for all.
const rowHigh = 26

// newTimeline draws the answers of a panel.
func newTimeline(l look, answers []Answer, w Window, wide, high float64) *timeline {
	var all []Series
	for _, a := range answers {
		all = append(all, a.Series...)
	}
	slices.SortFunc(all, func(a, b Series) int { return cmp.Compare(a.Name, b.Name) })
	left := 20.0
	for _, s := range all {
		left = max(left, 12+7*float64(len(s.Name)))
	}
	row := min(rowHigh, (high-axisHigh-legendHigh)/float64(len(all)))
	t := &timeline{Wide: wide, High: float64(len(all))*row + axisHigh, Left: left, Right: wide - timeWide/2}
	x := w.scale(t.Left, t.Right)
	t.Times = w.ticks(t.Left, t.Right)
	seen := make(map[float64]bool)
	for i, s := range all {
		top := float64(i) * row
		drawn := stateRow{Name: s.Name, At: top + row/2 + 4}
		for from, to := range runs(s.Points, w.Step) {
			v := float64(s.Points[from].Value)
			seen[v] = true
			begin, end := x(s.Points[from].Timestamp.Time()), x(s.Points[to].Timestamp.Time().Add(w.Step))
			drawn.Blocks = append(drawn.Blocks, stateBlock{begin, top + 1, min(end, t.Right) - begin, row - 3, l.colour(v)})
		}
		t.Rows = append(t.Rows, drawn)
	}
	for v := range seen {
		t.Legend = append(t.Legend, drawnNumber{Name: l.text(v), Colour: l.colour(v)})
	}
	slices.SortFunc(t.Legend, func(a, b drawnNumber) int { return cmp.Compare(a.Name, b.Name) })
	return t
}

// runs are the stretches of equal values, by their first point and their last one.
func runs(points []model.SamplePair, step time.Duration) func(yield func(from, to int) bool) {
	return func(yield func(from, to int) bool) {
		for from := 0; from < len(points); {
			to := from
			for to+1 < len(points) && points[to+1].Value == points[from].Value &&
				points[to+1].Timestamp.Sub(points[to].Timestamp) <= step*3/2 {
				to++
			}
			if !yield(from, to) {
				return
			}
			from = to + 1
		}
	}
}
