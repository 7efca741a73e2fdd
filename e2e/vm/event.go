package vm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// kind is what an event is about.
type kind string

const (
	// up: the guest is about to run the programs.
	up kind = "up"
	// begin: a program starts.
	begin kind = "begin"
	// written: a program wrote Text.
	written kind = "written"
	// exited: a program has ended, with Code and, if that says nothing, Text.
	exited kind = "exited"
	// failed: the guest could not do its work. Text says why.
	failed kind = "failed"
	// end: all is told. Code is the number of events before.
	end kind = "end"
)

// event is what the guest tells the host.
type event struct {
	Kind kind
	// Program is the program's place in the plan.
	Program int    `json:",omitempty"`
	Code    int    `json:",omitempty"`
	Text    string `json:",omitempty"`
}

// teller writes events. It is safe for concurrent use.
type teller struct {
	mu   sync.Mutex
	out  *json.Encoder
	told int
}

func newTeller(w io.Writer) *teller {
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	return &teller{out: out}
}

func (t *teller) tell(e event) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.Kind == end {
		e.Code = t.told
	}
	t.told++
	return t.out.Encode(e)
}

// writer tells what a program writes.
type writer struct {
	*teller
	program int
}

func (w writer) Write(p []byte) (int, error) {
	return len(p), w.tell(event{Kind: written, Program: w.program, Text: string(p)})
}

// errNoEnd says that the events stopped before their end.
var errNoEnd = errors.New("the machine went down before it had told everything")

// readEvents hands all events to f, up to and without the end.
func readEvents(r io.Reader, f func(event) error) error {
	lines := bufio.NewReader(r)
	for n := 0; ; n++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return errNoEnd
		}
		if err != nil {
			return err
		}
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("what the machine tells is garbled: %w: %.200q", err, line)
		}
		if e.Kind == end && e.Code != n {
			return fmt.Errorf("the machine told %d things, and %d arrived", e.Code, n)
		}
		if e.Kind == end {
			return nil
		}
		if err := f(e); err != nil {
			return err
		}
	}
}
