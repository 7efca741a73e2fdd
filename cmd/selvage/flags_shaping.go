package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/selvage-net/selvage/shaping"
)

// addFlags are the flags for the bandwidth of pods.
func (c *shapingConfig) addFlags(f *pflag.FlagSet) {
	f.BoolVar(&c.enabled, "bandwidth", c.enabled, "shape the bandwidth of pods; false leaves alone whatever is in force")
	for _, d := range shaping.Directions() {
		f.Var((*rateFlag)(&c.defaults[d].Rate), "default-"+d.String()+"-bandwidth",
			"limit for the "+d.String()+" of each pod of which nothing else is said: "+shaping.AcceptedRate)
	}
	f.Var((*prefixes)(&c.exclude), "exclude-cidrs", "blocks of addresses, with commas; traffic between them and pods is not shaped")
	f.BoolVar(&c.takeOver, "take-over-bandwidth-plugin", false, "replace what the CNI plugin bandwidth has set at the pods' interfaces")
	f.BoolVar(&c.perPod, "metrics-per-pod", false, "give the metrics of bandwidth a label with the pod; their number grows with the node's pods")
	f.StringSliceVar(&c.netns, "netns-dir", c.netns, "directories with the files that lead to the pods' network namespaces")
}

// rateFlag is a flag's value in bits per second.
type rateFlag shaping.Rate

func (r *rateFlag) String() string {
	if *r == 0 {
		return ""
	}
	return shaping.Rate(*r).String()
}

func (r *rateFlag) Set(s string) error {
	if s == "" {
		*r = 0
		return nil
	}
	v, err := shaping.ParseRate(s)
	*r = rateFlag(v)
	return err
}

func (r *rateFlag) Type() string { return "rate" }

// prefixes is a flag's value: blocks of addresses. Each use of the flag adds some.
type prefixes []netip.Prefix

func (p *prefixes) String() string {
	texts := make([]string, 0, len(*p))
	for _, b := range *p {
		texts = append(texts, b.String())
	}
	return strings.Join(texts, ",")
}

func (p *prefixes) Set(s string) error {
	var added []netip.Prefix
	for text := range strings.SplitSeq(s, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		b, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			return fmt.Errorf("%q is no block of addresses, as 10.0.0.0/8 is one", text)
		case b != b.Masked():
			return fmt.Errorf("%s has bits of a host; %s would be the block", b, b.Masked())
		}
		added = append(added, b)
	}
	*p = slices.Concat(*p, added)
	return nil
}

func (p *prefixes) Type() string { return "cidrs" }
