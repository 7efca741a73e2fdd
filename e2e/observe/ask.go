package observe

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/api"
	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
)

// Client asks a Prometheus. It is safe for concurrent use.
type Client struct{ api v1.API }

// NewClient returns a client of the Prometheus at a URL, that is reached by the
// transport.
func NewClient(url string, transport http.RoundTripper) (*Client, error) {
	c, err := api.NewClient(api.Config{Address: url, RoundTripper: transport})
	if err != nil {
		return nil, err
	}
	return &Client{v1.NewAPI(c)}, nil
}

// Window is the time that a dashboard shows.
type Window struct {
	From, To time.Time
	// Step is the time between two points of a graph.
	Step time.Duration
}

// Answer is what a query gave.
type Answer struct {
	Query  Query
	Series []Series
}

// Series is one series of an answer. A query for the last values gives one point each.
type Series struct {
	Name   string
	Labels model.Metric
	Points []model.SamplePair
}

// last is the newest value that is a number.
func (s Series) last() float64 {
	for _, p := range slices.Backward(s.Points) {
		if v := float64(p.Value); !math.IsNaN(v) {
			return v
		}
	}
	return math.NaN()
}

// Empty is true if there is nothing to see: no series, or none with a number.
func (a Answer) Empty() bool {
	return !slices.ContainsFunc(a.Series, func(s Series) bool { return !math.IsNaN(s.last()) })
}

// Ask asks one query of a dashboard, as Grafana does.
func (c *Client) Ask(ctx context.Context, q Query, vars Variables, w Window) (Answer, error) {
	a := Answer{Query: q}
	expr, err := vars.Expand(q.Expr)
	if err != nil {
		return a, err
	}
	var value model.Value
	if q.Range {
		value, _, _, err = c.api.QueryRange(ctx, expr, v1.Range{Start: w.From, End: w.To, Step: w.Step})
	} else {
		value, _, _, err = c.api.Query(ctx, expr, w.To)
	}
	if err != nil {
		return a, fmt.Errorf("%s: %s: %w", q, expr, err)
	}
	switch v := value.(type) {
	case model.Matrix:
		for _, s := range v {
			a.Series = append(a.Series, Series{legend(q.Legend, s.Metric), s.Metric, s.Values})
		}
	case model.Vector:
		for _, s := range v {
			a.Series = append(a.Series, Series{legend(q.Legend, s.Metric), s.Metric, []model.SamplePair{{Timestamp: s.Timestamp, Value: s.Value}}})
		}
	default:
		return a, fmt.Errorf("%s: %s: the answer is a %s", q, expr, value.Type())
	}
	return a, nil
}

// Number returns the value of an expression that has one, or NaN if it has none.
func (c *Client) Number(ctx context.Context, expr string) (float64, error) {
	value, _, _, err := c.api.Query(ctx, expr, time.Now())
	if err != nil {
		return 0, fmt.Errorf("%s: %w", expr, err)
	}
	v, ok := value.(model.Vector)
	if !ok {
		return 0, fmt.Errorf("%s: the answer is a %s", expr, value.Type())
	}
	if len(v) != 1 {
		return math.NaN(), nil
	}
	return float64(v[0].Value), nil
}

// Fired is an alert that fires.
type Fired struct {
	Name                string
	Labels, Annotations map[string]string
}

// Firing are the alerts that fire now.
func (c *Client) Firing(ctx context.Context) ([]Fired, error) {
	all, err := c.api.Alerts(ctx)
	if err != nil {
		return nil, fmt.Errorf("alerts: %w", err)
	}
	var firing []Fired
	for _, a := range all.Alerts {
		if a.State == v1.AlertStateFiring {
			firing = append(firing, Fired{string(a.Labels[model.AlertNameLabel]), plain(a.Labels), plain(a.Annotations)})
		}
	}
	return firing, nil
}

func plain(labels model.LabelSet) map[string]string {
	all := make(map[string]string, len(labels))
	for name, value := range labels {
		all[string(name)] = string(value)
	}
	return all
}
