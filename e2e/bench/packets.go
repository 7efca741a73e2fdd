package bench

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nft"
)

// The variants that policy is compared with.
const (
	// NoRules is a node without nftables and without conntrack.
	NoRules = "no rules"
	// ConntrackOnly is a node with one rule that nothing gets to, in the output
	// hook; it makes conntrack follow all that is forwarded. It is the baseline:
	// every node with a Service or a masquerade has conntrack anyway.
	ConntrackOnly = "conntrack only"
)

const conntrackOnly = `table ip track {
	chain output {
		type filter hook output priority 0; policy accept;
		ct state new
	}
}
`

// PacketOptions say what Packets measures.
type PacketOptions struct {
	Shapes   []Shape
	Loads    []Load
	Replicas int
	// Plain is the shape whose flow the worlds without policy carry.
	Plain Shape
	// Extra are rulesets in nft's syntax by name, to be compared as well: for
	// trying out what the compiler does not do. They must let Plain's flow
	// pass.
	Extra map[string]string
	// Length is how long each load runs.
	Length time.Duration
	// Progress is told what is going on; may be nil.
	Progress func(format string, args ...any)
}

// PacketResult are the figures of one load.
type PacketResult struct {
	Load    string   `json:"load"`
	Figures []Figure `json:"figures"`
	Series  []Series `json:"series"`
}

// Figure returns that of a variant.
func (r *PacketResult) Figure(variant string) (Figure, bool) {
	i := slices.IndexFunc(r.Figures, func(f Figure) bool { return f.Variant == variant })
	if i < 0 {
		return Figure{}, false
	}
	return r.Figures[i], true
}

// variant is a ruleset to measure, in a world with the flow.
type variant struct {
	name string
	flow Flow
	load func(*Triple) error
}

// Packets builds a Triple for every variant and replica, with the ruleset that
// the compiler makes of the shape's cluster, and measures what each load costs.
func Packets(o PacketOptions) (results []PacketResult, err error) {
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	variants, err := o.variants()
	if err != nil {
		return nil, err
	}
	var subjects []*Subject
	defer func() {
		for _, s := range subjects {
			err = errors.Join(err, s.Triple.Close())
		}
	}()
	rng := rand.New(rand.NewPCG(7, 8))
	for range o.Replicas {
		// Each replica is built in another order, so that no variant has
		// always the oldest or the newest memory.
		for _, i := range rng.Perm(len(variants)) {
			v := variants[i]
			t, err := NewTriple(v.flow)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", v.name, err)
			}
			subjects = append(subjects, &Subject{Variant: v.name, Triple: t})
			if err := v.load(t); err != nil {
				return nil, fmt.Errorf("%s: %w", v.name, err)
			}
		}
	}
	for _, load := range o.Loads {
		o.Progress("measuring %s over %d worlds", load, len(subjects))
		series, err := Interleave(subjects, load, o.Length)
		if err != nil {
			return nil, fmt.Errorf("measure %s: %w", load, err)
		}
		r := PacketResult{Load: load.String(), Series: series}
		figures := Summarize(series, ConntrackOnly)
		for _, v := range variants { // in the order given, not built
			i := slices.IndexFunc(figures, func(f Figure) bool { return f.Variant == v.name })
			r.Figures = append(r.Figures, figures[i])
		}
		results = append(results, r)
	}
	return results, nil
}

func (o *PacketOptions) variants() ([]variant, error) {
	plain := o.Plain.Flow()
	text := func(rules string) func(*Triple) error {
		return func(t *Triple) error { return t.LoadText(rules) }
	}
	out := []variant{
		{NoRules, plain, func(*Triple) error { return nil }},
		{ConntrackOnly, plain, text(conntrackOnly)},
	}
	for _, s := range o.Shapes {
		o.Progress("compiling %s", s)
		c := policy.NewCompiler(policy.DefaultConfig(Node))
		c.Update(Deltas(s.Snapshot())...)
		if p := c.Problems(); len(p) > 0 {
			return nil, fmt.Errorf("%s/%s does not compile: %w", p[0].Namespace, p[0].Name, p[0].Err)
		}
		change := c.Changes()
		out = append(out, variant{s.String(), s.Flow(), func(t *Triple) error { return t.Apply(change) }})
	}
	names := make([]string, 0, len(o.Extra))
	for name := range o.Extra {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		out = append(out, variant{name, plain, text(o.Extra[name])})
	}
	return out, nil
}

// Apply brings a change into force on the node, by package policy/nft.
func (t *Triple) Apply(change *policy.Change) error {
	c, err := nft.Open(nft.Options{NetNS: t.Node.FD()})
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	_, err = c.Apply(change)
	return errors.Join(err, c.Close())
}
