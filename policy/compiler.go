package policy

// Compiler holds the desired state of the node and keeps it up with deltas.
// It must not be used by two goroutines at once.
type Compiler struct {
}

// NewCompiler returns a Compiler that knows no objects yet. The configuration
// must be valid.
func NewCompiler(cfg Config) *Compiler { return &Compiler{} }

// Update takes in changes. What follows from them is seen in Changes and Ruleset.
func (c *Compiler) Update(deltas ...Delta) {}

// Changes returns what changed since it was last called (or since NewCompiler),
// and moves on to the next generation if that tightens. It never returns nil.
func (c *Compiler) Changes() *Change { return &Change{} }

// Ruleset returns all that is desired now.
func (c *Compiler) Ruleset() *Ruleset { return &Ruleset{} }

// Tighten moves on to the next generation, so that every flow on the node is
// judged once more. It is for changes that the Compiler did not see happen,
// for example those that the kernel lacked when an agent came back.
func (c *Compiler) Tighten() {}

// Generation returns the generation in force, from 1 to MarkMask.Max().
func (c *Compiler) Generation() uint32 { return 0 }

// Problems returns what could not be compiled as it was written.
func (c *Compiler) Problems() []Problem { return nil }
