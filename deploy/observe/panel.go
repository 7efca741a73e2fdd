package observe

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/grafana/grafana-foundation-sdk/go/bargauge"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/statetimeline"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// kind is how a panel shows its data.
type kind int

const (
	number kind = iota // the last value, large, one for each series
	graph              // series over time
	states             // series over time, of which only the state matters
	bars               // the last values, as bars
	rows               // the last values, as a table: see column
)

// panel is one panel of a dashboard.
type panel struct {
	kind  kind
	title string
	// help says what is shown, and what to do if it is not as it should be.
	help string
	// unit is Grafana's name of it.
	unit    string
	queries []query
	// wide and high are in the units of Grafana's grid, which is 24 wide. By default
	// high is that of its kind.
	wide, high uint32
	// above colours values from the first one that is not smaller than a limit on.
	above []limit
	// names are what values are called, in place of numbers.
	names map[int]name
	// stacked graphs are on top of each other.
	stacked bool
	// max is the end of the scale; 0 leaves it to the data.
	max float64
	// empty is what a panel without data says.
	empty string
	// columns are those of rows, from left to right; order is the column that they are
	// ordered by, from the smallest value or, with a minus before it, the largest.
	columns []column
	order   string
	// labelled has numbers show the series' legends and not their values.
	labelled bool
}

// query is one of a panel's queries, in PromQL. The legend names its series, by
// their labels, as in {{node}}.
type query struct{ expr, legend string }

// limit is the colour of values from a limit on.
type limit struct {
	from   float64
	colour string
}

// name is what a value is called, and its colour.
type name struct{ text, colour string }

// column is one of a table: of a label if query is 0, or else of the values of the
// panel's first query, second query and so on.
type column struct {
	query int
	label string // the label, or the title of a column of values
	unit  string
	above []limit
	names map[int]name
	// link is the path of the dashboard that a cell leads to.
	link string
}

// Colours are Grafana's.
const (
	green  = "green"
	yellow = "yellow"
	orange = "orange"
	red    = "red"
	plain  = "text"
)

// bad colours all values but zero.
func bad(colour string) []limit { return []limit{{0.0001, colour}} }

// source is the datasource that the dashboard's variable names.
func source() common.DataSourceRef {
	typ, uid := "prometheus", "${datasource}"
	return common.DataSourceRef{Type: &typ, Uid: &uid}
}

// build makes Grafana's panel. id tells the panels of a dashboard apart.
func (p panel) build(id uint32) (dashboard.Panel, error) {
	var made dashboard.Panel
	var err error
	switch p.kind {
	case number:
		made, err = p.number()
	case graph:
		made, err = p.graph()
	case states:
		made, err = p.states()
	case bars:
		made, err = p.bars()
	case rows:
		made, err = p.rows()
	}
	if err != nil {
		return made, fmt.Errorf("panel %s: %w", p.title, err)
	}
	where := source()
	made.Id, made.Title, made.Description, made.Datasource = &id, &p.title, &p.help, &where
	made.GridPos = &dashboard.GridPos{W: p.wide, H: p.high}
	if p.high == 0 {
		made.GridPos.H = map[kind]uint32{number: 4, graph: 8, states: 7, bars: 7, rows: 9}[p.kind]
	}
	if made.FieldConfig == nil {
		made.FieldConfig = dashboard.NewFieldConfigSource()
	}
	defaults := &made.FieldConfig.Defaults
	defaults.Unit, defaults.Thresholds, defaults.Mappings = &p.unit, thresholds(p.above), mappings(p.names)
	if p.max > 0 {
		defaults.Max = &p.max
	}
	if p.empty != "" {
		defaults.NoValue = &p.empty
	}
	return made, nil
}

// targets are the queries; at is true for those of the last values alone.
func (p panel) targets(at bool) []cog.Builder[variants.Dataquery] {
	var all []cog.Builder[variants.Dataquery]
	for i, q := range p.queries {
		b := prometheus.NewDataqueryBuilder().RefId(refID(i)).Expr(q.expr).Datasource(source()).
			EditorMode(prometheus.QueryEditorModeCode).LegendFormat(q.legend)
		switch {
		case p.kind == rows:
			b = b.Instant().Format(prometheus.PromQueryFormatTable)
		case at:
			b = b.Instant()
		default:
			b = b.Range()
		}
		all = append(all, b)
	}
	return all
}

// refID is how Grafana calls the i-th query of a panel.
func refID(i int) string { return string(rune('A' + i)) }

func (p panel) number() (dashboard.Panel, error) {
	text, colour := common.BigValueTextModeAuto, common.BigValueColorModeValue
	if p.labelled {
		text = common.BigValueTextModeName
	}
	if p.above == nil && p.names == nil {
		colour = common.BigValueColorModeNone
	}
	return stat.NewPanelBuilder().Targets(p.targets(true)).ReduceOptions(lastValue()).
		ColorMode(colour).TextMode(text).GraphMode(common.BigValueGraphModeNone).Orientation(common.VizOrientationAuto).
		Build()
}

func (p panel) graph() (dashboard.Panel, error) {
	b := timeseries.NewPanelBuilder().Targets(p.targets(false)).Min(0).
		LineWidth(1).FillOpacity(10).ShowPoints(common.VisibilityModeNever).
		Legend(common.NewVizLegendOptionsBuilder().DisplayMode(common.LegendDisplayModeList).Placement(common.LegendPlacementBottom).ShowLegend(true)).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending))
	if p.stacked {
		b = b.FillOpacity(50).Stacking(common.NewStackingConfigBuilder().Mode(common.StackingModeNormal))
	}
	if p.above != nil {
		b = b.ThresholdsStyle(common.NewGraphThresholdsStyleConfigBuilder().Mode(common.GraphThresholdsStyleModeDashed))
	}
	return b.Build()
}

func (p panel) states() (dashboard.Panel, error) {
	return statetimeline.NewPanelBuilder().Targets(p.targets(false)).
		MergeValues(true).ShowValue(common.VisibilityModeNever).RowHeight(0.8).FillOpacity(80).
		Legend(common.NewVizLegendOptionsBuilder().DisplayMode(common.LegendDisplayModeList).Placement(common.LegendPlacementBottom).ShowLegend(true)).
		Build()
}

func (p panel) bars() (dashboard.Panel, error) {
	return bargauge.NewPanelBuilder().Targets(p.targets(true)).ReduceOptions(lastValue()).Min(0).
		Orientation(common.VizOrientationHorizontal).DisplayMode(common.BarGaugeDisplayModeBasic).
		Build()
}

func lastValue() cog.Builder[common.ReduceDataOptions] {
	return common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"})
}

// rows merges the results of all queries into one table, by the labels that they
// have in common.
func (p panel) rows() (dashboard.Panel, error) {
	b := table.NewPanelBuilder().Targets(p.targets(true))
	hidden, titles, places := map[string]any{"Time": true}, map[string]any{}, map[string]any{}
	shown := make([]bool, len(p.queries))
	for i, c := range p.columns {
		field := c.label
		if c.query > 0 {
			field = "Value #" + refID(c.query-1)
			if len(p.queries) == 1 {
				field = "Value"
			}
			titles[field] = c.label
			shown[c.query-1] = true
		}
		places[field] = i
		if properties := c.properties(); len(properties) > 0 {
			b = b.OverrideByName(c.label, properties)
		}
	}
	for i, shown := range shown {
		if !shown {
			hidden["Value #"+refID(i)], hidden["Value"] = true, true
		}
	}
	if p.order != "" {
		by, descending := p.order, false
		if by[0] == '-' {
			by, descending = by[1:], true
		}
		b = b.SortBy([]cog.Builder[common.TableSortByFieldState]{
			common.NewTableSortByFieldStateBuilder().DisplayName(by).Desc(descending),
		})
	}
	return b.Footer(common.NewTableFooterOptionsBuilder().Reducer([]string{"sum"})).WithTransformation(dashboard.DataTransformerConfig{Id: "merge", Options: map[string]any{}}).
		WithTransformation(dashboard.DataTransformerConfig{Id: "organize", Options: map[string]any{
			"excludeByName": hidden, "renameByName": titles, "indexByName": places,
		}}).Build()
}

// properties are what the cells of a column have that others have not.
func (c column) properties() []dashboard.DynamicConfigValue {
	var all []dashboard.DynamicConfigValue
	add := func(id string, value any) { all = append(all, dashboard.DynamicConfigValue{Id: id, Value: value}) }
	if c.unit != "" {
		add("unit", c.unit)
	}
	if c.names != nil {
		add("mappings", mappings(c.names))
	}
	if c.above != nil {
		add("thresholds", thresholds(c.above))
	}
	if c.above != nil || c.names != nil {
		add("custom.cellOptions", map[string]any{"type": "color-text"})
	}
	if c.link != "" {
		add("links", []map[string]any{{"title": "show", "url": c.link}})
	}
	return all
}

// thresholds are Grafana's form of limits. Below the first one all is well, if there
// is any.
func thresholds(above []limit) *dashboard.ThresholdsConfig {
	first := plain
	if len(above) > 0 {
		first = green
	}
	steps := []dashboard.Threshold{{Color: first}}
	for _, l := range above {
		steps = append(steps, dashboard.Threshold{Value: &l.from, Color: l.colour})
	}
	return &dashboard.ThresholdsConfig{Mode: dashboard.ThresholdsModeAbsolute, Steps: steps}
}

// mappings are Grafana's form of names.
func mappings(names map[int]name) []dashboard.ValueMapping {
	if names == nil {
		return nil
	}
	var values []int
	for v := range names {
		values = append(values, v)
	}
	slices.Sort(values)
	options := make(map[string]dashboard.ValueMappingResult)
	for i, v := range values {
		n, index := names[v], int32(i)
		options[strconv.Itoa(v)] = dashboard.ValueMappingResult{Text: &n.text, Color: &n.colour, Index: &index}
	}
	return []dashboard.ValueMapping{{ValueMap: &dashboard.ValueMap{Type: dashboard.MappingTypeValueToText, Options: options}}}
}
