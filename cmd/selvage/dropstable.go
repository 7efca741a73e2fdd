package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// dropPrinter writes drops, which can be told of one by one. The first error of all is
// what end returns.
type dropPrinter interface {
	print(all []drop)
	end() error
}

// printer returns one for the format that is wanted. nodes says that they come from more
// than one node.
func (o *dropsOptions) printer(w io.Writer, nodes bool) dropPrinter {
	out := bufio.NewWriter(w)
	if o.output == "json" {
		return &dropLines{out: out}
	}
	return newDropTable(out, nodes)
}

// dropLines are drops as JSON, an object on each line. What it writes to remembers
// errors.
type dropLines struct{ out *bufio.Writer }

func (l *dropLines) print(all []drop) {
	for i := range all {
		_ = json.NewEncoder(l.out).Encode(&all[i])
	}
	_ = l.out.Flush()
}

func (l *dropLines) end() error { return l.out.Flush() }

// dropTable is a table whose columns become wider when they must: later lines may be
// longer than all before, and those are written already. What it writes to remembers
// errors.
type dropTable struct {
	out    *bufio.Writer
	nodes  bool
	widths []int
	begun  bool
}

func newDropTable(out *bufio.Writer, nodes bool) *dropTable {
	return &dropTable{out: out, nodes: nodes}
}

func (t *dropTable) print(all []drop) {
	rows := make([][]string, 0, len(all)+1)
	if !t.begun && len(all) > 0 {
		t.begun = true
		rows = append(rows, t.cells("TIME", "NODE", "DIRECTION", "FROM", "TO", "PORT", "POLICIES", "COUNT"))
	}
	for i := range all {
		n := &all[i]
		rows = append(rows, t.cells(n.Time.UTC().Format(time.RFC3339), n.Node, cmp.Or(n.Direction, none), n.Source.String(), n.Destination.String(),
			n.portText(), n.policiesText(), strconv.Itoa(n.Count)))
	}
	for _, row := range rows {
		for i, cell := range row {
			if i == len(t.widths) {
				t.widths = append(t.widths, 0)
			}
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		last := len(row) - 1
		for i, cell := range row[:last] {
			fmt.Fprintf(t.out, "%-*s   ", t.widths[i], cell)
		}
		fmt.Fprintln(t.out, row[last])
	}
	_ = t.out.Flush()
}

func (t *dropTable) end() error { return t.out.Flush() }

// cells are those of a row.
func (t *dropTable) cells(when, node string, rest ...string) []string {
	if t.nodes {
		return append([]string{when, node}, rest...)
	}
	return append([]string{when}, rest...)
}

// portText is the port and the protocol, as `selvage explain` takes them.
func (n *drop) portText() string {
	text := n.Protocol
	switch {
	case n.Port > 0:
		text = strconv.Itoa(int(n.Port)) + "/" + n.Protocol
	case n.ICMPType != nil:
		text += " type " + strconv.Itoa(int(*n.ICMPType))
	}
	if n.Reply {
		text += " (reply)"
	}
	return text
}

func (n *drop) policiesText() string {
	if n.Reason == dropUnknownPod {
		return "<unknown pod>"
	}
	names := make([]string, 0, len(n.Policies))
	for _, p := range n.Policies {
		names = append(names, p.String())
	}
	return cmp.Or(strings.Join(names, ","), none)
}
