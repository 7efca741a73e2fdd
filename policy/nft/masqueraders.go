package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/mdlayher/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// A Masquerader is somebody else whose rules masquerade what pods send.
type Masquerader struct {
	// Name is one of MasqueraderNames.
	Name   string
	Family policy.Family
	// Place is the chain that the rules are in or, if each pod has a chain of its
	// own, the one that leads there.
	Place Place
	// Sources are the blocks of addresses that the rules are about, as few as
	// possible, or nil if that cannot be told. Other rules may leave out some of
	// what comes from there.
	Sources []netip.Prefix
}

// masqSign is what gives a masquerader away.
type masqSign struct {
	name string
	// chains are those that it has in the table nat of iptables.
	chains []string
	// places are chains in tables of its own.
	places []Place
}

// cniPlugins is the name of bridge and ptp with ipMasq. With iptables they make a
// chain for each container.
const cniPlugins = "cni-plugins"

func masqSigns() []masqSign {
	return []masqSign{
		{name: "flannel", chains: []string{"FLANNEL-POSTRTG"}, places: []Place{
			{Family: "ip", Table: "flannel-ipv4", Chain: "postrtg"}, {Family: "ip6", Table: "flannel-ipv6", Chain: "postrtg"},
		}},
		{name: cniPlugins, places: []Place{{Family: "inet", Table: "cni_plugins_masquerade", Chain: "masq_checks"}}},
		{name: "calico", chains: []string{"cali-nat-outgoing"}, places: []Place{
			{Family: "ip", Table: "calico", Chain: "nat-cali-nat-outgoing"}, {Family: "ip6", Table: "calico", Chain: "nat-cali-nat-outgoing"},
		}},
		// The second is what GKE has it call its chain.
		{name: "ip-masq-agent", chains: []string{"IP-MASQ-AGENT", "IP-MASQ"}},
		{name: "kindnet", chains: []string{"KIND-MASQ-AGENT"}, places: []Place{{Family: "inet", Table: "kindnet-ipmasq", Chain: "postrouting"}}},
		{name: "cilium", chains: []string{"CILIUM_POST_nat"}},
	}
}

// iptablesNAT is a chain in the tables that iptables-nft makes of its table nat.
func iptablesNAT(f policy.Family, chain string) Place {
	return Place{Family: f.String(), Table: "nat", Chain: chain}
}

// MasqueraderNames are the names of all that are known, short and fixed: they are
// fit for the label of a metric.
func MasqueraderNames() []string {
	var names []string
	for _, s := range masqSigns() {
		names = append(names, s.name)
	}
	return names
}

// MasqueraderOf returns the name of the masquerader that has a chain of this name
// in the table nat of iptables, or "". It is for the chains of iptables-legacy,
// which Masqueraders does not see.
func MasqueraderOf(chain string) string {
	for _, s := range masqSigns() {
		for _, c := range s.chains {
			if c == chain {
				return s.name
			}
		}
	}
	if isCNIChain(chain) {
		return cniPlugins
	}
	return ""
}

// isCNIChain tells whether a chain is one that the CNI plugins make to masquerade:
// CNI- and the beginning of a hash, 28 letters in all. Those that have a word before
// the hash are for port mappings.
func isCNIChain(name string) bool {
	hash, ok := strings.CutPrefix(name, "CNI-")
	return ok && len(hash) == 24 && strings.Trim(hash, "0123456789abcdef") == ""
}

// Masqueraders finds who else masquerades in the network namespace, as far as it is
// known how they do it in nftables, in the order of MasqueraderNames. A chain
// without such a rule counts for nothing. Each chain is asked for by its name, so
// that it does not matter how many others there are.
func (c *Conn) Masqueraders() ([]Masquerader, error) {
	if err := c.open(); err != nil {
		return nil, c.fail(err)
	}
	var found []Masquerader
	look := func(name string, p Place, counts func(*natRule) bool) error {
		rules, err := c.natRules(p)
		if err != nil {
			return c.fail(fmt.Errorf("look for who masquerades in %s: %w", p, err))
		}
		for _, f := range policy.Families {
			if sources, ok := sourcesOf(rules, f, counts); ok {
				found = append(found, Masquerader{Name: name, Family: f, Place: p, Sources: sources})
			}
		}
		return nil
	}
	for _, s := range masqSigns() {
		places := s.places
		for _, chain := range s.chains {
			places = append(places, iptablesNAT(policy.IPv4, chain), iptablesNAT(policy.IPv6, chain))
		}
		for _, p := range places {
			if err := look(s.name, p, func(r *natRule) bool { return r.masquerades }); err != nil {
				return nil, err
			}
		}
		if s.name != cniPlugins {
			continue
		}
		for _, f := range policy.Families {
			if err := look(s.name, iptablesNAT(f, "POSTROUTING"), func(r *natRule) bool { return isCNIChain(r.jump) }); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

// natRules reads the rules of one chain; none if there is no such chain.
func (c *Conn) natRules(p Place) ([]natRule, error) {
	proto, ok := p.nfproto()
	if !ok {
		return nil, errFamily
	}
	ofChain := appendString(appendString(nil, unix.NFTA_RULE_TABLE, p.Table), unix.NFTA_RULE_CHAIN, p.Chain)
	msgs, err := c.requestOf(proto, unix.NFT_MSG_GETRULE, netlink.Dump, ofChain)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var rules []natRule
	for i := range msgs {
		if len(msgs[i].Data) <= nfgenmsgLen {
			continue
		}
		for a := attributes(msgs[i].Data[nfgenmsgLen:]); a.next(); {
			if a.typ == unix.NFTA_RULE_EXPRESSIONS {
				rules = append(rules, readNATRule(proto, a.data))
			}
		}
	}
	return rules, nil
}

// sourcesOf tells whether any of the rules that count is about what pods send in a
// family, and from which blocks that comes; nil if it cannot be told.
func sourcesOf(rules []natRule, f policy.Family, counts func(*natRule) bool) (sources []netip.Prefix, found bool) {
	var b netipx.IPSetBuilder
	known := true
	for i := range rules {
		r := &rules[i]
		if !counts(r) || !r.families[f] || r.inbound() {
			continue
		}
		found = true
		switch {
		case r.source.IsValid():
			b.AddPrefix(r.source)
		case r.unclear > 0 || r.negated:
			known = false
		default:
			b.AddPrefix(everywhere(f))
		}
	}
	set, err := b.IPSet()
	if !found || !known || err != nil {
		return nil, found
	}
	return set.Prefixes(), true
}

// everywhere is the block of all addresses.
func everywhere(f policy.Family) netip.Prefix {
	if f == policy.IPv4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}
