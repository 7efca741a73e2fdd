package policy

import (
	"fmt"
	"slices"
)

// Leftovers tells what a Compiler still holds that Counts does not count; it is
// empty if the Compiler knows no objects and forgot what they led to.
func (c *Compiler) Leftovers() string {
	var out string
	for name, n := range map[string]int{
		"pods": len(c.pods), "namespaces": len(c.namespaces), "nodes": len(c.nodes), "policies": len(c.policies),
		"owners": len(c.owners), "contested": len(c.contested), "selectors": len(c.selectors), "everywhere": len(c.everywhere),
		"signatures": len(c.signatures), "dirty pods": len(c.dirtyPods), "dirty signatures": len(c.dirtySignatures),
		"dirty selectors": len(c.dirtySelectors), "new selectors": len(c.newSelectors), "touched": len(c.touched),
		"touched ports": len(c.touchedPorts), "dispatch": len(c.dispatch), "owners before": len(c.ownersBefore),
		"emptied signatures": len(c.emptied), "bridges": len(c.bridges), "pods outside": len(c.outside[IPv4]) + len(c.outside[IPv6]),
		"pools": len(c.pools), "services": len(c.services), "pools in force": len(c.resolved.All), "policies by pool": c.poolPolicies,
	} {
		if n > 0 {
			out += fmt.Sprintf("%d %s\n", n, name)
		}
	}
	return out
}

// Stale tells what the Compiler's parts still hold of parts that are gone.
func (c *Compiler) Stale() string {
	var out string
	stale := func(where, what string) { out += where + ": " + what + " is gone\n" }
	indexed := func(where string, x index[*selector]) {
		for _, list := range x {
			for _, s := range list {
				if c.selectors[s.key] != s {
					stale(where, "selector "+s.key)
				}
			}
		}
	}
	indexed("everywhere", c.everywhere)
	for name, ns := range c.namespaces {
		indexed("namespace "+name, ns.selectors)
		for _, list := range ns.policies {
			for _, p := range list {
				if c.policies[p.key] != p {
					stale("namespace "+name, "policy "+p.name)
				}
			}
		}
		for p := range ns.pods {
			if c.pods[key{p.Namespace, p.Name}] != p {
				stale("namespace "+name, "pod "+p.Name)
			}
		}
	}
	for _, p := range c.pods {
		for i, s := range p.selectors {
			if slices.Contains(p.selectors[:i], s) {
				out += "pod " + p.Name + ": selector " + s.key + " is there twice\n"
			}
			if _, member := s.members[p]; c.selectors[s.key] != s || !member {
				stale("pod "+p.Name, "selector "+s.key)
			}
		}
	}
	for _, s := range c.selectors {
		for user := range s.users {
			if c.signatures[user.chain] != user {
				stale("selector "+s.key, "signature "+user.chain)
			}
		}
		for p := range s.members {
			if c.pods[key{p.Namespace, p.Name}] != p {
				stale("selector "+s.key, "pod "+p.Name)
			}
		}
	}
	for _, np := range c.policies {
		for s := range np.signatures {
			if c.signatures[s.chain] != s {
				stale("policy "+np.name, "signature "+s.chain)
			}
		}
	}
	for _, s := range c.signatures {
		for p := range s.pods {
			if c.pods[key{p.Namespace, p.Name}] != p {
				stale("signature "+s.chain, "pod "+p.Name)
			}
		}
	}
	return out
}
