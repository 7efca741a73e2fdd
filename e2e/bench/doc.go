// Package bench measures what the policy data plane costs: packets through
// rulesets of the real compiler, beside nodes without policy; programming the
// kernel; compiling events; the agent's memory. Command bench-policy runs it
// all and judges the figures; README.md tells how they are made and how to read
// them.
//
// Its worlds are network namespaces without a name, which end with the
// program. All but the compiler's part needs root.
package bench
