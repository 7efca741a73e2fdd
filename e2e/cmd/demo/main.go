package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/selvage-net/selvage/e2e/world"
)

type options struct {
	agent   string
	verbose bool
	step    bool
	keep    bool
	output  string
}

func main() { os.Exit(run()) }

func run() int {
	var o options
	flag.StringVar(&o.agent, "agent", besides("selvage"), "the agent's `binary`")
	flag.BoolVar(&o.verbose, "v", false, "show the YAML of each policy")
	flag.BoolVar(&o.step, "step", false, "wait for the Enter key before each step")
	flag.BoolVar(&o.keep, "keep", false, "after the last step keep the world, and the agents in it, until Ctrl-C")
	flag.StringVar(&o.output, "o", "text", "output `format`: text, or json")
	flag.Parse()
	if flag.NArg() > 0 || o.output != "text" && o.output != "json" {
		flag.Usage()
		return 2
	}
	// A closed pipe (demo | head) ends the demo like Ctrl-C does.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	c := &cluster{binary: o.agent, places: map[string]*placed{}}
	failed, err := play(ctx, c, o)
	if cerr := c.close(); cerr != nil {
		fmt.Fprintln(os.Stderr, "demo: clean up:", cerr)
		failed++
	} else if errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "demo: interrupted; everything is removed")
		return 130
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	if err != nil || failed > 0 {
		return 1
	}
	return 0
}

// besides returns the path of a program in the directory of this one.
func besides(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}

// play builds the world and walks the story. It returns the number of checks
// that failed.
func play(ctx context.Context, c *cluster, o options) (failed int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("network namespaces need root: run it with sudo")
	}
	// nft and modprobe are not in everybody's PATH.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin"); err != nil {
		return 0, err
	}
	if _, err := os.Stat(o.agent); err != nil {
		return 0, fmt.Errorf("the agent is not built (make build, or --agent): %w", err)
	}
	if _, err := world.Sweep(); err != nil {
		return 0, fmt.Errorf("remove what an earlier run left: %w", err)
	}
	r := newReport(os.Stdout, o)
	r.opening()
	if err := c.open(ctx); err != nil && ctx.Err() == nil {
		r.agentLogs(c)
		return 0, err
	}
	for i := range story {
		if ctx.Err() != nil || o.step && !waitForEnter(ctx) {
			return 0, context.Canceled
		}
		if err := c.walk(ctx, r, i, &story[i]); err != nil && ctx.Err() == nil {
			r.agentLogs(c)
			return 0, fmt.Errorf("step %d, %s: %w", i+1, story[i].title, err)
		}
	}
	for i, a := range acts() {
		if ctx.Err() != nil || o.step && !waitForEnter(ctx) {
			return 0, context.Canceled
		}
		if err := c.perform(ctx, r, i, a); err != nil && ctx.Err() == nil {
			r.agentLogs(c)
			return 0, fmt.Errorf("%s: %w", a.name(), err)
		}
	}
	if ctx.Err() != nil {
		return 0, context.Canceled
	}
	failed = r.closing(c)
	if o.keep {
		r.directions(c)
		<-ctx.Done()
	}
	return failed, nil
}

// waitForEnter returns false if ctx ended first.
func waitForEnter(ctx context.Context) bool {
	entered := make(chan struct{})
	fmt.Fprint(os.Stderr, "Enter for the next step ")
	go func() { // ends with the program if nobody presses Enter
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		close(entered)
	}()
	select {
	case <-entered:
		return true
	case <-ctx.Done():
		return false
	}
}
