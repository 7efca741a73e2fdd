package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestProbes(t *testing.T) {
	var why error
	mux := newMux(endpoints{metrics: http.NotFoundHandler(), healthy: func() error { return nil }, ready: func() error { return why }})
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

// TestListenAddresses is what --http-address may be.
func TestListenAddresses(t *testing.T) {
	for flag, want := range map[string]string{
		"":                               "",
		"127.0.0.1:9470":                 "127.0.0.1:9470",
		":9470":                          ":9470",
		"localhost:80":                   "localhost:80",
		"[::1]:80":                       "[::1]:80",
		"fd00::1:9470":                   "[fd00::1]:9470",
		"127.0.0.1:9470,10.0.0.7:9470":   "127.0.0.1:9470 10.0.0.7:9470",
		" 127.0.0.1:9470, fd00::2:9470,": "127.0.0.1:9470 [fd00::2]:9470",
		"127.0.0.1:1,[127.0.0.1]:1":      "127.0.0.1:1",
		"9470":                           "--http-address: address 9470: missing port",
		"::1":                            "error", // which leaves no address before the port
		"127.0.0.1:http,a:b:1":           "--http-address: \"http\" is not a port\n--http-address: \"a:b\" is neither a host nor an address",
		"127.0.0.1:65536":                "--http-address: \"65536\" is not a port",
		"[::1:80":                        "[::1]:80",
		"$(HOST_IP):9470":                "$(HOST_IP):9470", // nobody has replaced it, and listening fails
	} {
		all, err := listenAddresses(flag)
		got := strings.Join(all, " ")
		if err != nil {
			got = err.Error()
		}
		if got != want && (want != "error" || err == nil) {
			t.Errorf("%q: %q, want %q", flag, got, want)
		}
	}
}

// TestListen listens everywhere or nowhere.
func TestListen(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c := config{httpAddress: "127.0.0.2:0,127.0.0.3:0"}
	all, err := c.listen(t.Context())
	if err != nil || len(all) != 2 {
		t.Fatalf("%v, %v", all, err)
	}
	closeAll(all)
	closeAll(all)
	free := all[0].Addr().String()
	c.httpAddress = free + "," + taken.Addr().String()
	if _, err := c.listen(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "--http-address: listen tcp "+taken.Addr().String()) {
		t.Errorf("%v", err)
	}
	c.httpAddress = free
	if all, err = c.listen(t.Context()); err != nil {
		t.Errorf("what it could listen at is not free again: %v", err)
	}
	closeAll(all)
}

// TestConnections takes so many at a time, and the next one when one has ended.
func TestConnections(t *testing.T) {
	c := config{httpAddress: "127.0.0.1:0"}
	all, err := c.listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(all)
	accepted := make(chan net.Conn, maxConnections+1)
	go func() {
		for {
			conn, err := all[0].Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	for range maxConnections + 1 {
		conn, err := net.Dial("tcp", all[0].Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	first := <-accepted
	for range maxConnections - 1 {
		defer (<-accepted).Close()
	}
	time.Sleep(20 * time.Millisecond) // in which one more could come
	if len(accepted) > 0 {
		t.Error("one more than the limit was accepted")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	defer (<-accepted).Close()
}

// TestPage has the page hold what its headers say, and nothing that takes a text for
// anything else.
func TestPage(t *testing.T) {
	w := httptest.NewRecorder()
	newMux(endpoints{metrics: http.NotFoundHandler(), page: newPage()}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	body := w.Body.String()
	for name, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	between := func(tag string) string {
		_, rest, _ := strings.Cut(body, "<"+tag+">")
		text, after, ok := strings.Cut(rest, "</"+tag+">")
		if !ok || strings.Contains(after, "<"+tag) {
			t.Errorf("the page does not have one <%s>", tag)
		}
		return text
	}
	script := between("script")
	want := "default-src 'none'; connect-src 'self'; style-src " + sourceHash(between("style")) + "; script-src " + sourceHash(script) + "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	if got := w.Header().Get("Content-Security-Policy"); got != want {
		t.Errorf("policy %q, want %q", got, want)
	}
	for _, not := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "setTimeout(\"", "javascript:"} {
		if strings.Contains(script, not) {
			t.Errorf("the script has %s", not)
		}
	}
	for _, not := range []string{"http://", "https://", " src=", " style=", "<link", "@import", "url("} {
		if rest := strings.ReplaceAll(body, "http://www.w3.org/2000/svg", ""); strings.Contains(rest, not) {
			t.Errorf("the page has %s", not)
		}
	}
	for _, path := range []string{`fetch("status"`, `fetch("drops?follow=1"`} { // relative, for the API server's proxy
		if !strings.Contains(script, path) {
			t.Errorf("the script has no %s", path)
		}
	}
	without := httptest.NewRecorder()
	newMux(endpoints{metrics: http.NotFoundHandler()}).ServeHTTP(without, httptest.NewRequest(http.MethodGet, "/", nil))
	if without.Code != http.StatusNotFound {
		t.Errorf("without --page: %d", without.Code)
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
		done <- serve(ctx, l, newMux(endpoints{metrics: http.NotFoundHandler(), healthy: func() error { return nil }, ready: func() error { return nil }}))
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
