package observe

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/selvage-net/selvage/metrics"
)

const repo = "../.."

// catalogue is which metrics there are, and which labels each has.
type catalogue map[string]map[string]bool

// newCatalogue knows all that an agent shows, and what Prometheus adds.
func newCatalogue(t *testing.T) catalogue {
	t.Helper()
	text, err := os.Open(repo + "/metrics/testdata/metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(text)
	if err != nil {
		t.Fatal(err)
	}
	c := make(catalogue)
	for _, f := range families {
		c.add(f)
	}
	own, err := metrics.New("test").Gatherer().Gather() // those of the process and of Go
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range own {
		c.add(f)
	}
	c["up"] = map[string]bool{}
	c["ALERTS"] = map[string]bool{"alertname": true, "alertstate": true, "severity": true, "namespace": true}
	for _, labels := range c {
		// deploy/observe/scrape.yaml gives these.
		labels["job"], labels["node"], labels["instance"] = true, true, true
	}
	return c
}

func (c catalogue) add(f *dto.MetricFamily) {
	labels := make(map[string]bool)
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = true
		}
	}
	if f.GetType() != dto.MetricType_HISTOGRAM {
		c[f.GetName()] = labels
		return
	}
	for _, suffix := range []string{"_sum", "_count"} {
		c[f.GetName()+suffix] = maps.Clone(labels)
	}
	labels["le"] = true
	c[f.GetName()+"_bucket"] = labels
}

// check returns what is wrong with an expression: metrics that do not exist, and labels
// that they do not have.
func (c catalogue) check(expr string) []string {
	tree, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		return []string{err.Error()}
	}
	var wrong []string
	_ = parser.Walk(visitor(func(n parser.Node) {
		switch n := n.(type) {
		case *parser.VectorSelector:
			labels, ok := c[n.Name]
			if !ok {
				wrong = append(wrong, "there is no metric "+n.Name)
				return
			}
			for _, m := range n.LabelMatchers {
				if m.Name != "__name__" && !labels[m.Name] {
					wrong = append(wrong, n.Name+" has no label "+m.Name)
				}
			}
		case *parser.AggregateExpr:
			has := c.labels(n.Expr)
			for _, l := range n.Grouping {
				if has != nil && !has[l] {
					wrong = append(wrong, fmt.Sprintf("%s has no label %s", n.Expr, l))
				}
			}
		}
	}), tree, nil)
	return wrong
}

// labels are those of all metrics of an expression together. It is nil if one of them
// does not exist, so that nobody complains twice.
func (c catalogue) labels(expr parser.Expr) map[string]bool {
	all, missing := make(map[string]bool), false
	_ = parser.Walk(visitor(func(n parser.Node) {
		if s, ok := n.(*parser.VectorSelector); ok {
			maps.Copy(all, c[s.Name])
			missing = missing || c[s.Name] == nil
		}
	}), expr, nil)
	if missing {
		return nil
	}
	return all
}

// visitor looks at each node of a tree.
type visitor func(parser.Node)

func (v visitor) Visit(n parser.Node, _ []parser.Node) (parser.Visitor, error) {
	if n != nil {
		v(n)
	}
	return v, nil
}

// samples are values of the variables for which all queries can be parsed.
func samples() Variables {
	return Variables{"node": ".*", "namespace": ".*", "policy": ".*", "pool": ".*", "__rate_interval": "1m", "__range": "1h", "datasource": "x"}
}

// TestQueries sees that each query of the dashboards is PromQL, and asks for what agents
// have.
func TestQueries(t *testing.T) {
	known := newCatalogue(t)
	boards, err := Boards(repo)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, b := range boards {
		for _, q := range b.Queries() {
			n++
			expr, err := samples().Expand(q.Expr)
			if err != nil {
				t.Errorf("%s: %v", q, err)
				continue
			}
			for _, w := range known.check(expr) {
				t.Errorf("%s: %s: %s", q, expr, w)
			}
			for _, l := range legendLabels(q.Legend) {
				tree, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
				if err == nil && !known.labels(tree)[l] {
					t.Errorf("%s: the legend has %s, which the query does not", q, l)
				}
			}
		}
		for _, v := range b.Templating.List {
			if v.Query == nil || v.Query.Map == nil {
				continue
			}
			metric, label, ok := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(fmt.Sprint(v.Query.Map["query"]), "label_values("), ")"), ", ")
			expr, err := samples().Expand(metric)
			if !ok || err != nil {
				t.Errorf("%s: variable %s: %v, %v", b.File, v.Name, v.Query.Map, err)
				continue
			}
			for _, w := range known.check("sum by (" + label + ") (" + expr + ")") {
				t.Errorf("%s: variable %s: %s", b.File, v.Name, w)
			}
		}
	}
	if n < 50 {
		t.Errorf("only %d queries were found", n)
	}
}

// TestAlertQueries does the same with the alerts.
func TestAlertQueries(t *testing.T) {
	known := newCatalogue(t)
	rules, err := ReadRules(repo)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range rules.Alerts() {
		for _, w := range known.check(a.Expr) {
			t.Errorf("%s: %s", a.Name, w)
		}
	}
	if len(rules.Alerts()) == 0 {
		t.Error("there are no alerts")
	}
}

// TestCheck has the check find what is wrong.
func TestCheck(t *testing.T) {
	known := newCatalogue(t)
	for expr, want := range map[string]string{
		`selvage_in_sync == 0`:                          "",
		`sum by (node) (selvage_objects{kind="pods"})`:  "",
		`sum by (nod) (selvage_objects)`:                "selvage_objects has no label nod",
		`rate(selvage_nothing_total[5m])`:               "there is no metric selvage_nothing_total",
		`selvage_objects{sort="pods"}`:                  "selvage_objects has no label sort",
		`selvage_in_sync ==`:                            "unexpected end of input",
		`go_goroutines{job="selvage"}`:                  "",
		`selvage_sync_duration_seconds_bucket{le="1"}`:  "",
		`selvage_sync_duration_seconds`:                 "there is no metric selvage_sync_duration_seconds",
		`max(selvage_objects) by (kind) / max(missing)`: "there is no metric missing",
	} {
		got := known.check(expr)
		if (want == "") != (len(got) == 0) || want != "" && !slices.ContainsFunc(got, func(w string) bool { return strings.Contains(w, want) }) {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}

// TestHastened sees that only alerts that wait are told to wait less.
func TestHastened(t *testing.T) {
	rules := Rules{Groups: []Group{{Name: "g", Rules: []Alert{{Name: "at once"}, {Name: "later", For: "10m"}}}}}
	got := rules.Hastened("2s").Alerts()
	if got[0].For != "" || got[1].For != "2s" || rules.Alerts()[1].For != "10m" {
		t.Errorf("%+v, of %+v", got, rules)
	}
}
