package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestProbes(t *testing.T) {
	var why error
	mux := newMux(http.NotFoundHandler(), func() error { return nil }, func() error { return why })
	get := func(method, path string) (int, string) {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w.Code, w.Body.String()
	}
	for _, test := range []struct {
		method, path string
		why          error
		code         int
		body         string
	}{
		{http.MethodGet, "/healthz", errors.New("not ready is not unhealthy"), 200, "ok\n"},
		{http.MethodGet, "/readyz", nil, 200, "ok\n"},
		{http.MethodHead, "/readyz", nil, 200, "ok\n"},
		{http.MethodGet, "/readyz", errors.Join(errors.New("one"), nil, errors.New("two")), 503, "one\ntwo\n"},
		{http.MethodPost, "/readyz", nil, 405, "Method Not Allowed\n"},
		{http.MethodGet, "/debug/pprof/", nil, 404, "404 page not found\n"},
	} {
		why = test.why
		if code, body := get(test.method, test.path); code != test.code || body != test.body {
			t.Errorf("%s %s: %d %q, want %d %q", test.method, test.path, code, body, test.code, test.body)
		}
	}
}

// TestServe ends with its context, even while a client hangs.
func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- serve(ctx, l, newMux(http.NotFoundHandler(), func() error { return nil }, func() error { return nil }))
	}()
	hanging, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer hanging.Close()
	client := http.Client{Timeout: time.Minute}
	response, err := client.Get("http://" + l.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil || string(body) != "ok\n" {
		t.Errorf("%q, %v", body, err)
	}
	if err := response.Body.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
