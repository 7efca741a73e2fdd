// Command selvage enforces Kubernetes NetworkPolicies on a node. `selvage agent`
// does so for as long as it runs, and what it has put in force stays when it
// ends; `selvage cleanup` removes it.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// version is set by the linker; see the Makefile.
var version = "unknown"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is the program: it returns the exit code, 0 or 1.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// After the first signal the next one ends the program at once, as usual.
	defer context.AfterFunc(ctx, stop)()
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	if err := root.ExecuteContext(ctx); err != nil {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintf(stderr, "selvage: %s\n", strings.TrimSuffix(line, "\n"))
		}
		return 1
	}
	return 0
}
