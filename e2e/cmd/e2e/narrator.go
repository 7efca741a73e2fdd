package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// narrator says what happens, with the time since the start.
type narrator struct {
	mu    sync.Mutex
	w     io.Writer
	began time.Time
}

func newNarrator(w io.Writer) *narrator { return &narrator{w: w, began: time.Now()} }

func (n *narrator) printf(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := time.Since(n.began).Round(time.Second)
	fmt.Fprintf(n.w, "%02d:%02d  %s\n", int(t.Minutes()), int(t.Seconds())%60, fmt.Sprintf(format, args...))
}
