package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/selvage-net/selvage/policy"
)

// none stands in a table for what is not there, as with kubectl.
const none = "<none>"

// maxNames is how many pods a table names.
const maxNames = 10

// writeTable writes a report for people.
func (r poolReport) writeTable(to io.Writer) error {
	w := bufio.NewWriter(to)
	if r.Implicit {
		fmt.Fprintln(w, "There are no IPPools: the podCIDRs of the nodes are the pools, without settings.")
	} else {
		r.writePools(w)
	}
	if len(r.NodeBlocks) > 0 {
		fmt.Fprintln(w)
		r.writeNodeBlocks(w)
	}
	if len(r.PodsOutside) > 0 {
		fmt.Fprintln(w)
		r.writeOutside(w)
	}
	if len(r.Problems) > 0 {
		fmt.Fprintln(w)
		t := newTable(w, "POOL", "ORIGIN", "PROBLEM", "MESSAGE")
		for _, p := range r.Problems {
			t.row(p.Pool, p.Origin, string(p.Reason), p.Message)
		}
		t.end()
	}
	return w.Flush() // tells of the first error of all
}

// table is a table that is written. What it is written to remembers errors.
type table struct{ w *tabwriter.Writer }

func newTable(w *bufio.Writer, headings ...string) table {
	t := table{tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)}
	t.row(headings...)
	return t
}

func (t table) row(cells ...string) { fmt.Fprintln(t.w, strings.Join(cells, "\t")) }
func (t table) end()                { _ = t.w.Flush() }

func (r poolReport) writePools(w *bufio.Writer) {
	t := newTable(w, "NAME", "ORIGIN", "STATE", "NAT", "NODES", "INGRESS", "EGRESS", "FAMILY", "CAPACITY", "ALLOCATED", "FREE", "USED", "BLOCKS")
	for _, p := range r.Pools {
		state, nat := string(p.State), "no"
		if p.Disabled {
			state += ",Disabled"
		}
		if p.NATOutgoing {
			nat = "yes"
		}
		start := []string{p.Name, p.Origin, state, nat, cmp.Or(p.NodeSelector, "all"), cmp.Or(p.Ingress, none), cmp.Or(p.Egress, none)}
		if len(p.Addresses) == 0 {
			t.row(slices.Concat(start, []string{none, "0", "0", "0", none, none})...)
		}
		for _, a := range p.Addresses {
			t.row(slices.Concat(start, []string{a.Family}, a.cells(), []string{p.blocksOf(a.Family)})...)
		}
	}
	t.end()
}

func (r poolReport) writeNodeBlocks(w *bufio.Writer) {
	t := newTable(w, "NODE", "BLOCK", "POOL", "CAPACITY", "ALLOCATED", "FREE", "USED")
	for _, b := range r.NodeBlocks {
		pools := strings.Join(b.Pools, ",")
		if r.Implicit {
			pools = "" // it is one itself
		}
		t.row(slices.Concat([]string{b.Node, b.CIDR.String(), cmp.Or(pools, none)}, b.cells())...)
	}
	t.end()
}

func (r poolReport) writeOutside(w io.Writer) {
	var names []string
	for _, p := range r.PodsOutside[:min(maxNames, len(r.PodsOutside))] {
		names = append(names, p.Namespace+"/"+p.Name)
	}
	if more := len(r.PodsOutside) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("and %d more (-o json has all)", more))
	}
	fmt.Fprintf(w, "Outside of all pools: %s: %s\n", count(len(r.PodsOutside)), strings.Join(names, ", "))
}

// blocksOf writes the blocks of a family.
func (p reportedPool) blocksOf(family string) string {
	var texts []string
	for _, b := range p.Blocks {
		if ipFamily(policy.FamilyOf(b.CIDR.Addr())) == family {
			texts = append(texts, b.CIDR.String())
		}
	}
	return strings.Join(texts, ",")
}

// cells are the capacity, what is allocated, what is free, and how much is used.
func (a addresses) cells() []string {
	used := none
	switch {
	case a.Capacity.Sign() == 0:
	case a.Allocated > 0 && a.UsedPercent < 1:
		used = "<1%"
	default:
		used = strconv.Itoa(int(a.UsedPercent)) + "%" // 100% is full
	}
	return []string{sizeText(a.Capacity), strconv.Itoa(a.Allocated), sizeText(a.Free), used}
}

// sizeText writes a number of addresses: with all digits as long as they tell people
// something, and else the nearest power of two.
func sizeText(n *big.Int) string {
	bits := n.BitLen()
	if bits <= 32 {
		return n.String()
	}
	floor := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	if n.Cmp(floor) == 0 {
		return fmt.Sprintf("2^%d", bits-1)
	}
	// Half-way, by the exponent, is where the square is twice that of the floor.
	if new(big.Int).Mul(n, n).Cmp(new(big.Int).Lsh(new(big.Int).Mul(floor, floor), 1)) < 0 {
		bits--
	}
	return fmt.Sprintf("~2^%d", bits)
}
