package policy

// Compile returns the ruleset for a snapshot, and what of it could not be
// compiled as it was written, sorted by namespace and name. It does the same
// as a new Compiler that is given every object once.
func Compile(cfg Config, s Snapshot) (*Ruleset, []Problem) {
	c := NewCompiler(cfg)
	for _, n := range s.Nodes {
		c.Update(Delta{Object: n})
	}
	for _, n := range s.Namespaces {
		c.Update(Delta{Object: n})
	}
	for _, b := range s.Bridges {
		c.Update(Delta{Object: b})
	}
	for _, v := range s.Services {
		c.Update(Delta{Object: v})
	}
	for _, p := range s.Pools {
		c.Update(Delta{Object: p})
	}
	for _, p := range s.Policies {
		c.Update(Delta{Object: p})
	}
	for _, p := range s.Pods {
		c.Update(Delta{Object: p})
	}
	return c.Ruleset(), c.Problems()
}
