package informer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/wait"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/selvage-net/selvage/policy"
)

var epoch = time.Unix(1_700_000_000, 0)

// lines is a log that remembers its lines.
type lines struct {
	mu   sync.Mutex
	text []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, strings.TrimSpace(string(p)))
	return len(p), nil
}

func (l *lines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// with returns the lines that have text in them.
func (l *lines) with(text string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
	for _, line := range l.text {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

// call is one call of a sink that a test answers.
type call struct {
	Batch
	answer chan error
}

// rig is a delivery whose time stands still and whose sink is the test.
type rig struct {
	*Informer
	t     *testing.T
	clock *clocktesting.FakeClock
	calls chan call
	log   *lines
}

func newRig(t *testing.T, o Options) *rig {
	t.Helper()
	r := &rig{t: t, clock: clocktesting.NewFakeClock(epoch), calls: make(chan call), log: &lines{}}
	o.Clock, o.Logger = r.clock, r.log.logger()
	r.Informer = New(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.deliver(ctx, func(ctx context.Context, b Batch) error {
			c := call{b, make(chan error)}
			select {
			case r.calls <- c:
				return <-c.answer
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return r
}

// expect waits for a call.
func (r *rig) expect() call {
	r.t.Helper()
	select {
	case c := <-r.calls:
		return c
	case <-time.After(30 * time.Second):
		r.t.Fatal("the sink was not called")
		return call{}
	}
}

// quiet waits until the delivery sleeps, and fails if it calls.
func (r *rig) quiet() {
	r.t.Helper()
	for !r.clock.HasWaiters() {
		select {
		case c := <-r.calls:
			r.t.Fatalf("the sink was called with %s", text(c.Batch))
		case <-time.After(time.Millisecond):
		}
	}
	select {
	case c := <-r.calls:
		r.t.Fatalf("the sink was called with %s", text(c.Batch))
	case <-time.After(10 * time.Millisecond):
	}
}

func pod(name string, addr ...string) *policy.Pod {
	p := &policy.Pod{Meta: policy.Meta{Namespace: "x", Name: name}, Node: strings.Join(addr, ",")}
	return p
}

// text renders a batch, times relative to epoch.
func text(b Batch) string {
	var s []string
	if b.Initial {
		s = append(s, "initial")
	}
	if b.Resync {
		s = append(s, "resync")
	}
	for i, d := range b.Deltas {
		sign := "+"
		if d.Deleted {
			sign = "-"
		}
		p, ok := d.Object.(*policy.Pod)
		if !ok {
			s = append(s, fmt.Sprintf("%s%T", sign, d.Object))
			continue
		}
		s = append(s, fmt.Sprintf("%s%s(%s)@%s", sign, p.Name, p.Node, b.Received[i].Sub(epoch)))
	}
	return strings.Join(s, " ")
}

func (c call) want(t *testing.T, want string) {
	t.Helper()
	if got := text(c.Batch); got != want {
		t.Errorf("batch = %q, want %q", got, want)
	}
}

func TestDeliverCoalesces(t *testing.T) {
	r := newRig(t, Options{MinInterval: 10 * time.Millisecond, ResyncInterval: -1})
	first := r.expect()
	first.want(t, "initial")
	// What comes while the sink works waits for the next call, squashed.
	r.pending.add(Pods, pod("a", "1"), false)
	r.pending.add(Pods, pod("b", "1"), false)
	r.clock.Step(time.Millisecond)
	r.pending.add(Pods, pod("a", "2"), false)
	r.pending.add(Namespaces, pod("a", "other kind"), false)
	r.pending.add(Pods, pod("c", "1"), false)
	r.pending.add(Pods, pod("c", "1"), true)
	first.answer <- nil
	r.quiet() // The interval is not over.
	r.clock.Step(9 * time.Millisecond)
	second := r.expect()
	second.want(t, "+a(2)@0s +b(1)@0s +a(other kind)@1ms -c(1)@1ms")
	second.answer <- nil

	// After a pause the first change passes at once.
	r.clock.Step(time.Minute)
	r.pending.add(Pods, pod("a", "3"), false)
	third := r.expect()
	third.want(t, "+a(3)@1m0.01s")
	third.answer <- nil
}

func TestDeliverRetries(t *testing.T) {
	r := newRig(t, Options{
		RetryBackoff:   wait.Backoff{Duration: time.Second, Factor: 2, Steps: 10, Cap: 3 * time.Second},
		ResyncInterval: -1,
	})
	c := r.expect()
	if !c.Initial {
		t.Errorf("the first batch is not the initial one: %s", text(c.Batch))
	}
	c.answer <- errors.New("no buffer space")
	for n, pause := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 3 * time.Second} {
		r.quiet()
		r.pending.add(Pods, pod(fmt.Sprint("p", n), "1"), false)
		r.quiet() // A change does not cut the pause short.
		r.clock.Step(pause - time.Nanosecond)
		r.quiet()
		r.clock.Step(time.Nanosecond)
		c = r.expect()
		if len(c.Deltas) != 1 || c.Initial {
			t.Errorf("batch after a failure = %q, want what came since, and no more", text(c.Batch))
		}
		c.answer <- errors.New("no buffer space")
	}
	r.quiet()
	r.clock.Step(3 * time.Second)
	c = r.expect()
	c.want(t, "")
	c.answer <- nil
	r.clock.Step(time.Minute)
	r.pending.add(Pods, pod("c", "1"), false)
	c = r.expect()
	c.answer <- errors.New("other")
	r.quiet()
	r.clock.Step(time.Second) // The pace starts anew.
	r.expect().answer <- nil
	if got := r.log.with("no buffer space"); len(got) != 1 {
		t.Errorf("the failure was logged %d times, want once:\n%s", len(got), strings.Join(got, "\n"))
	}
	if got := r.log.with("in force again"); len(got) < 1 {
		t.Errorf("that it works again was not logged")
	}
}

func TestDeliverResyncs(t *testing.T) {
	r := newRig(t, Options{MinInterval: time.Millisecond, ResyncInterval: time.Minute})
	r.expect().answer <- nil
	r.quiet()
	r.clock.Step(30 * time.Second)
	r.pending.add(Pods, pod("a", "1"), false)
	c := r.expect()
	c.want(t, "+a(1)@30s") // A change does not put the resync off.
	c.answer <- nil
	r.quiet()
	r.clock.Step(30 * time.Second)
	c = r.expect()
	c.want(t, "resync")
	c.answer <- errors.New("busy")
	r.quiet()
	r.clock.Step(time.Minute)
	c = r.expect()
	c.want(t, "resync") // It failed, and so is asked for again.
	c.answer <- nil
	r.quiet()
	r.clock.Step(time.Minute)
	c = r.expect()
	c.want(t, "resync")
	c.answer <- nil
}

func TestPendingKeepsOrder(t *testing.T) {
	p := newPending(clocktesting.NewFakeClock(epoch))
	var want []string
	for n := range 100 {
		name := fmt.Sprintf("p%d", n)
		p.add(Pods, pod(name), false)
		want = append(want, name)
	}
	for n := 99; n >= 0; n-- {
		p.add(Pods, pod(fmt.Sprintf("p%d", n), "new"), n%2 == 0)
	}
	var got []string
	for n, d := range p.take().Deltas {
		got = append(got, d.Object.(*policy.Pod).Name)
		if d.Deleted != (n%2 == 0) {
			t.Errorf("%s: deleted = %t", got[n], d.Deleted)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if b := p.take(); len(b.Deltas) != 0 {
		t.Errorf("taken twice: %s", text(b))
	}
}
