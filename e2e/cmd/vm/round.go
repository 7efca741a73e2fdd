package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/selvage-net/selvage/e2e/vm"
)

// round is a run of all packages on one kernel.
type round struct {
	series   string
	packages []string
	verbose  bool
	out      io.Writer

	done    int // how many packages have ended
	running bool
	written strings.Builder // by the tests of the package that runs
	began   time.Time

	passed, failed int
}

func newRound(series string, packages []string, verbose bool, out io.Writer) *round {
	return &round{series: series, packages: packages, verbose: verbose, out: out}
}

// begin begins with a package.
func (r *round) begin(int) {
	r.running, r.began = true, time.Now()
	r.written.Reset()
}

// output keeps what the tests of a package write.
func (r *round) output(_ int, text string) {
	r.written.WriteString(text)
	if r.verbose {
		fmt.Fprint(r.out, text)
	}
}

// exited says how the tests of a package ended.
func (r *round) exited(program int, err error) {
	pkg := r.packages[program]
	outcome := vm.Judge(pkg, r.written.String(), err)
	verdict := "ok  "
	if len(outcome.Failed) > 0 {
		verdict = "FAIL"
		if !r.verbose {
			fmt.Fprint(r.out, r.written.String())
		}
	}
	r.passed, r.failed = r.passed+len(outcome.Passed), r.failed+len(outcome.Failed)
	fmt.Fprintf(r.out, "kernel %s: %s %s, %d passed", r.series, verdict, pkg, len(outcome.Passed))
	if len(outcome.Failed) > 0 {
		fmt.Fprintf(r.out, ", failed: %s", strings.Join(outcome.Failed, " "))
	}
	if len(outcome.Skipped) > 0 {
		fmt.Fprintf(r.out, ", skipped: %s", strings.Join(outcome.Skipped, " "))
	}
	if err != nil {
		fmt.Fprintf(r.out, " (%v)", err)
	}
	fmt.Fprintf(r.out, ", in %s\n", since(r.began))
	r.running, r.done = false, program+1
}

// close says what became of the rest if the machine ended with an error. What
// could not be tested has not passed.
func (r *round) close(err error) {
	if err == nil {
		return
	}
	if r.running {
		r.exited(r.done, errors.New("the machine ended"))
	}
	for _, pkg := range r.packages[r.done:] {
		r.failed++
		fmt.Fprintf(r.out, "kernel %s: FAIL %s, not tested\n", r.series, pkg)
	}
	if r.failed == 0 {
		r.failed++ // all packages had passed by then
	}
	fmt.Fprintf(r.out, "kernel %s: %v\n", r.series, err)
}
