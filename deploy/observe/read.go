package observe

import (
	"encoding/json"

	"github.com/grafana/grafana-foundation-sdk/go/bargauge"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/statetimeline"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// Dashboard is one of Grafana's, in the form that its import and its sidecar take.
type Dashboard = dashboard.Dashboard //nolint:staticcheck // its successor is for the API of the newest versions alone

// Read reads a dashboard with panels of the kinds that are used here.
func Read(text []byte) (Dashboard, error) {
	// Grafana's package has its own idea of who knows the types.
	known := cog.NewRuntime()
	known.RegisterDataqueryVariant(prometheus.VariantConfig())
	for _, v := range []variants.PanelcfgConfig{
		stat.VariantConfig(), timeseries.VariantConfig(), statetimeline.VariantConfig(), bargauge.VariantConfig(), table.VariantConfig(),
	} {
		known.RegisterPanelcfgVariant(v)
	}
	var d Dashboard
	err := json.Unmarshal(text, &d)
	return d, err
}
