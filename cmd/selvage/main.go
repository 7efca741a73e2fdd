// Command selvage enforces Kubernetes NetworkPolicies on a node. `selvage agent`
// does so for as long as it runs, and what it has put in force stays when it
// ends; `selvage cleanup` removes it. `selvage status`, `explain` and `drops` ask
// agents; under the name kubectl-selvage they are those of a plugin of kubectl.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// version is set by the linker; see the Makefile.
var version = "unknown"

func main() { os.Exit(run(filepath.Base(os.Args[0]), os.Args[1:], os.Stdout, os.Stderr)) }

// run is the program, under the name that it was called by: it returns the exit code,
// which is 0, 1 or, from commands that answer a question, 2.
func run(name string, args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// After the first signal the next one ends the program at once, as usual.
	defer context.AfterFunc(ctx, stop)()
	root := newRoot(name == pluginName, stdout, stderr)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(stderr, "selvage: %s\n", strings.TrimSuffix(line, "\n"))
	}
	if e := (*exitError)(nil); errors.As(err, &e) {
		return e.code
	}
	return 1
}
