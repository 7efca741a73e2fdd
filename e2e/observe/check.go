package observe

import (
	"fmt"
	"io"
	"sync"
)

// Checks counts what passed and what failed, and says both as it happens. It is safe
// for concurrent use.
type Checks struct {
	mu             sync.Mutex
	w              io.Writer
	passed, failed int
}

// NewChecks returns Checks that write to w.
func NewChecks(w io.Writer) *Checks { return &Checks{w: w} }

// Check is one check: it has passed if there is no error.
func (c *Checks) Check(what string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failed++
		fmt.Fprintf(c.w, "FAILED  %s: %v\n", what, err)
		return
	}
	c.passed++
	fmt.Fprintf(c.w, "ok      %s\n", what)
}

// Counts are how many have passed, and how many have failed.
func (c *Checks) Counts() (passed, failed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passed, c.failed
}
