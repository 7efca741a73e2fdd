// Command gen writes what package observe describes: Grafana's dashboards, and the
// alerts as an object of the Prometheus operator. It is run in deploy/:
//
//	go run ./observe/gen
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/selvage-net/selvage/deploy/observe"
)

func main() {
	if err := run("observe"); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run(dir string) error {
	files, err := observe.Files(os.DirFS(dir))
	if err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
