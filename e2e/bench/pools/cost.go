package pools

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

// The variants that the product is compared with.
const (
	// Plain is one rule of nft that masquerades all that comes from the pods' pool.
	// It is the baseline of what leaves.
	Plain = "one plain rule"
	// Flannel are the rules of flanneld, made by iptables-nft.
	Flannel = "flannel's rules"
	// Idle is a chain of type nat without rules, and one rule that nothing gets to,
	// which makes conntrack follow all that is forwarded: nat is at work. It is the
	// baseline of what stays inside.
	Idle = "nat without rules"
)

// Way is where the packets that are measured go to.
type Way string

// The ways.
const (
	// Leaving is to a place outside of all pools: the source is translated.
	Leaving Way = "leaving"
	// Inside is to another pod.
	Inside Way = "inside"
)

// Baseline is the variant that others are compared with.
func (w Way) Baseline() string {
	if w == Inside {
		return Idle
	}
	return Plain
}

func (w Way) flow(f policy.Family) bench.Flow {
	to := outside[f]
	if w == Inside {
		to = otherPod[f]
	}
	return bench.Flow{Pod: to, Port: bench.Port, Peers: []netip.Addr{pod[f]}}
}

// CostOptions say what Costs measures.
type CostOptions struct {
	Families []policy.Family
	Clusters []Cluster
	Loads    []bench.Load
	// Extra are rulesets in nft's syntax by name, to be compared as well: for trying
	// out what the compiler does not do.
	Extra map[string]string
	// Replicas is how many worlds of each variant there are.
	Replicas int
	// Length is how long each load runs.
	Length time.Duration
	// Progress is told what is going on; may be nil.
	Progress func(format string, args ...any)
}

// CostResult are the figures of one load on one way.
type CostResult struct {
	Family  string         `json:"family"`
	Way     Way            `json:"way"`
	Load    string         `json:"load"`
	New     bool           `json:"new"`
	Figures []bench.Figure `json:"figures"`
	// ToFlannel are the ratios over flannel's rules in the same round, by variant.
	ToFlannel map[string]float64 `json:"toFlannel"`
}

// Figure returns that of a variant.
func (r *CostResult) Figure(variant string) (bench.Figure, bool) {
	i := slices.IndexFunc(r.Figures, func(f bench.Figure) bool { return f.Variant == variant })
	if i < 0 {
		return bench.Figure{}, false
	}
	return r.Figures[i], true
}

// Noise is by how much two worlds with identical rules differ at the most, as a part of
// what they cost: their memory lies elsewhere. What is less says nothing.
func (r *CostResult) Noise() float64 {
	var most float64
	for _, f := range r.Figures {
		most = max(most, f.Spread)
	}
	return most
}

// Costs measures what packets cost, from the call that sends one to the call that
// receives it. See bench.Interleave.
func Costs(o CostOptions) ([]CostResult, error) {
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	var results []CostResult
	for _, f := range o.Families {
		for _, way := range []Way{Leaving, Inside} {
			some, err := o.costs(f, way)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", way, f, err)
			}
			results = append(results, some...)
		}
	}
	return results, nil
}

// variant is a ruleset to measure.
type variant struct {
	name string
	load func(*bench.Triple) error
}

func (o *CostOptions) variants(f policy.Family, way Way) []variant {
	text := func(rules string) func(*bench.Triple) error {
		return func(t *bench.Triple) error { return t.LoadText(rules) }
	}
	var out []variant
	if way == Inside {
		out = append(out, variant{Idle, text(natChain(f, "") + fmt.Sprintf("table %s track {\n\tchain output {\n\t\ttype filter hook output priority 0;\n\t\tct state new\n\t}\n}\n", f))})
	} else {
		out = append(out, variant{Plain, text(natChain(f, fmt.Sprintf("%s saddr %s masquerade fully-random", f, podPool[f])))})
	}
	out = append(out, variant{Flannel, func(t *bench.Triple) error {
		return t.LoadIPTables(world.FlannelRules(podPool[f], podBlock[f]))
	}})
	for _, c := range o.Clusters {
		out = append(out, variant{c.String(), func(t *bench.Triple) error { return t.Apply(c.change()) }})
	}
	for _, name := range slices.Sorted(maps.Keys(o.Extra)) {
		out = append(out, variant{name, text(o.Extra[name])})
	}
	return out
}

// natChain is where others translate sources, with one rule or none.
func natChain(f policy.Family, rule string) string {
	return fmt.Sprintf("table %s base {\n\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat;\n\t\t%s\n\t}\n}\n", f, rule)
}

func (o *CostOptions) costs(f policy.Family, way Way) (results []CostResult, err error) {
	var subjects []*bench.Subject
	defer func() {
		for _, s := range subjects {
			err = errors.Join(err, s.Triple.Close())
		}
	}()
	variants := o.variants(f, way)
	rng := rand.New(rand.NewPCG(9, 10))
	for range o.Replicas {
		// Each replica is built in another order, so that no variant has always the
		// oldest or the newest memory.
		for _, i := range rng.Perm(len(variants)) {
			t, err := bench.NewTriple(way.flow(f))
			if err != nil {
				return nil, err
			}
			subjects = append(subjects, &bench.Subject{Variant: variants[i].name, Triple: t})
			if err := variants[i].load(t); err != nil {
				return nil, fmt.Errorf("%s: %w", variants[i].name, err)
			}
		}
	}
	for _, load := range o.Loads {
		o.Progress("measuring %s, %s, %s, over %d worlds", way, f, load, len(subjects))
		series, err := bench.Interleave(subjects, load, o.Length)
		if err != nil {
			return nil, fmt.Errorf("measure %s: %w", load, err)
		}
		r := CostResult{Family: f.String(), Way: way, Load: load.String(), New: load.New(), ToFlannel: map[string]float64{}}
		figures := bench.Summarize(series, way.Baseline())
		for _, v := range variants { // in the order given, not built
			i := slices.IndexFunc(figures, func(f bench.Figure) bool { return f.Variant == v.name })
			r.Figures = append(r.Figures, figures[i])
		}
		for _, f := range bench.Summarize(series, Flannel) {
			r.ToFlannel[f.Variant] = f.Ratio
		}
		results = append(results, r)
	}
	return results, nil
}
