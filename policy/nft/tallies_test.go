package nft

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/selvage-net/selvage/policy"
)

// reading is a scrape under way: what it knew when it began, and what it then read.
type reading struct {
	births uint64
	read   familyCounts
}

// TestTalliesOnlyGrow lets counters come, count, be reset and go, in every order, while
// scrapes that began before are not done yet. What was counted must never go back, and
// in the end must be what there was.
func TestTalliesOnlyGrow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tallies := newTallies(Options{})
		info := func(string) (policy.CounterInfo, bool) {
			return policy.CounterInfo{Denied: true, Namespace: "shop", Direction: "egress"}, true
		}
		var kernel familyCounts
		for f := range kernel {
			kernel[f] = map[string]Count{}
		}
		change := func(f policy.Family, name string) *policy.Change {
			c := &policy.Change{}
			c.Tables[f] = policy.TableChange{Family: f, AddCounters: []policy.Counter{{Name: name}}}
			return c
		}
		var scrape *reading
		var truth, before uint64
		read := func() familyCounts {
			var out familyCounts
			for f := range kernel {
				out[f] = map[string]Count{}
				for name, n := range kernel[f] {
					out[f][name] = n
				}
			}
			return out
		}
		total := func(births uint64, read familyCounts) {
			var now uint64
			for _, d := range tallies.end(births, &read).Denied {
				now += d.Packets
			}
			if now < before || now > truth {
				t.Fatalf("%d packets, after %d; there were %d", now, before, truth)
			}
			before = now
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			f := rapid.SampledFrom(policy.Families[:]).Draw(t, "family")
			name := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name")
			n, there := kernel[f][name]
			switch rapid.SampledFrom([]string{"packets", "packets", "come or go", "begin", "read", "end", "reset"}).Draw(t, "step") {
			case "packets":
				if there {
					more := rapid.Uint64Range(1, 5).Draw(t, "packets")
					truth += more
					kernel[f][name] = Count{Packets: n.Packets + more}
				}
			case "come or go":
				if there {
					delete(kernel[f], name)
					if scrape == nil && rapid.Bool().Draw(t, "a scrape now") {
						total(tallies.begin(), read())
					}
					var last familyCounts
					last[f] = map[string]Count{name: n}
					tallies.del(&last)
				} else {
					tallies.add(change(f, name), info)
					kernel[f][name] = Count{}
				}
			case "begin":
				if scrape == nil {
					scrape = &reading{births: tallies.begin()}
				}
			case "read":
				if scrape != nil && scrape.read[0] == nil {
					scrape.read = read()
				}
			case "end":
				if scrape != nil && scrape.read[0] != nil {
					total(scrape.births, scrape.read)
					scrape = nil
				}
			case "reset":
				if there && scrape == nil {
					// Nobody can know what it had counted since it was last read.
					total(tallies.begin(), read())
					kernel[f][name] = Count{}
					total(tallies.begin(), read())
				}
			}
		}
		total(tallies.begin(), read())
		if before != truth {
			t.Fatalf("%d packets in the end; there were %d", before, truth)
		}
	})
}

// TestTalliesTakeNothingForAnother: what was read of a counter is not taken for what a
// later one of the same name has.
func TestTalliesTakeNothingForAnother(t *testing.T) {
	tallies := newTallies(Options{})
	info := func(string) (policy.CounterInfo, bool) { return policy.CounterInfo{Denied: true}, true }
	add := &policy.Change{}
	add.Tables[policy.IPv4].AddCounters = []policy.Counter{{Name: "a"}}
	tallies.add(add, info)
	births, read := tallies.begin(), familyCounts{{"a": {Packets: 5}}}
	tallies.del(&familyCounts{{"a": {Packets: 6}}})
	tallies.add(add, info)
	if got := tallies.end(births, &read).Denied[0].Packets; got != 6 {
		t.Errorf("%d packets rather than 6", got)
	}
}

// TestTalliesAdopt: counters that are found count from then on, those that are neither
// there nor should be are given up, and none is counted twice.
func TestTalliesAdopt(t *testing.T) {
	tallies := newTallies(Options{})
	info := func(name string) (policy.CounterInfo, bool) {
		return policy.CounterInfo{Policies: []policy.PolicyRef{{Namespace: "shop", Name: name}}, Direction: "egress"}, true
	}
	table := func(names ...string) *policy.Ruleset {
		r := &policy.Ruleset{Tables: [2]policy.Table{{Family: policy.IPv4}, {Family: policy.IPv6}}}
		for _, name := range names {
			r.Tables[policy.IPv6].Counters = append(r.Tables[policy.IPv6].Counters, policy.Counter{Name: name})
		}
		return r
	}
	counts := func(n map[string]Count) string {
		read := familyCounts{policy.IPv6: n}
		var out []string
		for _, p := range tallies.end(tallies.begin(), &read).Policies {
			out = append(out, fmt.Sprintf("%s %d", p.Name, p.Allowed.Packets))
		}
		slices.Sort(out)
		return fmt.Sprint(out)
	}
	tallies.adopt(table("a", "b", "stale"), table("a", "b", "new"), info)
	if got := counts(map[string]Count{"a": {Packets: 5}, "b": {Packets: 7}, "stale": {Packets: 9}}); got != "[a 0 b 0 new 0]" {
		t.Errorf("at first: %s", got)
	}
	tallies.adopt(table("a"), table("a"), info)
	if got := counts(map[string]Count{"a": {Packets: 6}}); got != "[a 1 b 0 new 0]" {
		t.Errorf("two are gone: %s", got)
	}
	tallies.adopt(table("a"), table("a", "b"), info)
	if got := counts(map[string]Count{"a": {Packets: 6}, "b": {Packets: 1}}); got != "[a 1 b 1 new 0]" {
		t.Errorf("one is back: %s", got)
	}
	if _, ok := tallies.info("new"); ok {
		t.Error("what is gone is still known")
	}
	tallies.forget(func(ref policy.PolicyRef) bool { return ref.Name == "a" }, func(string) bool { return true })
	if got := counts(map[string]Count{"a": {Packets: 6}}); got != "[a 1 b 1]" {
		t.Errorf("a policy is gone: %s", got)
	}
}
