package probe_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

// open serves on the loopback device and returns a client of the control server
// and the address of the echo servers, for TCP and UDP alike.
func open(t *testing.T) (*probe.Client, string) {
	t.Helper()
	var d net.Dialer
	c, udp := openBy(t, d.DialContext)
	return c, udp.LocalAddr().String()
}

// openBy is open with another way of opening connections; it returns the UDP
// server's socket.
func openBy(t *testing.T, dial probe.DialFunc) (*probe.Client, *net.UDPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr)
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: at.IP, Port: at.Port})
	if err != nil {
		t.Fatal(err)
	}
	s := &probe.Server{Name: "server"}
	go s.ServeTCP(t.Context(), l)
	go s.ServeUDP(t.Context(), c)
	control := httptest.NewServer((&probe.Control{Base: t.Context(), Server: s, Dial: dial}).Handler())
	t.Cleanup(control.Close)
	return &probe.Client{HTTP: control.Client(), URL: control.URL}, c
}

// silent is a TCP and UDP address that nothing comes back from: a UDP socket
// that is never read, and a listener that accepts nothing.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	at := l.Addr().(*net.TCPAddr)
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: at.IP, Port: at.Port})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return at.String()
}

func TestTry(t *testing.T) {
	c, addr := open(t)
	mute := silent(t)
	for _, tc := range []struct {
		to   string
		kind probe.Kind
		want probe.Outcome
	}{
		{addr, probe.TCP, probe.Answered},
		{addr, probe.UDP, probe.Answered},
		{mute, probe.TCP, probe.Dropped},
		{mute, probe.UDP, probe.Dropped},
		{mute, probe.TLS, probe.Dropped},
		{"127.0.0.1:1", probe.TCP, probe.Refused},
		{"127.0.0.1:1", probe.UDP, probe.Refused},
		{"127.0.0.1:99999", probe.TCP, probe.Failed},
	} {
		token := fmt.Sprintf("%s-%s-%s", tc.kind, tc.to, tc.want)
		timeout := 5 * time.Second
		if tc.want == probe.Dropped {
			timeout = 100 * time.Millisecond
		}
		results, err := c.Try(t.Context(), probe.Try{Kind: tc.kind, To: tc.to, Token: token, Timeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
		r := results[0]
		if r.Outcome != tc.want || (r.Error == "") != (tc.want == probe.Answered) {
			t.Errorf("%s to %s: %+v, want %s", tc.kind, tc.to, r, tc.want)
		}
		arrivals, err := c.Arrivals(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if a := arrivals[token]; (a.Count == 1) != (tc.want == probe.Answered) {
			t.Errorf("%s to %s: %d arrivals after %s", tc.kind, tc.to, a.Count, r.Outcome)
		}
		if tc.want == probe.Answered && (r.By != "server" || r.Source != "127.0.0.1") {
			t.Errorf("%s to %s: answered by %q, which saw %q", tc.kind, tc.to, r.By, r.Source)
		}
	}
}

func TestFlow(t *testing.T) {
	c, addr := open(t)
	kinds := []probe.Kind{probe.TCP, probe.UDP, probe.NewTCP, probe.NewUDP}
	for _, kind := range kinds {
		f := probe.Flow{Token: string(kind), Kind: kind, To: addr, Interval: time.Millisecond, Timeout: 5 * time.Second}
		if err := c.Start(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(t.Context(), f); err == nil {
			t.Errorf("%s: a second flow with the same token was begun", kind)
		}
	}
	time.Sleep(100 * time.Millisecond)
	for _, kind := range kinds {
		p, err := c.Stop(t.Context(), string(kind))
		if err != nil {
			t.Fatal(err)
		}
		if p.Sent < 10 || p.Answered != p.Sent || p.Lost > 0 || p.Ended != "" || len(p.Errors) > 0 || p.By["server"] != p.Sent {
			t.Errorf("%s: %+v", kind, p)
		}
		if p.Gap <= 0 || p.Gap > 5*time.Second || p.FirstAnswer.Before(p.Began) || p.LastAnswer.Before(p.FirstAnswer) {
			t.Errorf("%s: times %+v", kind, p)
		}
		arrivals, err := c.Arrivals(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if a := arrivals[string(kind)]; a.Count != p.Sent || a.From["127.0.0.1"] != p.Sent {
			t.Errorf("%s: %+v arrived of %d", kind, a, p.Sent)
		}
		if _, err := c.Progress(t.Context(), string(kind)); err == nil {
			t.Errorf("%s: a flow that was stopped still goes on", kind)
		}
	}
}

// TestFlowLoses aims flows at a server that never answers.
func TestFlowLoses(t *testing.T) {
	c, _ := open(t)
	mute := silent(t)
	kinds := []probe.Kind{probe.TCP, probe.UDP, probe.NewTCP, probe.NewUDP}
	for _, kind := range kinds {
		f := probe.Flow{Token: string(kind), Kind: kind, To: mute, Interval: time.Millisecond, Timeout: 50 * time.Millisecond}
		if err := c.Start(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond)
	for _, kind := range kinds {
		p, err := c.Stop(t.Context(), string(kind))
		if err != nil {
			t.Fatal(err)
		}
		if p.Sent == 0 || p.Answered != 0 || p.Lost != p.Sent || !p.FirstAnswer.IsZero() {
			t.Errorf("%s: %+v", kind, p)
		}
	}
}

// TestFlowEnds closes the server's side of a connection.
func TestFlowEnds(t *testing.T) {
	c, _ := open(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := l.Accept()
		if err == nil {
			conn.Close()
		}
		cancel()
	}()
	if err := c.Start(t.Context(), probe.Flow{Token: "x", Kind: probe.TCP, To: l.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	l.Close()
	time.Sleep(50 * time.Millisecond)
	p, err := c.Progress(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if p.Ended == "" {
		t.Errorf("the server has closed the connection: %+v", p)
	}
}

// TestLookups asks a DNS server that leaves every fifth AAAA question
// unanswered.
func TestLookups(t *testing.T) {
	c, _ := open(t)
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go answerDNS(server)
	r, err := c.Lookup(t.Context(), probe.Lookups{
		Server: server.LocalAddr().String(), Name: "a.example", Count: 50, Parallel: 5, Timeout: 200 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Done != 50 || r.LostA != 0 || r.LostAAAA != 10 || len(r.Errors) > 0 || r.P50 <= 0 || r.P99 < r.P50 {
		t.Errorf("%+v", r)
	}
}

func answerDNS(server *net.UDPConn) {
	buf := make([]byte, 512)
	asked := 0
	for {
		n, from, err := server.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil {
			continue
		}
		if m.Questions[0].Type == dnsmessage.TypeAAAA {
			if asked++; asked%5 == 0 {
				continue
			}
		}
		m.Response = true
		if answer, err := m.Pack(); err == nil {
			_, _ = server.WriteToUDPAddrPort(answer, from)
		}
	}
}

func TestGRPCHealth(t *testing.T) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	s := httptest.NewUnstartedServer(probe.GRPCHealth())
	s.Config.Protocols = protocols
	s.Start()
	defer s.Close()
	client := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/grpc.health.v1.Health/Check", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body := make([]byte, 16)
	n, _ := resp.Body.Read(body)
	for err == nil { // trailers come after the body
		_, err = resp.Body.Read(make([]byte, 1))
	}
	if resp.ProtoMajor != 2 || string(body[:n]) != "\x00\x00\x00\x00\x02\x08\x01" || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("HTTP/%d, %q, trailers %v", resp.ProtoMajor, body[:n], resp.Trailer)
	}
}
