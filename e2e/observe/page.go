package observe

import (
	"context"
	_ "embed"
	"fmt"
	"html/template"
	"io"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

//go:embed page.html
var pageHTML string

// The measures of Grafana's grid, in pixels, on a window of the width of PageWidth.
const (
	PageWidth = 1600
	margin    = 16
	gap       = 8
	cellHigh  = 30
	cellWide  = (PageWidth - 2*margin - 23*gap) / 24.0
)

// Page is dashboards with their data, as one HTML document that needs nothing else.
type Page struct {
	About  string
	Boards []drawnBoard
}

type drawnBoard struct {
	File, Title, Help, Choice string
	Panels                    []drawnPanel
	// High is the height of all of it.
	High int
}

// drawnPanel is a panel, or the heading of a section.
type drawnPanel struct {
	X, Y, W, H  uint32 // in cells
	Row         bool
	Title, Help string
	Empty       string // what is said in place of data
	Numbers     []drawnNumber
	Chart       *chart
	States      *timeline
	Bars        []drawnBar
	Table       *drawnTable
}

type drawnNumber struct{ Name, Text, Colour string }

type drawnBar struct {
	Name, Text, Colour string
	Percent            float64
}

// Draw asks all queries of the dashboards and draws what they give. vars are the values
// of variables by a dashboard's file name; those under "" are for all.
func (c *Client) Draw(ctx context.Context, boards []Board, vars map[string]Variables, w Window, about string) (*Page, error) {
	page := &Page{About: about}
	for _, b := range boards {
		v := vars[""].With(vars[b.File])
		d := drawnBoard{File: b.File, Title: deref(b.Title), Help: deref(b.Description), Choice: choice(b, v)}
		for _, p := range b.Panels {
			if p.RowPanel != nil {
				d.Panels = append(d.Panels, drawnPanel{Row: true, Title: deref(p.RowPanel.Title), Y: p.RowPanel.GridPos.Y, W: 24, H: 1})
				continue
			}
			var answers []Answer
			for _, q := range b.queries(p.Panel) {
				a, err := c.Ask(ctx, q, v, w)
				if err != nil {
					return nil, err
				}
				answers = append(answers, a)
			}
			drawn, err := draw(p.Panel, answers, w)
			if err != nil {
				return nil, err
			}
			d.Panels = append(d.Panels, drawn)
		}
		for _, p := range d.Panels {
			d.High = max(d.High, int(p.Y+p.H)*(cellHigh+gap))
		}
		page.Boards = append(page.Boards, d)
	}
	return page, nil
}

// choice says what the variables of a dashboard are set to.
func choice(b Board, v Variables) string {
	var out string
	for _, l := range b.Templating.List {
		value, ok := v[l.Name]
		switch {
		case !ok || l.Type == dashboard.VariableTypeDatasource:
			continue
		case value == deref(l.AllValue):
			value = "All"
		}
		out += fmt.Sprintf("%s: %s  ", l.Name, value)
	}
	return out
}

// Write writes the page as HTML.
func (p *Page) Write(w io.Writer) error {
	t, err := template.New("page").Funcs(template.FuncMap{"inc": func(n uint32) uint32 { return n + 1 }}).Parse(pageHTML)
	if err != nil {
		return err
	}
	return t.Execute(w, p)
}

// draw draws a panel.
func draw(p *dashboard.Panel, answers []Answer, w Window) (drawnPanel, error) {
	g := p.GridPos
	d := drawnPanel{X: g.X, Y: g.Y, W: g.W, H: g.H, Title: deref(p.Title), Help: deref(p.Description)}
	empty := true
	for _, a := range answers {
		empty = empty && a.Empty()
	}
	if empty {
		d.Empty = deref(p.FieldConfig.Defaults.NoValue)
		if d.Empty == "" {
			d.Empty = "No data"
		}
		return d, nil
	}
	look := lookOf(p.FieldConfig.Defaults)
	switch p.Type {
	case "stat":
		d.Numbers = numbers(p, look, answers)
	case "timeseries":
		d.Chart = newChart(p, look, answers, w)
	case "state-timeline":
		d.States = newTimeline(look, answers, w, d.width(), d.height())
	case "bargauge":
		d.Bars = newBars(look, answers)
	case "table":
		t, err := newTable(p, look, answers)
		if err != nil {
			return d, fmt.Errorf("panel %s: %w", d.Title, err)
		}
		d.Table = t
	default:
		return d, fmt.Errorf("panel %s: nothing draws a %s", d.Title, p.Type)
	}
	return d, nil
}

// width and height are those of what is drawn in a panel, in pixels.
func (d drawnPanel) width() float64 {
	return float64(d.W)*cellWide + float64(d.W-1)*gap - 20
}

func (d drawnPanel) height() float64 {
	return float64(d.H)*cellHigh + float64(d.H-1)*gap - 34
}
