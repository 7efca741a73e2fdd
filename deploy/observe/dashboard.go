package observe

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// board is a dashboard.
type board struct {
	// file is the name of its file, without .json; its UID is this after "selvage-".
	file  string
	title string
	help  string
	// variables narrow it down, besides the datasource.
	variables []variable
	sections  []section
}

// section is a part of a dashboard with a heading.
type section struct {
	title  string
	panels []panel
}

// variable lets the reader choose among the values that a label has in a metric.
type variable struct {
	name, metric string
	// single is true if one value has to be chosen; otherwise it may be any number,
	// and is all at first.
	single bool
}

// boards are all dashboards.
func boards() []board {
	return []board{clusterBoard(), nodeBoard(), policyBoard(), bandwidthBoard(), poolsBoard()}
}

// Dashboards returns Grafana's dashboards as JSON, by the names of their files.
func Dashboards() (map[string][]byte, error) {
	all := make(map[string][]byte)
	for _, b := range boards() {
		text, err := b.json()
		if err != nil {
			return nil, fmt.Errorf("dashboard %s: %w", b.file, err)
		}
		all[b.file+".json"] = text
	}
	return all, nil
}

// tag is what all dashboards have in common, so that each leads to the others.
const tag = "selvage"

func (b board) json() ([]byte, error) {
	made, err := b.build()
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err = e.Encode(made)
	return text.Bytes(), err
}

func (b board) build() (Dashboard, error) {
	d := dashboard.NewDashboardBuilder(b.title) //nolint:staticcheck // see Dashboard
	d.Uid("selvage-"+b.file).Description(b.help).Tags([]string{tag}).
		Timezone("browser").Time("now-3h", "now").Refresh("30s").Tooltip(dashboard.DashboardCursorSyncCrosshair)
	d.Link(dashboard.NewDashboardLinkBuilder("Selvage").Type(dashboard.DashboardLinkTypeDashboards).Tags([]string{tag}).
		AsDropdown(true).IncludeVars(true).KeepTime(true))
	d.WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus"))
	for _, v := range b.variables {
		d.WithVariable(v.build())
	}
	id := uint32(1)
	for _, s := range b.sections {
		d.WithRow(dashboard.NewRowBuilder(s.title).Id(id))
		id++
		for _, p := range s.panels {
			made, err := p.build(id)
			if err != nil {
				return Dashboard{}, err
			}
			d.WithPanel(ready(made))
			id++
		}
	}
	return d.Build()
}

// ready is a panel that is built already.
type ready dashboard.Panel

// Build returns it.
func (r ready) Build() (dashboard.Panel, error) { return dashboard.Panel(r), nil }

func (v variable) build() *dashboard.QueryVariableBuilder {
	values := fmt.Sprintf("label_values(%s, %s)", v.metric, v.name)
	b := dashboard.NewQueryVariableBuilder(v.name).Datasource(source()).Definition(values).
		Query(dashboard.StringOrMap{Map: map[string]any{"qryType": 1, "query": values, "refId": "PrometheusVariableQueryEditor-VariableQuery"}}).
		Refresh(dashboard.VariableRefreshOnTimeRangeChanged).Sort(dashboard.VariableSortNaturalAsc)
	if v.single {
		return b
	}
	// Of all also those are part that do not have the label.
	everything, chosen := "All", "$__all"
	return b.Multi(true).IncludeAll(true).AllValue(".*").Current(dashboard.VariableOption{
		Text: dashboard.StringOrArrayOfString{String: &everything}, Value: dashboard.StringOrArrayOfString{String: &chosen},
	})
}
