package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/selvage-net/selvage/informer"
)

func TestPoolsAreWhatTheAgentReads(t *testing.T) {
	c := &cluster{dir: t.TempDir()}
	if err := c.write(append(clusterManifests(), "west", "east")...); err != nil {
		t.Fatal(err)
	}
	data, err := outgoing("west")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.put("west", data); err != nil {
		t.Fatal(err)
	}
	s, err := informer.Load(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, p := range s.Pools {
		got[p.Name] = p.NATOutgoing
		if len(p.CIDRs) != 2 || p.Err != nil {
			t.Errorf("pool %s has %v (%v)", p.Name, p.CIDRs, p.Err)
		}
	}
	if nat, ok := got["east"]; len(got) != 2 || !got["west"] || !ok || nat {
		t.Errorf("natOutgoing of the pools: %v", got)
	}
	for _, n := range s.Nodes {
		if len(n.Addrs) != 2 {
			t.Errorf("node %s has the addresses %v", n.Name, n.Addrs)
		}
	}
}

func TestSourceTable(t *testing.T) {
	rows := sourceRows()
	for i := range rows {
		rows[i].Off = []netip.Addr{netip.MustParseAddr("10.244.1.14"), netip.MustParseAddr("fd44:1::14")}
		rows[i].On = []netip.Addr{netip.MustParseAddr("172.31.0.10"), netip.MustParseAddr("fd31::10")}
	}
	text := sourceTable(rows)
	if !strings.Contains(text, "│ 10.244.1.14, fd44:1::14 ") || !strings.Contains(text, "│ 172.31.0.10, fd31::10 ") {
		t.Errorf("the table is\n%s", text)
	}
	for line := range strings.Lines(indent(text)) {
		if n := len([]rune(line)); n > 101 {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
}
