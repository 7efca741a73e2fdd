package answers

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/selvage-net/selvage/e2e/world"
)

// Reply is what a command has said.
type Reply struct {
	// Out is its standard output, Err its standard error.
	Out, Err string
	// Code is its exit code.
	Code int
}

// Run runs a command of the product on a node. The error is that it did not run to its
// end; an exit code is none.
func Run(ctx context.Context, n *world.Node, binary string, args ...string) (Reply, error) {
	cmd := exec.CommandContext(ctx, binary, args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := n.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		err = nil
	}
	if err != nil {
		return Reply{}, fmt.Errorf("selvage %s on %s: %w", strings.Join(args, " "), n.Name, err)
	}
	return Reply{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}, nil
}
