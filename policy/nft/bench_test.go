package nft

import (
	"testing"

	"github.com/selvage-net/selvage/policy"
)

// BenchmarkApplyElement adds one element to a map of 100,000 and takes it out again.
func BenchmarkApplyElement(b *testing.B) {
	ns := newNamespace(b)
	c := ns.open(b)
	r := large(1000, 100_000)
	mustApply(b, c, fill(r))
	set := r.Tables[policy.IPv4].Sets[0]
	set.Elements = nil
	one := []policy.Element{{Key: "\xac\x10\x00\x01", Verdict: policy.Verdict{Kind: policy.VerdictReturn}}}
	add, del := &policy.Change{}, &policy.Change{}
	add.Tables[policy.IPv4].Elements = []policy.ElementChange{{Set: set, Add: one}}
	del.Tables[policy.IPv4].Elements = []policy.ElementChange{{Set: set, Del: one}}
	b.ReportAllocs()
	for b.Loop() {
		mustApply(b, c, add)
		mustApply(b, c, del)
	}
}

// BenchmarkApplyAll makes a ruleset of 1000 rules and 100,000 elements from nothing.
func BenchmarkApplyAll(b *testing.B) {
	ns := newNamespace(b)
	c := ns.open(b)
	change := fill(large(1000, 100_000))
	b.ReportAllocs()
	for b.Loop() {
		mustApply(b, c, change)
		b.StopTimer()
		if _, err := c.Cleanup(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkEncodeAll is the part of BenchmarkApplyAll without the kernel.
func BenchmarkEncodeAll(b *testing.B) {
	change := fill(large(1000, 100_000))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Encode(change); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRead reads a ruleset of 1000 rules and 100,000 elements.
func BenchmarkRead(b *testing.B) {
	ns := newNamespace(b)
	c := ns.open(b)
	mustApply(b, c, fill(large(1000, 100_000)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Read(); err != nil {
			b.Fatal(err)
		}
	}
}
