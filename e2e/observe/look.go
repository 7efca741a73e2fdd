package observe

import (
	"math"
	"slices"
	"strconv"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
)

// look is how values are shown.
type look struct {
	unit  string
	max   float64 // 0 is none
	steps []dashboard.Threshold
	names map[string]dashboard.ValueMappingResult
}

func lookOf(c dashboard.FieldConfig) look {
	l := look{unit: deref(c.Unit), max: deref(c.Max)}
	if c.Thresholds != nil {
		l.steps = c.Thresholds.Steps
	}
	l.names = namesOf(c.Mappings)
	return l
}

func namesOf(mappings []dashboard.ValueMapping) map[string]dashboard.ValueMappingResult {
	all := make(map[string]dashboard.ValueMappingResult)
	for _, m := range mappings {
		if m.ValueMap != nil {
			for value, result := range m.ValueMap.Options {
				all[value] = result
			}
		}
	}
	return all
}

// named is the name of a value, if it has one.
func (l look) named(v float64) (dashboard.ValueMappingResult, bool) {
	n, ok := l.names[strconv.FormatFloat(v, 'f', -1, 64)]
	return n, ok
}

func (l look) text(v float64) string {
	if n, ok := l.named(v); ok {
		return deref(n.Text)
	}
	return format(l.unit, v)
}

func (l look) colour(v float64) string {
	if n, ok := l.named(v); ok {
		return colour(deref(n.Color))
	}
	chosen := "text"
	for _, s := range l.steps {
		if s.Value == nil || v >= *s.Value {
			chosen = s.Color
		}
	}
	return colour(chosen)
}

// limits are the values from which on something is to be seen.
func (l look) limits() []dashboard.Threshold {
	return slices.DeleteFunc(slices.Clone(l.steps), func(s dashboard.Threshold) bool { return s.Value == nil })
}

// colour is what Grafana's name of a colour stands for.
func colour(name string) string {
	switch name {
	case "green":
		return "#73bf69"
	case "yellow":
		return "#fade2a"
	case "orange":
		return "#ff9830"
	case "red":
		return "#f2495c"
	}
	return "#d8d9da"
}

// palette is the colour of the i-th series.
func palette(i int) string {
	all := []string{"#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#8ab8ff", "#b877d9", "#ff7383", "#37872d", "#fa6400", "#e0b400", "#a352cc"}
	return all[i%len(all)]
}

// numbers are those of a panel that shows the last values.
func numbers(p *dashboard.Panel, l look, answers []Answer) []drawnNumber {
	labelled := false
	if o, ok := p.Options.(*stat.Options); ok {
		labelled = o.TextMode == "name"
	}
	var all []drawnNumber
	for _, a := range answers {
		for _, s := range a.Series {
			n := drawnNumber{Name: s.Name, Text: l.text(s.last()), Colour: l.colour(s.last())}
			if labelled {
				n.Text = s.Name
			}
			if labelled || len(a.Series) == 1 {
				n.Name = ""
			}
			all = append(all, n)
		}
	}
	return all
}

// newBars are the last values as bars, of which the longest is as wide as it gets
// unless there is an end of the scale.
func newBars(l look, answers []Answer) []drawnBar {
	end := l.max
	if end == 0 {
		for _, a := range answers {
			for _, s := range a.Series {
				end = max(end, s.last())
			}
		}
	}
	var bars []drawnBar
	for _, a := range answers {
		for _, s := range a.Series {
			v := s.last()
			b := drawnBar{Name: s.Name, Text: l.text(v), Colour: l.colour(v)}
			if end > 0 && !math.IsNaN(v) {
				b.Percent = min(100, max(0, v/end*100))
			}
			bars = append(bars, b)
		}
	}
	return bars
}
