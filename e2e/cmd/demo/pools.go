package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/oracle"
)

// sourceRow is a connection whose other end tells what source it sees.
type sourceRow struct {
	From string `json:"from"`
	// To is a pod or a host.
	To string `json:"to"`
	// Node is whose addresses are seen in place of the pod's own while natOutgoing is
	// on; empty if that changes nothing.
	Node string `json:"node,omitempty"`
	// Off and On are the sources that were seen while natOutgoing was off and on, by
	// family.
	Off []netip.Addr `json:"off"`
	On  []netip.Addr `json:"on"`
}

// sourceRows leave the pools, from a pod on the bridge, from the routed one and from
// one of the other pool, and stay inside.
func sourceRows() []sourceRow {
	return []sourceRow{
		{From: "stats", To: "client", Node: "node-a"},
		{From: "db", To: "client", Node: "node-a"},
		{From: "admin", To: "client"},
		{From: "web", To: "stats"},
		{From: "stats", To: "admin"},
		{From: "stats", To: "node-b"},
	}
}

// sourcePort is served everywhere and open on all ways of sourceRows.
const sourcePort = 8080

// masquerade has connections made with natOutgoing off, and then on.
func (c *cluster) masquerade(ctx context.Context, res *result) error {
	if err := c.change(ctx, &step{add: []string{"west", "east"}}); err != nil {
		return err
	}
	res.Sources = sourceRows()
	for _, on := range []bool{false, true} {
		if on {
			if err := c.turnOn(ctx, "west"); err != nil {
				return err
			}
		}
		if err := c.askSources(ctx, res, on); err != nil {
			return err
		}
	}
	return nil
}

// outgoing is the manifest of a pool with natOutgoing on.
func outgoing(pool string) ([]byte, error) {
	data, err := manifests.ReadFile("story/" + pool + ".yaml")
	return bytes.Replace(data, []byte("natOutgoing: false"), []byte("natOutgoing: true"), 1), err
}

// turnOn sets natOutgoing of a pool of node-a, and waits until that is in force.
func (c *cluster) turnOn(ctx context.Context, pool string) error {
	data, err := outgoing(pool)
	if err != nil {
		return err
	}
	if err := c.put(pool, data); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limitPatience)
	defer cancel()
	for {
		rules, err := c.nodes[0].Run(ctx, "nft", "list", "ruleset")
		if err != nil {
			return fmt.Errorf("%s is not masqueraded after %v: %w", pool, limitPatience, err)
		}
		if strings.Contains(rules, "saddr @masquerade-v4 ") && strings.Contains(rules, "saddr @masquerade-v6 ") {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// askSources makes the connections of all rows, and checks what the other ends see.
func (c *cluster) askSources(ctx context.Context, res *result, on bool) error {
	snapshot, err := informer.Load(c.dir)
	if err != nil {
		return err
	}
	var probes []world.Probe
	for _, row := range res.Sources {
		for _, to := range withPort(c.places[row.To].addrs, sourcePort) {
			probes = append(probes, world.Probe{From: c.places[row.From].Namespace, To: to, Protocol: policy.TCP, Want: world.Allowed})
		}
	}
	results := c.world.Probe(ctx, probes...)
	when := map[bool]string{false: "natOutgoing off", true: "natOutgoing on"}[on]
	for i := range res.Sources {
		row := &res.Sources[i]
		seen := make([]netip.Addr, 0, len(policy.Families))
		for f := range policy.Families {
			seen = append(seen, results[i*len(policy.Families)+f].Source.Addr())
		}
		whose, claim := row.From, "its own addresses"
		if on {
			row.On = seen
			if row.Node != "" {
				whose, claim = row.Node, "those of "+row.Node
			}
		} else {
			row.Off = seen
		}
		want := addrsOf(c.places[whose])
		text := fmt.Sprintf("%s: %s sees %s with %s", when, row.To, row.From, claim)
		res.Checks = append(res.Checks, check{Text: text, Passed: fmt.Sprint(seen) == fmt.Sprint(want), Detail: fmt.Sprintf("it sees %v", seen)})
		if translated := whose != row.From; c.masqueraded(snapshot, row) != translated {
			res.Checks = append(res.Checks, check{Text: text, Detail: "the oracle says otherwise"})
		}
	}
	return ctx.Err()
}

// addrsOf are the addresses of a place, IPv4 first.
func addrsOf(p *placed) []netip.Addr {
	var out []netip.Addr
	for _, a := range withPort(p.addrs, 0) {
		out = append(out, a.Addr())
	}
	return out
}

// masqueraded asks the oracle.
func (c *cluster) masqueraded(s policy.Snapshot, row *sourceRow) bool {
	node := ""
	for _, p := range s.Pods {
		if p.Name == row.From {
			node = p.Node
		}
	}
	from, to := addrsOf(c.places[row.From]), addrsOf(c.places[row.To])
	both := true
	for f := range policy.Families {
		p := oracle.Packet{Src: from[f], Dst: to[f], Protocol: policy.TCP, Port: sourcePort}
		both = both && oracle.Masqueraded(s, node, nil, p)
	}
	return both
}

// sourceTable has a row for each connection.
func sourceTable(rows []sourceRow) string {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"from", "to", "source seen, natOutgoing off", "source seen, natOutgoing on"})
	for _, r := range rows {
		t.AppendRow(table.Row{r.From, r.To, listed(r.Off), listed(r.On)})
	}
	return t.Render()
}

func listed(addrs []netip.Addr) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(addrs), " ", ", "), "[]")
}

// showPools runs `selvage pools`, once for people and once to check it.
func (c *cluster) showPools(ctx context.Context, res *result) error {
	args := []string{"pools", "--manifests", c.dir}
	out, err := exec.CommandContext(ctx, c.binary, args...).Output()
	if err != nil {
		return fmt.Errorf("selvage pools: %w", err)
	}
	res.Output = string(out)
	if out, err = exec.CommandContext(ctx, c.binary, append(args, "-o", "json")...).Output(); err != nil {
		return fmt.Errorf("selvage pools: %w", err)
	}
	var report struct {
		Pools []struct {
			Name      string
			Addresses []struct{ Allocated int }
		}
		Problems []any
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return fmt.Errorf("selvage pools: %w", err)
	}
	pods := make(map[string]int)
	for _, n := range c.nodes {
		pods[map[string]string{"node-a": "west", "node-b": "east"}[n.Name]] = len(n.Pods())
	}
	seen := make(map[string]int)
	for _, p := range report.Pools {
		seen[p.Name] = -1
		if len(p.Addresses) == len(policy.Families) && p.Addresses[policy.IPv4] == p.Addresses[policy.IPv6] {
			seen[p.Name] = p.Addresses[policy.IPv4].Allocated
		}
	}
	res.Checks = []check{{
		Text:   fmt.Sprintf("west has the addresses of %d pods, east those of %d, of both families", pods["west"], pods["east"]),
		Passed: fmt.Sprint(seen) == fmt.Sprint(pods), Detail: fmt.Sprint(seen),
	}, {
		Text: "nothing is wrong with the pools", Passed: len(report.Problems) == 0, Detail: fmt.Sprint(report.Problems),
	}}
	return nil
}
