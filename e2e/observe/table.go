package observe

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"sigs.k8s.io/yaml"
)

// drawnTable is a table of last values.
type drawnTable struct {
	Heads []string
	Rows  [][]drawnCell
}

type drawnCell struct {
	Text, Colour string
	Number       bool
	Link         bool
}

// record is a row before it is shown: labels and values by the names of their fields.
type record struct {
	labels map[string]string
	values map[string]float64
}

// organized are the options of Grafana's transformation organize.
type organized struct {
	Exclude map[string]bool   `json:"excludeByName"`
	Rename  map[string]string `json:"renameByName"`
	Index   map[string]int    `json:"indexByName"`
}

// newTable draws the answers of a panel.
func newTable(p *dashboard.Panel, l look, answers []Answer) (*drawnTable, error) {
	var o organized
	for _, t := range p.Transformations {
		if t.Id != "organize" {
			continue
		}
		text, err := yaml.Marshal(t.Options)
		if err != nil {
			return nil, err
		}
		if err := yaml.UnmarshalStrict(text, &o); err != nil {
			return nil, err
		}
	}
	records := merge(answers)
	fields := fieldsOf(records, o)
	order(p, records, fields, o)
	t := &drawnTable{}
	for _, f := range fields {
		t.Heads = append(t.Heads, cmp.Or(o.Rename[f], f))
	}
	for _, r := range records {
		var row []drawnCell
		for i, f := range fields {
			row = append(row, cell(p, l, r, f, t.Heads[i]))
		}
		t.Rows = append(t.Rows, row)
	}
	return t, nil
}

// merge makes one table of the answers, by the labels that rows have in common, as
// Grafana's transformation of that name does.
func merge(answers []Answer) []*record {
	var records []*record
	for i, a := range answers {
		field := "Value"
		if len(answers) > 1 {
			field = "Value #" + string(rune('A'+i))
		}
		for _, s := range a.Series {
			labels := plainMetric(s)
			var into *record
			for _, r := range records {
				if _, taken := r.values[field]; !taken && agree(r.labels, labels) {
					into = r
					break
				}
			}
			if into == nil {
				into = &record{map[string]string{}, map[string]float64{}}
				records = append(records, into)
			}
			for name, value := range labels {
				into.labels[name] = value
			}
			into.values[field] = s.last()
		}
	}
	return records
}

func plainMetric(s Series) map[string]string {
	all := make(map[string]string)
	for name, value := range s.Labels {
		all[string(name)] = string(value)
	}
	return all
}

// agree is true if two rows have a label in common, and none of different values.
func agree(a, b map[string]string) bool {
	common := false
	for name, value := range a {
		other, ok := b[name]
		if ok && other != value {
			return false
		}
		common = common || ok
	}
	return common
}

// fieldsOf are the fields that are shown, in their order.
func fieldsOf(records []*record, o organized) []string {
	seen := make(map[string]bool)
	for _, r := range records {
		for name := range r.labels {
			seen[name] = true
		}
		for name := range r.values {
			seen[name] = true
		}
	}
	var fields []string
	for name := range seen {
		if !o.Exclude[name] {
			fields = append(fields, name)
		}
	}
	place := func(name string) int {
		if i, ok := o.Index[name]; ok {
			return i
		}
		return math.MaxInt
	}
	slices.SortFunc(fields, func(a, b string) int { return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a, b)) })
	return fields
}

// order sorts the rows as the panel says.
func order(p *dashboard.Panel, records []*record, fields []string, o organized) {
	options, ok := p.Options.(*table.Options)
	if !ok || len(options.SortBy) == 0 {
		return
	}
	by := options.SortBy[0]
	i := slices.IndexFunc(fields, func(f string) bool { return cmp.Or(o.Rename[f], f) == by.DisplayName })
	if i < 0 {
		return
	}
	slices.SortStableFunc(records, func(a, b *record) int {
		c := cmp.Or(cmp.Compare(a.values[fields[i]], b.values[fields[i]]), strings.Compare(a.labels[fields[i]], b.labels[fields[i]]))
		if deref(by.Desc) {
			return -c
		}
		return c
	})
}

// cell is what a row has in a field, shown as the overrides of its column say.
func cell(p *dashboard.Panel, l look, r *record, field, head string) drawnCell {
	l.steps, l.names = nil, nil // of cells only those of their column count
	c := drawnCell{Colour: colour("")}
	for _, o := range p.FieldConfig.Overrides {
		if o.Matcher.Id != "byName" || fmt.Sprint(o.Matcher.Options) != head {
			continue
		}
		for _, property := range o.Properties {
			l.override(property)
			c.Link = c.Link || property.Id == "links"
		}
	}
	if v, ok := r.values[field]; ok {
		c.Text, c.Colour, c.Number = l.text(v), l.colour(v), len(l.names) == 0
		return c
	}
	c.Text = r.labels[field]
	return c
}

// override changes the look by a property of an override. One that cannot be read
// changes nothing, as in Grafana.
func (l *look) override(property dashboard.DynamicConfigValue) {
	text, err := yaml.Marshal(property.Value)
	if err != nil {
		return
	}
	switch property.Id {
	case "unit":
		l.unit = fmt.Sprint(property.Value)
	case "thresholds":
		var t dashboard.ThresholdsConfig
		if yaml.Unmarshal(text, &t) == nil {
			l.steps = t.Steps
		}
	case "mappings":
		var m []dashboard.ValueMapping
		if yaml.Unmarshal(text, &m) == nil {
			l.names = namesOf(m)
		}
	}
}
