package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/selvage-net/selvage/policy"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares with a file in testdata, which -update writes.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("it differs from %s (-want +got):\n%s", file, diff)
	}
}

func cidrs(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// podsAt are pods of shop with one address each, counted up from the first.
func podsAt(name, first string, n int) []*policy.Pod {
	var all []*policy.Pod
	a := netip.MustParseAddr(first)
	for i := range n {
		all = append(all, &policy.Pod{
			Meta: policy.Meta{Namespace: "shop", Name: fmt.Sprintf("%s-%02d", name, i)}, Node: "n1", Addrs: []netip.Addr{a},
		})
		a = a.Next()
	}
	return all
}

func nodesWithBlocks() []*policy.Node {
	return []*policy.Node{
		{Meta: policy.Meta{Name: "n2"}, PodCIDRs: cidrs("10.244.2.0/24"), Created: 1000, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}},
		{Meta: policy.Meta{Name: "n1"}, PodCIDRs: cidrs("10.244.1.0/24", "fd00:10:244:1::/64"), Created: 1000},
		{Meta: policy.Meta{Name: "n3"}, PodCIDRs: cidrs("10.5.0.0/29"), Created: 1000},
	}
}

// mixedPools has one of everything that a report can show.
func mixedPools() policy.Snapshot {
	zone, err := labels.Parse("zone=a,disk in (ssd)")
	if err != nil {
		panic(err)
	}
	dual := &policy.Pod{Meta: policy.Meta{Namespace: "shop", Name: "dual"}, Node: "n1", Addrs: []netip.Addr{
		netip.MustParseAddr("10.244.1.200"), netip.MustParseAddr("fd00:10:244:1::2"),
	}}
	s := policy.Snapshot{
		Nodes: nodesWithBlocks(),
		Pods:  append(podsAt("web", "10.244.1.2", 3), dual),
		Pools: []*policy.Pool{
			{Meta: policy.Meta{Name: "pods"}, Created: 1, CIDRs: cidrs("10.244.0.0/16", "fd00:10:244::/48"), NATOutgoing: true, Egress: 100_000_000},
			{Meta: policy.Meta{Name: "old"}, Created: 2, CIDRs: cidrs("10.9.0.0/28"), Nodes: zone, Disabled: true},
			{Meta: policy.Meta{Name: "wide"}, Created: 3, CIDRs: cidrs("10.8.0.0/24", "10.96.0.0/16", "10.244.3.0/24"), Ingress: 1_500_000},
			{Meta: policy.Meta{Name: "nodes"}, Created: 4, CIDRs: cidrs("192.0.2.0/24"), Nodes: labels.Nothing()},
			{Meta: policy.Meta{Name: "garbled"}, Created: 5, Err: errors.New("spec.cidrs[0]: \"10.0.0.0/33\" is no block of addresses")},
			{Meta: policy.Meta{Name: "default"}, Created: 6, Origin: policy.OriginCalico, CIDRs: cidrs("10.244.0.0/16"), NATOutgoing: true},
			{Meta: policy.Meta{Name: "more"}, Created: 7, Origin: policy.OriginCalico, CIDRs: cidrs("10.7.0.0/24")},
		},
		Services: []*policy.ServiceCIDR{{Meta: policy.Meta{Name: "kubernetes"}, CIDRs: cidrs("10.96.0.0/12")}},
	}
	s.Pods = append(s.Pods, podsAt("old", "10.9.0.0", 15)...)
	s.Pods = append(s.Pods, podsAt("mac", "172.16.0.1", 12)...)
	s.Pods = append(s.Pods, &policy.Pod{
		Meta: policy.Meta{Namespace: "shop", Name: "host"}, HostNetwork: true, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")},
	})
	return s
}

// TestPoolReport compares with testdata what people and programs get to see.
func TestPoolReport(t *testing.T) {
	mixed := newPoolReport(mixedPools(), cidrs("10.7.0.128/25"))
	nodes := newPoolReport(policy.Snapshot{Nodes: nodesWithBlocks(), Pods: append(podsAt("web", "10.5.0.0", 8), podsAt("mac", "172.16.0.1", 1)...)}, nil)
	for _, tt := range []struct {
		file   string
		report poolReport
	}{
		{"pools.table", mixed}, {"pools.json", mixed}, {"pools.yaml", mixed},
		{"podcidrs.table", nodes}, {"podcidrs.json", nodes},
		{"empty.table", newPoolReport(policy.Snapshot{}, nil)}, {"empty.json", newPoolReport(policy.Snapshot{}, nil)},
	} {
		t.Run(tt.file, func(t *testing.T) {
			var got bytes.Buffer
			o := poolsOptions{output: filepath.Ext(tt.file)[1:]}
			if err := o.write(&got, tt.report); err != nil {
				t.Fatal(err)
			}
			golden(t, tt.file, got.String())
		})
	}
}

// TestPoolReportFails tells of it when the report could not be written.
func TestPoolReportFails(t *testing.T) {
	r := newPoolReport(mixedPools(), nil)
	for _, output := range []string{"table", "json", "yaml"} {
		if err := (poolsOptions{output: output}).write(broken{}, r); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v", output, err)
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestSizeText(t *testing.T) {
	power := func(n uint) *big.Int { return new(big.Int).Lsh(big.NewInt(1), n) }
	for _, tt := range []struct {
		n    *big.Int
		want string
	}{
		{big.NewInt(0), "0"}, {big.NewInt(256), "256"}, {big.NewInt(1<<32 - 1), "4294967295"},
		{power(32), "2^32"}, {power(64), "2^64"}, {power(128), "2^128"},
		{new(big.Int).Sub(power(64), big.NewInt(3)), "~2^64"},
		{new(big.Int).Add(power(64), big.NewInt(3)), "~2^64"},
		{new(big.Int).Add(power(64), power(62)), "~2^64"},
		{new(big.Int).Add(power(64), power(63)), "~2^65"},
	} {
		if got := sizeText(tt.n); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.n, got, tt.want)
		}
	}
}
