package observe

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestFormat writes values as Grafana does.
func TestFormat(t *testing.T) {
	for _, tc := range []struct {
		unit string
		v    float64
		want string
	}{
		{"short", 0, "0"}, {"short", 999, "999"}, {"short", 1500, "1.5 K"}, {"short", 2500000, "2.5 Mil"}, {"short", math.Ldexp(1, 64), "18.4 Quint"},
		{"short", 0.25, "0.25"}, {"percentunit", 0.9375, "93.8 %"}, {"percentunit", 1, "100 %"},
		{"s", 0, "0 s"}, {"s", 0.0042, "4.2 ms"}, {"s", 0.00012, "120 µs"}, {"s", 90, "1.5 min"}, {"s", 7200, "2 h"}, {"s", 12, "12 s"},
		{"bytes", 1536, "1.5 KiB"}, {"bytes", 64 << 20, "64 MiB"}, {"bytes", 0, "0 B"},
		{"bps", 10e6, "10 Mb/s"}, {"pps", 1234, "1.23 kp/s"}, {"pps", 0.5, "0.5 p/s"}, {"cps", 12, "12 c/s"}, {"cps", 0.0123, "0.0123 c/s"},
		{"short", math.NaN(), "–"}, {"short", math.Inf(1), "+Inf"}, {"string", 7, "7"}, {"short", -1500, "-1.5 K"},
	} {
		if got := format(tc.unit, tc.v); got != tc.want {
			t.Errorf("%v %s: %q, want %q", tc.v, tc.unit, got, tc.want)
		}
	}
}

// TestTickStep has grids of about four lines, at round values.
func TestTickStep(t *testing.T) {
	for _, tc := range []struct {
		top  float64
		unit string
		want float64
	}{
		{0, "short", 1}, {1, "short", 0.25}, {10, "short", 2.5}, {90, "pps", 25}, {41, "short", 20}, {0.003, "s", 0.001},
		{64 << 20, "bytes", 16 << 20}, {3000, "bytes", 1024},
	} {
		if got := tickStep(tc.top, tc.unit); math.Abs(got-tc.want) > tc.want/1e6 {
			t.Errorf("%v %s: %v, want %v", tc.top, tc.unit, got, tc.want)
		}
	}
}

// fakePrometheus answers each query with the same series, whose labels all have the
// value of a name that somebody has chosen.
func fakePrometheus(t *testing.T, name string, value float64) *Client {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		labels := map[string]string{}
		for _, l := range []string{"node", "namespace", "policy", "pool", "kind", "direction", "family", "reason", "bridge", "engine", "version", "alertname"} {
			labels[l] = name
		}
		text, now := fmt.Sprint(value), float64(time.Now().Unix())
		series, typ := map[string]any{"metric": labels, "value": []any{now, text}}, "vector"
		if strings.HasSuffix(r.URL.Path, "query_range") {
			series, typ = map[string]any{"metric": labels, "values": []any{[]any{now - 2, text}, []any{now - 1, text}}}, "matrix"
		}
		err := json.NewEncoder(w).Encode(map[string]any{"status": "success", "data": map[string]any{"resultType": typ, "result": []any{series}}})
		if err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	c, err := NewClient(s.URL, http.DefaultTransport)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// draw writes all dashboards, as a Prometheus answers.
func drawAll(t *testing.T, c *Client) string {
	t.Helper()
	boards, err := Boards(repo)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	page, err := c.Draw(t.Context(), boards, map[string]Variables{"": samples()}, Window{now.Add(-time.Minute), now, time.Second}, "a test")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := page.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestPage draws all dashboards: each panel is there, with data, and what users have
// named is text and nothing else.
func TestPage(t *testing.T) {
	const hostile = `</span><script>alert("1")</script>`
	html := drawAll(t, fakePrometheus(t, hostile, 1))
	if strings.Contains(html, "<script") {
		t.Error("a label's value is part of the document")
	}
	if !strings.Contains(html, "&lt;script&gt;") {
		t.Error("no label's value is shown")
	}
	if strings.Contains(html, "No data") || strings.Contains(html, "ZgotmplZ") {
		t.Error("panels are empty, or html/template had to take something out")
	}
	boards, err := Boards(repo)
	if err != nil {
		t.Fatal(err)
	}
	panels := 0
	for _, b := range boards {
		for _, p := range b.Panels {
			if p.Panel != nil {
				panels++
			}
		}
	}
	if got := strings.Count(html, `class="panel"`); got != panels {
		t.Errorf("%d panels of %d are drawn", got, panels)
	}
	if external := regexp.MustCompile(`(?:src|href)="[^#]`).FindString(html); external != "" {
		t.Errorf("it needs something else: %s", external)
	}
}

// TestEmpty says of panels without numbers that they have none.
func TestEmpty(t *testing.T) {
	html := drawAll(t, fakePrometheus(t, "n1", math.NaN()))
	if !strings.Contains(html, "No data") || !strings.Contains(html, "No alert fires.") {
		t.Error("panels without data do not say so")
	}
}
