package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

const (
	// maxDropReaders is how many may follow drops at a time.
	maxDropReaders = 16
	// maxUnread is how many drops wait for a reader that is slow.
	maxUnread = 256
	// maxStuck is how long a reader may take no byte.
	maxStuck = 30 * time.Second
)

// dropFilter is which drops are asked for. Empty parts ask for all.
type dropFilter struct{ namespace, pod, direction string }

func parseDropFilter(q url.Values) (dropFilter, error) {
	f := dropFilter{namespace: q.Get("namespace"), pod: q.Get("pod"), direction: q.Get("direction")}
	return f, f.validate()
}

func (f dropFilter) validate() error {
	switch f.direction {
	case "", dropIngress, dropEgress:
		return nil
	}
	return fmt.Errorf("direction: %q is neither ingress nor egress", f.direction)
}

// query is what parseDropFilter understands.
func (f dropFilter) query() url.Values {
	q := url.Values{}
	for key, value := range map[string]string{"namespace": f.namespace, "pod": f.pod, "direction": f.direction} {
		if value != "" {
			q.Set(key, value)
		}
	}
	return q
}

// matches tells whether a drop is asked for: one of its sides is the pod, or one of the
// namespace's.
func (f dropFilter) matches(n *drop) bool {
	if f.direction != "" && f.direction != n.Direction {
		return false
	}
	return f.isEnd(&n.Source) || f.isEnd(&n.Destination)
}

func (f dropFilter) isEnd(e *dropEnd) bool {
	return (f.namespace == "" || f.namespace == e.Namespace) && (f.pod == "" || f.pod == e.Pod)
}

// dropReader follows drops.
type dropReader struct {
	filter dropFilter
	queue  chan drop
	left   int // that there was no room for; guarded by drops.mu
}

// dropsLeftOut is what a reader is told in place of drops that came too fast for it.
type dropsLeftOut struct {
	LeftOut int `json:"leftOut"`
}

// publish keeps a drop, and passes it on to those who follow.
func (d *drops) publish(n drop) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.kept) < maxKept {
		d.kept = append(d.kept, n)
	} else {
		d.kept[d.next] = n
		d.next = (d.next + 1) % maxKept
	}
	for r := range d.readers {
		if !r.filter.matches(&n) {
			continue
		}
		select {
		case r.queue <- n:
		default:
			r.left++
		}
	}
}

// last returns the drops that are kept, oldest first, and, if follow is true, a reader of
// those that come after: nil if there are too many. It is the caller's to leave.
func (d *drops) last(f dropFilter, follow bool) ([]drop, *dropReader) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var r *dropReader
	if follow {
		if len(d.readers) >= maxDropReaders {
			return nil, nil
		}
		r = &dropReader{filter: f, queue: make(chan drop, maxUnread)}
		d.readers[r] = struct{}{}
	}
	all := slices.Concat(d.kept[d.next:], d.kept[:d.next])
	return slices.DeleteFunc(all, func(n drop) bool { return !f.matches(&n) }), r
}

func (d *drops) leave(r *dropReader) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.readers, r)
}

// takeLeft returns how many drops a reader has missed since it was asked last.
func (d *drops) takeLeft(r *dropReader) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := r.left
	r.left = 0
	return n
}

// ServeHTTP answers with the last drops, one JSON object on each line, and with
// ?follow=1 goes on with those that come, until the client goes or the agent ends.
// ?namespace=, ?pod= and ?direction= ask for some of them.
func (d *drops) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f, err := parseDropFilter(q)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := d.err(); err != nil {
		http.Error(w, "denied packets are not seen: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	follow, _ := strconv.ParseBool(q.Get("follow"))
	all, reader := d.last(f, follow)
	if follow {
		if reader == nil {
			http.Error(w, fmt.Sprintf("%d follow the drops of this node already: try again later", maxDropReaders), http.StatusServiceUnavailable)
			return
		}
		defer d.leave(reader)
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	out := &dropWriter{control: http.NewResponseController(w), json: json.NewEncoder(w)}
	for i := range all {
		out.write(&all[i])
	}
	if follow {
		d.follow(r, out, reader)
	}
}

// follow writes drops as they come. An error is a client that went away.
func (d *drops) follow(r *http.Request, out *dropWriter, reader *dropReader) {
	for out.err == nil {
		if len(reader.queue) == 0 {
			if n := d.takeLeft(reader); n > 0 {
				out.write(dropsLeftOut{n})
			}
			out.flush()
		}
		select {
		case <-r.Context().Done():
			return
		case n := <-reader.queue:
			out.write(&n)
		}
	}
}

// dropWriter writes lines to a client, in place of the server's timeout with one for each:
// who follows may do so for ever, but must read.
type dropWriter struct {
	control *http.ResponseController
	json    *json.Encoder
	err     error // of the first write that failed; nothing is written after it
}

func (w *dropWriter) write(line any) {
	if w.err == nil {
		w.extend()
		w.err = w.json.Encode(line)
	}
}

func (w *dropWriter) flush() {
	if w.err == nil {
		w.extend()
		w.err = w.control.Flush()
	}
}

// extend gives the client time. A writer without timeouts, in a test, has none to extend.
func (w *dropWriter) extend() { _ = w.control.SetWriteDeadline(time.Now().Add(maxStuck)) }
