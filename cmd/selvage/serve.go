package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/netutil"
)

// maxConnections is how many an address takes at a time. Others wait: whoever reaches
// the node's address must not be able to exhaust the agent, or to keep those away who
// ask at 127.0.0.1.
const maxConnections = 256

// endpoints are what an agent answers. Those that are nil are not there.
type endpoints struct {
	metrics http.Handler
	// healthy and ready return nil, or all the reasons why not, joined.
	healthy, ready func() error
	status         http.Handler
	drops          http.Handler
	explain        http.Handler
	page           http.Handler
}

// endpoints are those of this agent.
func (a *agent) endpoints(c config) endpoints {
	e := endpoints{
		metrics: a.metrics.Handler(), healthy: a.healthy, ready: a.ready,
		status: http.HandlerFunc(a.serveStatus), drops: a.drops, explain: newKernelRules(c.policy.NodeName),
	}
	if c.page {
		e.page = newPage()
	}
	return e
}

// newMux serves the endpoints, to be read and nothing else.
func newMux(e endpoints) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", e.metrics)
	mux.Handle("GET /healthz", probe(e.healthy))
	mux.Handle("GET /readyz", probe(e.ready))
	for pattern, h := range map[string]http.Handler{
		"GET /status": e.status, "GET /drops": e.drops, "GET /explain": e.explain, "GET /{$}": e.page,
	} {
		if h != nil {
			mux.Handle(pattern, h)
		}
	}
	return mux
}

// probe answers 200 and "ok", or 503 and the reasons, one per line.
func probe(f func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err := f(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, strings.TrimSpace(err.Error())) // the client went away: nobody to tell
			return
		}
		fmt.Fprintln(w, "ok")
	}
}

// answerJSON answers with a value, which is as it is now and not to be kept.
func answerJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	data, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(data, '\n')) // the client went away: nobody to tell
}

// listenAddresses returns what --http-address says: each host:port. That an IPv6
// address has no brackets is forgiven, since $(HOST_IP) has none; the port is what
// follows the last colon.
func listenAddresses(flag string) ([]string, error) {
	var all []string
	var errs []error
	for text := range strings.SplitSeq(flag, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		address, err := listenAddress(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("--http-address: %w", err))
		} else if !slices.Contains(all, address) {
			all = append(all, address)
		}
	}
	return all, errors.Join(errs...)
}

func listenAddress(text string) (string, error) {
	colon := strings.LastIndexByte(text, ':')
	if colon < 0 {
		return "", fmt.Errorf("address %s: missing port", text)
	}
	host, port := text[:colon], text[colon+1:]
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q is not a port", port)
	}
	bare := strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.ContainsAny(bare, ":[]") {
		if _, err := netip.ParseAddr(bare); err != nil {
			return "", fmt.Errorf("%q is neither a host nor an address", host)
		}
	}
	return net.JoinHostPort(bare, port), nil
}

// listen listens at all addresses, or at none.
func (c *config) listen(ctx context.Context) ([]net.Listener, error) {
	addresses, err := listenAddresses(c.httpAddress)
	if err != nil {
		return nil, err
	}
	var all []net.Listener
	for _, a := range addresses {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", a)
		if err != nil {
			closeAll(all)
			return nil, fmt.Errorf("--http-address: %w", err)
		}
		all = append(all, netutil.LimitListener(l, maxConnections))
	}
	return all, nil
}

// closeAll closes listeners, which may be closed already.
func closeAll(all []net.Listener) {
	for _, l := range all {
		_ = l.Close()
	}
}

// serve answers requests on l until ctx ends, and so do the requests' contexts. It
// closes l.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler:           h,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = s.Shutdown(grace) // what is not answered by then is cut below
		_ = s.Close()
	})()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	<-stopped
	return nil
}
