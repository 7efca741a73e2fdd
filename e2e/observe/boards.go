package observe

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"

	"github.com/selvage-net/selvage/deploy/observe"
)

// Board is a dashboard as its file has it.
type Board struct {
	// File is the file's name without .json.
	File string
	observe.Dashboard
}

// Boards reads the dashboards of a repository, as an operator gets them, in the order
// of their titles but with that of the cluster first.
func Boards(repo string) ([]Board, error) {
	files, err := filepath.Glob(filepath.Join(repo, "deploy", "observe", "dashboards", "*.json"))
	if err != nil {
		return nil, err
	}
	var boards []Board
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		d, err := observe.Read(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		name := filepath.Base(file)
		boards = append(boards, Board{File: name[:len(name)-len(".json")], Dashboard: d})
	}
	if len(boards) == 0 {
		return nil, fmt.Errorf("no dashboards in %s", repo)
	}
	order := []string{"cluster", "node", "policy", "bandwidth", "pools"}
	slices.SortFunc(boards, func(a, b Board) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.File), slices.Index(order, b.File)), cmp.Compare(a.File, b.File))
	})
	return boards, nil
}

// Query is one query of a panel.
type Query struct {
	// Board and Panel are the titles of where it is.
	Board, Panel string
	// RefID tells those of a panel apart.
	RefID string
	// Expr is as the file has it, with variables.
	Expr string
	// Legend names the series, see [legend].
	Legend string
	// Range is true if it asks for values over time, and not only for the last ones.
	Range bool
}

func (q Query) String() string { return fmt.Sprintf("%s / %s / %s", q.Board, q.Panel, q.RefID) }

// Queries are all of a dashboard.
func (b Board) Queries() []Query {
	var all []Query
	for _, p := range b.Panels {
		if p.Panel != nil {
			all = append(all, b.queries(p.Panel)...)
		}
	}
	return all
}

// queries are those of a panel.
func (b Board) queries(p *dashboard.Panel) []Query {
	var all []Query
	for _, t := range p.Targets {
		q, ok := t.(*prometheus.Dataquery)
		if !ok {
			// The deploy module's tests see to it that there are no others.
			panic(fmt.Sprintf("%s: a query of type %T", deref(p.Title), t))
		}
		all = append(all, Query{
			Board: deref(b.Title), Panel: deref(p.Title), RefID: deref(q.RefId), Expr: q.Expr,
			Legend: deref(q.LegendFormat), Range: deref(q.Range),
		})
	}
	return all
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// Variables are values of a dashboard's variables, Grafana's own among them.
type Variables map[string]string

// With returns these and more, which go first.
func (v Variables) With(more Variables) Variables {
	all := maps.Clone(v)
	maps.Copy(all, more)
	return all
}

// variable is a use of one: $name or ${name}.
var variable = regexp.MustCompile(`\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})`)

// Expand puts the values into an expression. A variable without a value is an error.
func (v Variables) Expand(expr string) (string, error) {
	var err error
	out := variable.ReplaceAllStringFunc(expr, func(use string) string {
		m := variable.FindStringSubmatch(use)
		value, ok := v[m[1]+m[2]]
		if !ok {
			err = fmt.Errorf("nothing is known of the variable %s in %s", use, expr)
		}
		return value
	})
	return out, err
}
