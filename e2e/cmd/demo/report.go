package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/e2e/world"
)

// report prints the story as it goes. The first write error is kept out of the
// way: who closes the terminal does not want to read.
type report struct {
	w       io.Writer
	json    bool
	verbose bool
	colour  bool
	started time.Time

	results []*result
	passed  int
	failed  []string
}

func newReport(out *os.File, o options) *report {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &report{
		w: out, json: o.output == "json", verbose: o.verbose, started: time.Now(),
		colour: err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
	}
}

const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	alarm  = "1;41;37"
)

func (r *report) paint(colour, s string) string {
	if !r.colour || colour == "" {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

func (r *report) printf(format string, args ...any) {
	if !r.json {
		_, _ = fmt.Fprintf(r.w, format, args...)
	}
}

func (r *report) opening() {
	r.printf("%s\n", r.paint(bold, "Selvage: NetworkPolicy, bandwidth and address pools in the kernel, shown with real connections"))
	r.printf(`
        node-a                               node-b                  outside
  ┌─────────────────────────────────┐  ┌──────────────────┐  ┌────────────────────┐
  │  shop/web  shop/api  ops/stats  │  │    shop/web2     │  │   client  scanner  │
  │     └───── bridge cni0 ────┘    │  │    ops/admin     │  │     hosts that     │
  │  shop/db, behind a routed veth  │  │   bridge cni0    │  │   run no cluster   │
  └────────────────┬────────────────┘  └────────┬─────────┘  └─────────┬──────────┘
                   └────────────────────────────┴──────────────────────┘

Nodes, pods and hosts are network namespaces on this machine, with IPv4 and IPv6. On each node
runs a real "selvage agent", which reads Pods, Namespaces, Nodes, NetworkPolicies and IPPools from files.
After every change each source (row) opens a TCP connection to each target (column), over both
families. What is seen must be what the story expects, and what an independent reading of the
API's words (policy/oracle) expects:

`)
	for _, l := range []struct{ colour, cell, meaning string }{
		{green, "✓ open", "seen and expected: both connections were made"},
		{yellow, "✓ drop", "seen and expected: nothing came through"},
		{"", "✓ v6 only", "seen and expected: dropped over IPv4, made over IPv6"},
		{alarm, "✗ open≠drop", "seen open where drop was expected: the demo fails"},
	} {
		r.printf("  %s  %s\n", r.paint(l.colour, pad(l.cell, columnWidth)), l.meaning)
	}
}

func (r *report) heading(i int, title, about string) {
	r.printf("\n\n%s\n%s\n\n", r.paint(bold, fmt.Sprintf("%d of %d: %s", i+1, len(story)+len(acts()), title)), about)
}

// manifests shows what a step adds, to those who want to see it.
func (r *report) manifests(s *step) {
	if !r.verbose || len(s.add) == 0 {
		return
	}
	for _, name := range s.add {
		data, err := manifests.ReadFile("story/" + name + ".yaml")
		if err != nil {
			data = []byte(err.Error())
		}
		r.printf("%s\n\n", r.paint(dim, "    "+strings.ReplaceAll(strings.TrimSpace(string(data)), "\n", "\n    ")))
	}
}

// The widths of the matrix. Seven columns fit into 100 characters.
const (
	rowWidth    = 10
	columnWidth = 12
)

// step prints the matrix and the checks of a step and counts them.
func (r *report) step(s *step, res *result) {
	r.results = append(r.results, res)
	for _, c := range res.Cells {
		r.count(c.passed(), fmt.Sprintf("%s: %s to %s: claimed %s, oracle says %s, seen %s%s", s.title, c.From, c.To, c.Claim, c.Oracle, c.Seen, suffix(c.err)))
	}
	if !r.json {
		r.matrix(s, res.Cells)
	}
	r.checks(res)
}

// checks prints the checks of a result and counts them.
func (r *report) checks(res *result) {
	for _, c := range res.Checks {
		r.count(c.Passed, fmt.Sprintf("%s: %s: no: %s", res.Title, c.Text, c.Detail))
		if c.Passed {
			r.printf("  %s %s\n", r.paint(green, "✓"), c.Text)
		} else {
			r.printf("  %s %s: %s\n", r.paint(alarm, "✗"), c.Text, c.Detail)
		}
	}
}

// matrix prints a row for each source and a column for each target.
func (r *report) matrix(s *step, cells []*cell) {
	header := strings.Repeat(" ", rowWidth+2)
	for _, column := range s.columns {
		header += pad(column, columnWidth)
	}
	r.printf("%s\n", strings.TrimRight(header, " "))
	for _, row := range s.claims {
		r.printf("  %s", pad(row.from, rowWidth))
		space := ""
		for i := range s.columns {
			text, colour := "·", dim
			if claims[row.claims[i]] != "" {
				text, colour = cells[0].text()
				cells = cells[1:]
			}
			r.printf("%s%s", space, r.paint(colour, text))
			space = pad(" ", columnWidth-len([]rune(text)))
		}
		r.printf("\n")
	}
}

// text is how a cell looks, and its colour.
func (c *cell) text() (text, colour string) {
	if !c.passed() {
		return "✗ " + c.Seen + "≠" + c.Claim, alarm
	}
	return "✓ " + c.Seen, map[string]string{"open": green, "drop": yellow}[c.Seen]
}

// pad fills up to width characters, as fmt counts bytes.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-len([]rune(s))))
}

func suffix(err error) string {
	if err == nil {
		return ""
	}
	return " (" + err.Error() + ")"
}

func (r *report) count(passed bool, failure string) {
	if passed {
		r.passed++
	} else {
		r.failed = append(r.failed, failure)
	}
}

// closing prints the last line and returns the number of failures.
func (r *report) closing(c *cluster) int {
	if r.json {
		out := json.NewEncoder(r.w)
		out.SetIndent("", "  ")
		_ = out.Encode(struct {
			Passed int       `json:"passed"`
			Failed []string  `json:"failed"`
			Steps  []*result `json:"steps"`
		}{r.passed, append([]string{}, r.failed...), r.results})
		return len(r.failed)
	}
	if len(r.failed) > 0 {
		r.printf("\nThese are not as they should be:\n")
		for _, f := range r.failed {
			r.printf("  %s %s\n", r.paint(alarm, "✗"), f)
		}
		r.agentLogs(c)
	}
	r.printf("\n%s\n\n", r.paint(dim, fmt.Sprintf("%d steps in %.0f seconds", len(r.results), time.Since(r.started).Seconds())))
	r.printf("demo: %d passed, %d failed\n", r.passed, len(r.failed))
	return len(r.failed)
}

// agentLogs shows on standard error what the agents said last.
func (r *report) agentLogs(c *cluster) {
	for _, a := range c.agents {
		fmt.Fprintf(os.Stderr, "\nThe last lines of the agent of %s:\n", a.Node.Name)
		for _, line := range a.LogTail(15) {
			fmt.Fprintf(os.Stderr, "  %s\n", line)
		}
	}
}

// directions tell how to look around.
func (r *report) directions(c *cluster) {
	fmt.Fprintf(os.Stderr, "\nThe world stays until Ctrl-C. The agents follow the manifests in\n  %s\nLook around with, for example:\n", c.dir)
	for _, n := range c.nodes {
		fmt.Fprintf(os.Stderr, "  ip netns exec %s nft list ruleset\n", n.ID)
	}
	web := c.places["web"]
	fmt.Fprintf(os.Stderr, "  ip netns exec %s nc -v %s 8080\n", c.places["stats"].ID, web.addrs[0])
	fmt.Fprintf(os.Stderr, "  ip netns exec %s curl -s http://%s/metrics\n", c.nodes[0].ID, world.AgentAddress)
}
