// Package trace walks packets through a policy.Ruleset the way the kernel's
// nf_tables does, and says what became of them and why. It knows exactly what
// the ruleset can express: anything else is an error, so that a rule which it
// does not understand can never pass for one that does not match.
//
// The sources are net/netfilter/nf_tables_core.c (nft_do_chain: the order of
// rules, the jump stack, what a verdict does), nft_ct.c (what breaks a rule when
// there is no conntrack entry), nft_lookup.c and nft_payload.c.
package trace
