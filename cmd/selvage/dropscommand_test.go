package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// fewAgents are those of a test's cluster.
type fewAgents []agentAt

func (a fewAgents) find(context.Context) ([]agentAt, error) { return a, nil }

// servedAgent is an agent that answers with h.
func servedAgent(t *testing.T, node string, h http.Handler) agentAt {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	one, err := newOneAgent(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return agentAt{node: node, open: one.open}
}

// mute is an agent that does not answer.
func mute(node string) agentAt {
	return agentAt{node: node, open: func(context.Context, string, url.Values) (io.ReadCloser, error) {
		return nil, errors.New("no agent answers: \x1b[31mrefused")
	}}
}

// writes is an agent that says this, whatever it is asked.
func writes(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

// exitCode is what an error makes of a command's exit code.
func exitCode(err error) int {
	if e := (*exitError)(nil); errors.As(err, &e) {
		return e.code
	}
	if err != nil {
		return 1
	}
	return 0
}

func TestDropsCommand(t *testing.T) {
	d := newDrops(dropsConfig{}, "n1", shopNames(), testLogger(t))
	web, db := dropEnd{"shop", "web", netip.MustParseAddr("10.244.1.7")}, dropEnd{"shop", "db", netip.MustParseAddr("10.244.2.9")}
	at := func(seconds int) time.Time { return time.Date(2026, 11, 5, 12, 0, seconds, 0, time.UTC) }
	kind := uint8(8)
	for _, n := range []drop{
		{Time: at(1), Direction: dropIngress, Reason: dropPolicyDenies, Source: web, Destination: db, Protocol: "TCP", Port: 5432, Policies: []dropPolicy{{"shop", "closed"}, {"shop", "db"}}, Count: 1},
		{Time: at(3), Direction: dropEgress, Reason: dropPolicyDenies, Source: web, Destination: dropEnd{Address: netip.MustParseAddr("192.0.2.1")}, Protocol: "ICMP", ICMPType: &kind, Policies: []dropPolicy{{"shop", "no-egress"}}, Count: 37},
		{Time: at(4), Reason: dropUnknownPod, Source: dropEnd{Address: netip.MustParseAddr("fd00::99")}, Destination: db, Protocol: "89", Count: 2},
		{Time: at(5), Direction: dropEgress, Reason: dropPolicyDenies, Source: web, Destination: db, Protocol: "UDP", Port: 53, Reply: true, Policies: []dropPolicy{}, Count: 1},
	} {
		n.Node = "n1"
		d.publish(n)
	}
	n1 := servedAgent(t, "n1", d)
	n2 := servedAgent(t, "n2", writes(`{"time":"2026-11-05T12:00:02Z","node":"n2","direction":"ingress\u001b[31m","source":{"address":"192.0.2.1"},`+
		`"destination":{"namespace":"a\nb","pod":"\u202ex\u009b","address":"10.0.0.1"},"protocol":"TCP","port":80,"policies":[{"namespace":"\u0007","name":"p"}],"count":1}`+"\n\n"))
	const json1 = `{"time":"2026-11-05T12:00:01Z","node":"n1","direction":"ingress","reason":"Policy","source":{"namespace":"shop","pod":"web","address":"10.244.1.7"},` +
		`"destination":{"namespace":"shop","pod":"db","address":"10.244.2.9"},"protocol":"TCP","port":5432,"policies":[{"namespace":"shop","name":"closed"},{"namespace":"shop","name":"db"}],"count":1}` + "\n"
	for _, tt := range []struct {
		name           string
		options        dropsOptions
		agents         fewAgents
		code           int
		stdout, stderr string
	}{
		{"one node", dropsOptions{output: "table"}, fewAgents{n1}, 0, `TIME                   DIRECTION   FROM       TO          PORT             POLICIES              COUNT
2026-11-05T12:00:01Z   ingress     shop/web   shop/db     5432/TCP         shop/closed,shop/db   1
2026-11-05T12:00:03Z   egress      shop/web   192.0.2.1   ICMP type 8      shop/no-egress        37
2026-11-05T12:00:04Z   <none>      fd00::99   shop/db     89               <unknown pod>         2
2026-11-05T12:00:05Z   egress      shop/web   shop/db     53/UDP (reply)   <none>                1
`, ""},
		{"two, and nothing that a terminal obeys", dropsOptions{output: "table", filter: dropFilter{direction: dropIngress}}, fewAgents{n1, n2}, 0,
			`TIME                   NODE   DIRECTION      FROM        TO        PORT       POLICIES              COUNT
2026-11-05T12:00:01Z   n1     ingress        shop/web    shop/db   5432/TCP   shop/closed,shop/db   1
2026-11-05T12:00:02Z   n2     ingress` + "\ufffd" + `[31m   192.0.2.1   a b/` + "\ufffdx\ufffd" + `   80/TCP     ` + "\ufffd" + `/p                   1
`, ""},
		{"JSON", dropsOptions{output: "json", filter: dropFilter{namespace: "shop", pod: "db", direction: dropIngress}}, fewAgents{n1}, 0, json1, ""},
		{"by time", dropsOptions{output: "json"}, fewAgents{servedAgent(t, "", writes(strings.Replace(json1, "12:00:01", "12:00:09", 1)+json1))}, 0,
			json1 + strings.Replace(json1, "12:00:01", "12:00:09", 1), ""},
		{"none", dropsOptions{output: "table", filter: dropFilter{namespace: "other"}}, fewAgents{n1}, 0, "", "No drops were seen lately.\n"},
		{"none as JSON", dropsOptions{output: "json", filter: dropFilter{namespace: "other"}}, fewAgents{n1}, 0, "", ""},
		{"one does not answer", dropsOptions{output: "json", filter: dropFilter{direction: dropIngress}}, fewAgents{n1, mute("n2")}, 0, json1, "selvage: node n2: no agent answers: \ufffd[31mrefused\n"},
		{"none answers", dropsOptions{output: "table"}, fewAgents{mute(""), mute("n2\n")}, 2, "", "selvage: no agent answers: \ufffd[31mrefused\nselvage: node n2 : no agent answers: \ufffd[31mrefused\n"},
		{"no sense", dropsOptions{output: "table"}, fewAgents{servedAgent(t, "", writes("<html>"))}, 2, "",
			"selvage: what it says of /drops cannot be understood: invalid character '<' looking for beginning of value: see that it is an agent of Selvage, of this version\n"},
		{"it sees none", dropsOptions{output: "table"}, fewAgents{servedAgent(t, "", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "denied packets are not seen: no", http.StatusServiceUnavailable)
		}))}, 2, "", "selvage: its agent says: denied packets are not seen: no\n"},
		{"followed to the end", dropsOptions{output: "table", follow: true}, fewAgents{servedAgent(t, "", writes(json1+`{"leftOut":7}`+"\n"+strings.Replace(json1, "5432", "80", 1)))}, 0,
			`TIME                   DIRECTION   FROM       TO        PORT       POLICIES              COUNT
2026-11-05T12:00:01Z   ingress     shop/web   shop/db   5432/TCP   shop/closed,shop/db   1
2026-11-05T12:00:01Z   ingress     shop/web   shop/db   80/TCP     shop/closed,shop/db   1
`, "selvage: 7 drops were left out: they came too fast\nselvage: its agent has ended: there is nothing more to follow\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			err := tt.options.run(t.Context(), tt.agents, &stdout, &stderr)
			if code := exitCode(err); code != tt.code {
				t.Errorf("exit code %d, want %d (%v)", code, tt.code, err)
			}
			if stdout.String() != tt.stdout {
				t.Errorf("it writes\n%s, want\n%s", stdout.String(), tt.stdout)
			}
			if !slices.Equal(slices.Sorted(strings.Lines(stderr.String())), slices.Sorted(strings.Lines(tt.stderr))) {
				t.Errorf("it says\n%s, want\n%s", stderr.String(), tt.stderr)
			}
		})
	}
}

// TestDropsCommandFollows writes each drop when it comes, of all agents, until it is
// ended.
func TestDropsCommandFollows(t *testing.T) {
	d := someDrops(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	stdout, write := io.Pipe()
	done := make(chan error, 1)
	var stderr bytes.Buffer
	o := dropsOptions{output: "table", follow: true, filter: dropFilter{direction: dropIngress}}
	go func() {
		done <- o.run(ctx, fewAgents{servedAgent(t, "n1", d), mute("n2")}, write, &stderr)
		write.Close()
	}()
	lines := bufio.NewScanner(stdout)
	next := func(want string) {
		t.Helper()
		if !lines.Scan() || strings.Join(strings.Fields(lines.Text()), " ") != want {
			t.Errorf("it writes %q, want %q", lines.Text(), want)
		}
	}
	next("TIME NODE DIRECTION FROM TO PORT POLICIES COUNT")
	next("2026-11-05T12:00:00Z n1 ingress ops/probe shop/db 1/TCP shop/closed 1")
	d.publish(someDrop(2))
	d.publish(someDrop(3))
	next("2026-11-05T12:00:00Z n1 ingress ops/probe shop/db 3/TCP shop/closed 1")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if want := "selvage: node n2: no agent answers: \ufffd[31mrefused\n"; stderr.String() != want {
		t.Errorf("it says %q, want %q", stderr.String(), want)
	}
}

// TestDropsCommandFlags asks the agent that it is told of.
func TestDropsCommandFlags(t *testing.T) {
	s := httptest.NewServer(someDrops(t, 4))
	defer s.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	for _, tt := range []struct {
		args           []string
		code           int
		stdout, stderr string // parts
	}{
		{[]string{"--agent=" + s.URL, "-n", "ops", "--pod=probe", "--direction=ingress", "-o=json"}, 0, `"port":3`, ""},
		{[]string{"--agent=" + s.URL, "-n", "ops", "--direction=egress"}, 0, "", "No drops were seen lately."},
		{[]string{"--agent=" + gone.URL}, 2, "", "selvage: no agent answers"},
		{[]string{"--agent=" + s.URL, "--direction=in", "--output=yaml"}, 2, "", `--direction: "in" is neither ingress nor egress` + "\nselvage: " + `--output: "yaml" is neither table nor json`},
		{[]string{"shop/web"}, 2, "", "unknown command"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run("selvage", append([]string{"drops"}, tt.args...), &stdout, &stderr); code != tt.code {
			t.Errorf("%v: exit code %d, want %d", tt.args, code, tt.code)
		}
		if !strings.Contains(stdout.String(), tt.stdout) || !strings.Contains(stderr.String(), tt.stderr) || tt.stderr == "" && stderr.Len() > 0 {
			t.Errorf("%v: it says\n%s%s", tt.args, stdout.String(), stderr.String())
		}
	}
}
