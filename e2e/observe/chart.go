package observe

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"github.com/prometheus/common/model"
)

// chart is a graph of series over time. All lengths are pixels.
type chart struct {
	Wide, High, Left, Right, Top, Bottom float64
	Ticks, Times                         []tick
	Lines                                []line
	Limits                               []line
	// Legend names the lines.
	Legend []drawnNumber
}

// tick is a line of the grid, and what is written at it.
type tick struct {
	At   float64
	Text string
}

// line is one series: its path, and the area below.
type line struct{ Path, Area, Colour string }

// The room that a chart leaves for what is written around it.
const (
	axisWide   = 64
	axisHigh   = 18
	timeWide   = 36
	legendHigh = 18
)

// newChart draws the answers of a panel.
func newChart(p *dashboard.Panel, l look, answers []Answer, w Window) *chart {
	d := drawnPanel{W: p.GridPos.W, H: p.GridPos.H}
	all := sorted(answers)
	c := &chart{Wide: d.width(), Left: axisWide, Right: d.width() - timeWide/2, Top: 6}
	c.High = d.height() - float64(legendRows(all, c.Wide))*legendHigh
	c.Bottom = c.High - axisHigh
	for i, s := range all {
		c.Legend = append(c.Legend, drawnNumber{Name: s.Name, Colour: palette(i)})
	}
	stacked := isStacked(p)
	if stacked {
		all = stack(all)
	}
	top := max(l.max, highest(all))
	step := tickStep(top, l.unit)
	top = max(step, math.Ceil(top/step-1e-9)*step)
	y := func(v float64) float64 { return c.Bottom - v/top*(c.Bottom-c.Top) }
	for v := 0.0; v <= top*1.0001; v += step {
		c.Ticks = append(c.Ticks, tick{y(v), format(l.unit, v)})
	}
	c.Times = w.ticks(c.Left, c.Right)
	for i, s := range slices.Backward(all) { // the first one is on top
		path, area := trace(s, w.scale(c.Left, c.Right), y, c.Bottom, w.Step)
		if !stacked && len(all) > 3 {
			area = ""
		}
		c.Lines = append(c.Lines, line{path, area, palette(i)})
	}
	for _, s := range l.limits() {
		if *s.Value <= top && *s.Value > top/1000 {
			at := y(*s.Value)
			c.Limits = append(c.Limits, line{Path: fmt.Sprintf("M%.1f %.1fH%.1f", c.Left, at, c.Right), Colour: colour(s.Color)})
		}
	}
	return c
}

// sorted are the series of all answers, those of each by name.
func sorted(answers []Answer) []Series {
	var all []Series
	for _, a := range answers {
		series := slices.Clone(a.Series)
		slices.SortFunc(series, func(a, b Series) int { return cmp.Compare(a.Name, b.Name) })
		all = append(all, series...)
	}
	return all
}

// highest is the largest number in series.
func highest(all []Series) float64 {
	top := 0.0
	for _, s := range all {
		for _, p := range s.Points {
			if v := float64(p.Value); !math.IsNaN(v) && !math.IsInf(v, 0) {
				top = max(top, v)
			}
		}
	}
	return top
}

func isStacked(p *dashboard.Panel) bool {
	custom, ok := p.FieldConfig.Defaults.Custom.(*timeseries.FieldConfig)
	return ok && custom.Stacking != nil && deref(custom.Stacking.Mode) == "normal"
}

// legendRows is how many lines of text the names of series take, about.
func legendRows(all []Series, wide float64) int {
	rows, at := 1, 0.0
	for _, s := range all {
		need := 34 + 6.6*float64(len(s.Name))
		if at+need > wide && at > 0 {
			rows, at = rows+1, 0
		}
		at += need
	}
	return min(rows, 4)
}

// stack puts series on top of each other.
func stack(all []Series) []Series {
	sums := make(map[model.Time]model.SampleValue)
	var stacked []Series
	for _, s := range all {
		var points []model.SamplePair
		for _, p := range s.Points {
			if !math.IsNaN(float64(p.Value)) {
				sums[p.Timestamp] += p.Value
			}
			points = append(points, model.SamplePair{Timestamp: p.Timestamp, Value: sums[p.Timestamp]})
		}
		s.Points = points
		stacked = append(stacked, s)
	}
	return stacked
}

// tickStep is a round distance between the lines of a grid that has about four of them.
func tickStep(top float64, unit string) float64 {
	if top <= 0 {
		return 1
	}
	raw := top / 4
	if unit == "bytes" {
		base := math.Pow(1024, math.Floor(math.Log2(max(1, raw))/10))
		return base * math.Pow(2, math.Ceil(math.Log2(raw/base)))
	}
	base := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, m := range []float64{1, 2, 2.5, 5} {
		if raw <= base*m*1.0001 {
			return base * m
		}
	}
	return base * 10
}

// trace is the path of a series, broken where values are missing, and the area between
// it and the bottom.
func trace(s Series, x func(time.Time) float64, y func(float64) float64, bottom float64, step time.Duration) (path, area string) {
	var lines, areas strings.Builder
	var before time.Time
	first := 0.0
	end := func() {
		if !before.IsZero() {
			fmt.Fprintf(&areas, "L%.1f %.1fL%.1f %.1fZ", x(before), bottom, first, bottom)
		}
	}
	for _, p := range s.Points {
		v := float64(p.Value)
		if math.IsNaN(v) || math.IsInf(v, 0) {
			continue
		}
		at := p.Timestamp.Time()
		verb := "L"
		if before.IsZero() || at.Sub(before) > step*3/2 {
			end()
			verb, first = "M", x(at)
			// A point alone would not be seen.
			fmt.Fprintf(&lines, "M%.1f %.1fh1", x(at), y(v))
		}
		fmt.Fprintf(&lines, "%s%.1f %.1f", verb, x(at), y(v))
		fmt.Fprintf(&areas, "%s%.1f %.1f", verb, x(at), y(v))
		before = at
	}
	end()
	return lines.String(), areas.String()
}

// scale maps the window to pixels.
func (w Window) scale(left, right float64) func(time.Time) float64 {
	length := w.To.Sub(w.From).Seconds()
	return func(t time.Time) float64 { return left + t.Sub(w.From).Seconds()/length*(right-left) }
}

// ticks are the times that are written below a graph.
func (w Window) ticks(left, right float64) []tick {
	step := time.Minute
	room := max(2, int((right-left)/90))
	for _, s := range []time.Duration{10 * time.Second, 15 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour} {
		step = s
		if int(w.To.Sub(w.From)/s) <= room {
			break
		}
	}
	layout := "15:04"
	if step < time.Minute {
		layout = "15:04:05"
	}
	x := w.scale(left, right)
	var all []tick
	for t := w.From.Truncate(step).Add(step); !t.After(w.To); t = t.Add(step) {
		all = append(all, tick{x(t), t.Format(layout)})
	}
	return all
}
