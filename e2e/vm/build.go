package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Build compiles the tests of a package, by its directory below the root of the
// repository, to a static binary in dir. args are for the binary. limit is how
// long it may take.
func Build(ctx context.Context, repo, pkg, dir string, limit time.Duration, args []string) (Program, error) {
	pkg = filepath.Clean(pkg)
	source := filepath.Join(repo, pkg)
	if !filepath.IsLocal(pkg) {
		return Program{}, fmt.Errorf("%s is not below the root of the repository", pkg)
	}
	if info, err := os.Stat(source); err != nil || !info.IsDir() {
		return Program{}, fmt.Errorf("there is no directory %s", source)
	}
	binary := filepath.Join(dir, strings.ReplaceAll(pkg, string(filepath.Separator), "-")+".test")
	// Whatever the user's environment is for, this is for the machine.
	if _, err := output(ctx, source, "env", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOWORK=off",
		"go", "test", "-c", "-vet=off", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", binary, "."); err != nil {
		return Program{}, fmt.Errorf("%s: %w", pkg, err)
	}
	if !exists(binary) {
		return Program{}, fmt.Errorf("%s: there are no tests", pkg)
	}
	argv := []string{binary, "-test.v", "-test.paniconexit0", "-test.timeout=" + limit.String()}
	return Program{Dir: pkg, Argv: append(argv, args...), Binary: binary}, nil
}
