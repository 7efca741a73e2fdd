package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
)

// someDrops returns drops that have seen some: number i is to port i, of ingress to
// shop/db if i is odd, and else of egress from shop/web.
func someDrops(t *testing.T, n int) *drops {
	t.Helper()
	d := newDrops(dropsConfig{}, "n1", shopNames(), testLogger(t))
	for i := range n {
		d.publish(someDrop(i))
	}
	return d
}

func someDrop(i int) drop {
	n := drop{
		Time: time.Date(2026, 11, 5, 12, 0, 0, i, time.UTC), Node: "n1", Direction: dropEgress, Reason: dropPolicyDenies, Protocol: "TCP", Port: uint16(i), Count: 1,
		Source: dropEnd{"shop", "web", netip.MustParseAddr("10.244.1.7")}, Destination: dropEnd{Address: netip.MustParseAddr("192.0.2.1")}, Policies: []dropPolicy{{"shop", "closed"}},
	}
	if i%2 == 1 {
		n.Direction, n.Source, n.Destination = dropIngress, dropEnd{"ops", "probe", netip.MustParseAddr("10.244.3.1")}, dropEnd{"shop", "db", netip.MustParseAddr("10.244.2.9")}
	}
	return n
}

// portsOf reads the ports from lines, and fails the test if one is no drop.
func portsOf(t *testing.T, lines string) string {
	t.Helper()
	var ports []string
	for line := range strings.Lines(lines) {
		var n drop
		if err := json.Unmarshal([]byte(line), &n); err != nil || n.Node != "n1" {
			t.Errorf("%q: %v", line, err)
		}
		ports = append(ports, strconv.Itoa(int(n.Port)))
	}
	return strings.Join(ports, " ")
}

func TestServeDrops(t *testing.T) {
	d := someDrops(t, 6)
	for _, tt := range []struct {
		query string
		code  int
		want  string // ports, or a part of the error
	}{
		{"", 200, "0 1 2 3 4 5"},
		{"?follow=0", 200, "0 1 2 3 4 5"},
		{"?namespace=shop", 200, "0 1 2 3 4 5"},
		{"?namespace=ops", 200, "1 3 5"},
		{"?pod=web", 200, "0 2 4"},
		{"?namespace=ops&pod=web", 200, ""},
		{"?namespace=shop&pod=db&direction=ingress", 200, "1 3 5"},
		{"?direction=egress", 200, "0 2 4"},
		{"?direction=in", 400, `direction: "in" is neither`},
	} {
		w := httptest.NewRecorder()
		d.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/drops"+tt.query, nil))
		if w.Code != tt.code {
			t.Errorf("%s: %d", tt.query, w.Code)
		}
		if tt.code == 200 {
			if got := portsOf(t, w.Body.String()); got != tt.want || w.Header().Get("Content-Type") != "application/x-ndjson" {
				t.Errorf("%s: %s, want %s; %v", tt.query, got, tt.want, w.Header())
			}
		} else if !strings.Contains(w.Body.String(), tt.want) {
			t.Errorf("%s: %s", tt.query, w.Body.String())
		}
	}
	const line = `{"time":"2026-11-05T12:00:00.000000001Z","node":"n1","direction":"ingress","reason":"Policy",` +
		`"source":{"namespace":"ops","pod":"probe","address":"10.244.3.1"},"destination":{"namespace":"shop","pod":"db","address":"10.244.2.9"},` +
		`"protocol":"TCP","port":1,"policies":[{"namespace":"shop","name":"closed"}],"count":1}` + "\n"
	w := httptest.NewRecorder()
	if d.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/drops?pod=probe", nil)); !strings.HasPrefix(w.Body.String(), line) {
		t.Errorf("it says\n%s, want\n%s", w.Body.String(), line)
	}
	d.fail(errors.New("not permitted"))
	w = httptest.NewRecorder()
	if d.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/drops", nil)); w.Code != 503 || w.Body.String() != "denied packets are not seen: not permitted\n" {
		t.Errorf("%d %s", w.Code, w.Body.String())
	}
}

// TestDropsKept keeps the last.
func TestDropsKept(t *testing.T) {
	d := someDrops(t, maxKept+100)
	all, _ := d.last(dropFilter{}, false)
	if len(all) != maxKept || all[0].Port != 100 || all[maxKept-1].Port != maxKept+99 {
		t.Errorf("%d from %d to %d", len(all), all[0].Port, all[len(all)-1].Port)
	}
}

// dropClient follows drops by HTTP.
type dropClient struct {
	*bufio.Scanner
	body io.Closer
}

// followDrops serves drops with the agent's server, until ctx ends, and returns what
// opens clients.
func followDrops(ctx context.Context, t *testing.T, d *drops) (open func(query string) (dropClient, int), served <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l, d) }()
	client := http.Client{Transport: &http.Transport{}}
	return func(query string) (dropClient, int) {
		t.Helper()
		r, err := client.Get("http://" + l.Addr().String() + "/drops?" + query)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Body.Close() })
		return dropClient{bufio.NewScanner(r.Body), r.Body}, r.StatusCode
	}, done
}

// next reads a line.
func (c dropClient) next(t *testing.T) string {
	t.Helper()
	if !c.Scan() {
		t.Fatalf("there are no more lines: %v", c.Err())
	}
	return c.Text()
}

// TestFollowDrops goes on with what comes, until the agent ends.
func TestFollowDrops(t *testing.T) {
	d := someDrops(t, 3)
	ctx, cancel := context.WithCancel(t.Context())
	open, served := followDrops(ctx, t, d)
	all, _ := open("follow=1")
	some, _ := open("follow=true&namespace=ops")
	for i := range 3 {
		if got := portsOf(t, all.next(t)); got != strconv.Itoa(i) {
			t.Errorf("%s comes as number %d", got, i)
		}
	}
	if got := portsOf(t, some.next(t)); got != "1" {
		t.Errorf("%s is asked for", got)
	}
	for i := 3; i < 6; i++ {
		d.publish(someDrop(i))
		if got := portsOf(t, all.next(t)); got != strconv.Itoa(i) {
			t.Errorf("%s comes after %d", got, i)
		}
	}
	if got := portsOf(t, some.next(t)+"\n"+some.next(t)); got != "3 5" {
		t.Errorf("%s is asked for", got)
	}
	cancel()
	if all.Scan() || some.Scan() {
		t.Error("they go on")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestFollowDropsForLong outlives the server's timeouts.
func TestFollowDropsForLong(t *testing.T) {
	d := someDrops(t, 1)
	s := httptest.NewUnstartedServer(d)
	s.Config.ReadTimeout, s.Config.WriteTimeout = 20*time.Millisecond, 20*time.Millisecond
	s.Start()
	defer s.Close()
	r, err := s.Client().Get(s.URL + "/drops?follow=1")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	c := dropClient{bufio.NewScanner(r.Body), r.Body}
	for i := 1; i < 4; i++ {
		if got := portsOf(t, c.next(t)); got != strconv.Itoa(i-1) {
			t.Errorf("%s comes as number %d", got, i-1)
		}
		time.Sleep(100 * time.Millisecond)
		d.publish(someDrop(i))
	}
}

// TestFollowDropsLimits bounds how many follow, and lets others in when one goes.
func TestFollowDropsLimits(t *testing.T) {
	d := someDrops(t, 1)
	open, _ := followDrops(t.Context(), t, d)
	var clients []dropClient
	for range maxDropReaders {
		c, code := open("follow=1")
		if code != 200 {
			t.Fatal(code)
		}
		c.next(t)
		clients = append(clients, c)
	}
	c, code := open("follow=1")
	if said := c.next(t); code != 503 || !strings.Contains(said, "16 follow the drops") {
		t.Errorf("%d %s", code, said)
	}
	if _, code := open(""); code != 200 {
		t.Errorf("who does not follow gets %d", code)
	}
	if err := clients[0].body.Close(); err != nil {
		t.Fatal(err)
	}
	for code = 503; code == 503; time.Sleep(time.Millisecond) {
		_, code = open("follow=1")
	}
	if code != 200 {
		t.Errorf("%d when there is room again", code)
	}
}

// slowWriter is a client that reads nothing until it may.
type slowWriter struct {
	http.ResponseWriter
	writes  io.Writer
	may     chan struct{}
	stopped chan struct{} // is closed by the first write
}

func (w *slowWriter) Write(b []byte) (int, error) {
	select {
	case <-w.stopped:
	default:
		close(w.stopped)
	}
	<-w.may
	return w.writes.Write(b)
}

// Flush implements http.Flusher: nothing waits here.
func (w *slowWriter) Flush() {}

// TestFollowDropsSlowly tells a slow reader how many it has missed.
func TestFollowDropsSlowly(t *testing.T) {
	d := someDrops(t, 1)
	read, write := io.Pipe()
	w := &slowWriter{httptest.NewRecorder(), write, make(chan struct{}), make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/drops?follow=1", nil))
	}()
	<-w.stopped
	for i := range maxUnread + 7 {
		d.publish(someDrop(i + 1))
	}
	close(w.may)
	lines := bufio.NewScanner(read)
	for i := range maxUnread + 1 {
		if lines.Scan(); portsOf(t, lines.Text()) != strconv.Itoa(i) {
			t.Fatalf("number %d is %s", i, lines.Text())
		}
	}
	if lines.Scan(); lines.Text() != `{"leftOut":7}` {
		t.Errorf("it says %s of those that it has left out", lines.Text())
	}
	d.publish(someDrop(500))
	if lines.Scan(); portsOf(t, lines.Text()) != "500" {
		t.Errorf("then comes %s", lines.Text())
	}
	cancel()
	<-ended
	if len(d.readers) > 0 {
		t.Error("the reader is still there")
	}
	// A client that is gone ends it, too.
	d.publish(someDrop(501))
	if err := read.CloseWithError(errors.New("gone")); err != nil {
		t.Fatal(err)
	}
	d.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/drops?follow=1", nil))
}
