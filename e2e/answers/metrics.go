package answers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/selvage-net/selvage/e2e/world"
)

// patience is how long an agent may take for a change, on a machine that has other
// things to do.
const patience = 20 * time.Second

// Labels are those of a metric.
type Labels map[string]string

// Metrics are what an agent has shown at /metrics, by name.
type Metrics map[string]*dto.MetricFamily

// Scrape reads the metrics of a node's agent.
func Scrape(ctx context.Context, n *world.Node) (Metrics, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return n.DialTCP(ctx, netip.Addr{}, netip.MustParseAddrPort(address))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+world.AgentAddress+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("metrics of the agent of %s: %w", n.Name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metrics of the agent of %s: %s", n.Name, resp.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	m, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("metrics of the agent of %s: %w", n.Name, err)
	}
	return m, nil
}

// Sum adds up all series of a metric that have these labels, and maybe others. Of a
// histogram it is the number of observations.
func (m Metrics) Sum(name string, labels Labels) float64 {
	sum := 0.0
	for _, s := range m[name].GetMetric() {
		all := Labels{}
		for _, l := range s.GetLabel() {
			all[l.GetName()] = l.GetValue()
		}
		both := maps.Clone(all)
		maps.Copy(both, labels)
		if maps.Equal(both, all) {
			sum += s.GetCounter().GetValue() + s.GetGauge().GetValue() + float64(s.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// programmed is how many events the kernel enforces by now.
func (m Metrics) programmed() int {
	return int(m.Sum("selvage_policy_programming_duration_seconds", nil))
}

// Programmed counts the events that a node's kernel enforces since its agent began.
func Programmed(ctx context.Context, n *world.Node) (int, error) {
	m, err := Scrape(ctx, n)
	return m.programmed(), err
}

// WaitProgrammed waits until that many events are enforced, and nothing else is to be
// done.
func WaitProgrammed(ctx context.Context, n *world.Node, events int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		m, err := Scrape(ctx, n)
		if err == nil && m.programmed() >= events && m.Sum("selvage_in_sync", nil) == 1 {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the agent of %s has done %d of %d events after %v", n.Name, m.programmed(), events, patience), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
