package artifacts

import (
	"fmt"
	"sync/atomic"
	"time"
)

// beat is the time between two lines while one step goes on.
const beat = 15 * time.Second

func (b *builder) at(r recipe, i, n int) {
	b.current = fmt.Sprintf("%s %s (%d of %d)", r.Name, r.Version, i, n)
}

func (b *builder) say(format string, args ...any) { b.progress(fmt.Sprintf(format, args...)) }

// note says something of the artifact that is built.
func (b *builder) note(format string, args ...any) {
	b.say("%s: %s", b.current, fmt.Sprintf(format, args...))
}

// counts are what the Go tool has done so far.
type counts struct {
	downloads, compiled atomic.Int64
}

// during runs f and says once in a while how far it is. It calls b.progress from
// this goroutine alone.
func (b *builder) during(what func() string, f func() error) error {
	done := make(chan error, 1)
	start := time.Now()
	go func() { done <- f() }()
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
			b.note("%s, %s", what(), since(start))
		}
	}
}

// since is the time that has passed, as people read it.
func since(t time.Time) time.Duration {
	d := time.Since(t)
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}
