package probe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
)

// Control is the HTTP server by which a test drives a probe. It is safe for
// concurrent use.
type Control struct {
	// Base is the context of flows and lookups: they outlive the request that
	// asked for them.
	Base   context.Context
	Server *Server
	Dial   DialFunc

	mu    sync.Mutex
	flows map[string]*running
}

// Handler returns the server's handler:
//
//	GET    /healthz
//	POST   /tries         []Try to []Result
//	POST   /flows         Flow
//	GET    /flows/TOKEN   Progress
//	DELETE /flows/TOKEN   stops it; Progress
//	GET    /arrivals      map of tokens to Arrival
//	GET    /overflowed    number of datagrams
//	POST   /lookups       Lookups to LookupResult
//
// and what bulk adds.
func (c *Control) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /tries", post(func(r *http.Request, tries []Try) (any, error) {
		return Run(r.Context(), c.Dial, tries), nil
	}))
	mux.HandleFunc("POST /flows", post(func(_ *http.Request, f Flow) (any, error) {
		return struct{}{}, c.StartFlow(f)
	}))
	mux.HandleFunc("GET /flows/{token}", c.flow(func(r *running) Progress { return r.progress() }))
	mux.HandleFunc("DELETE /flows/{token}", c.flow(func(r *running) Progress {
		c.mu.Lock()
		delete(c.flows, r.Token)
		c.mu.Unlock()
		return r.finish()
	}))
	mux.HandleFunc("GET /arrivals", func(w http.ResponseWriter, _ *http.Request) { reply(w, c.Server.Arrivals()) })
	mux.HandleFunc("GET /overflowed", func(w http.ResponseWriter, _ *http.Request) {
		n, err := c.Server.Overflowed()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		reply(w, n)
	})
	mux.HandleFunc("POST /lookups", post(func(r *http.Request, l Lookups) (any, error) {
		return l.Run(r.Context(), c.Dial), nil
	}))
	c.bulk(mux)
	return mux
}

// StartFlow begins a flow. Its token must not be in use.
func (c *Control) StartFlow(f Flow) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flows[f.Token] != nil {
		return fmt.Errorf("flow %s goes on already", f.Token)
	}
	r, err := start(c.Base, c.Dial, f)
	if err != nil {
		return err
	}
	if c.flows == nil {
		c.flows = map[string]*running{}
	}
	c.flows[f.Token] = r
	return nil
}

func (c *Control) flow(f func(*running) Progress) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		flow := c.flows[r.PathValue("token")]
		c.mu.Unlock()
		if flow == nil {
			http.Error(w, "no such flow", http.StatusNotFound)
			return
		}
		reply(w, f(flow))
	}
}

// post answers a request whose body is a T.
func post[T any](f func(*http.Request, T) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var body T
		err := json.NewDecoder(r.Body).Decode(&body)
		var answer any
		if err == nil {
			answer, err = f(r, body)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		reply(w, answer)
	}
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // who asked sees that the answer is cut short
}
