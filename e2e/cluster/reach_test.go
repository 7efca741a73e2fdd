package cluster

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

const (
	// settle is how long a change may take to be in force everywhere.
	settle = 15 * time.Second
	// patience is how long an answer may take on a machine under load, and
	// impatience how long a try waits that should not be answered: whether it
	// arrived is asked at the server anyway.
	patience   = 5 * time.Second
	impatience = 500 * time.Millisecond
)

// asker is a place to ask from: a pod, or a machine's own network.
type asker struct {
	name string
	try  func(context.Context, ...probe.Try) ([]probe.Result, error)
}

// from asks from a pod.
func from(p *pod) asker {
	return asker{p.String(), func(ctx context.Context, tries ...probe.Try) ([]probe.Result, error) {
		return p.probe.Try(ctx, tries...)
	}}
}

// fromMachine asks from a machine's own network: from a node, or from outside
// of the cluster if it is the fabric.
func (e *env) fromMachine(name string) asker {
	return asker{"machine " + name, func(ctx context.Context, tries ...probe.Try) ([]probe.Result, error) {
		return probe.Run(ctx, e.dialFrom(name), tries), nil
	}}
}

// target is something to ask.
type target struct {
	name string
	kind probe.Kind
	to   string
	// at are the probes that may serve it; none if it is not served by probes.
	at []*pod
	// tries is how often to ask in one check, so that each of several servers
	// gets its turn; zero means once.
	tries int
}

// tcp is a TCP port of a pod: 80 is always served.
func tcp(p *pod, port int) target { return portOf(p, probe.TCP, port) }

// udp is a UDP port of a pod: 80 is always served.
func udp(p *pod, port int) target { return portOf(p, probe.UDP, port) }

func portOf(p *pod, kind probe.Kind, port int) target {
	return target{
		name: fmt.Sprintf("%s, %s %d", p, kind, port), kind: kind,
		to: net.JoinHostPort(p.IP, strconv.Itoa(port)), at: []*pod{p},
	}
}

// over asks the same by another protocol or way.
func (t target) over(kind probe.Kind) target {
	t.name, t.kind = strings.Replace(t.name, string(t.kind), string(kind), 1), kind
	return t
}

// check is a claim: a new connection from here to there is allowed, or denied.
type check struct {
	from   asker
	to     target
	denied bool
}

func allowed(from asker, to ...target) []check { return claim(from, to, false) }
func denied(from asker, to ...target) []check  { return claim(from, to, true) }

func claim(from asker, to []target, denied bool) []check {
	checks := make([]check, len(to))
	for i, t := range to {
		checks[i] = check{from, t, denied}
	}
	return checks
}

// reach waits until all checks hold at once, and then makes sure that they do a
// second time, with more patience.
func (e *env) reach(ctx context.Context, claims ...[]check) {
	GinkgoHelper()
	var checks []check
	for _, c := range claims {
		checks = append(checks, c...)
	}
	deadline := time.Now().Add(settle)
	for {
		wrong := verify(ctx, checks, time.Second)
		if len(wrong) == 0 {
			break
		}
		if time.Now().After(deadline) {
			Fail(fmt.Sprintf("not as claimed, %v after the change:\n%s", settle, strings.Join(wrong, "\n")))
		}
	}
	if wrong := verify(ctx, checks, patience); len(wrong) > 0 {
		Fail("as claimed at first, and then no more:\n" + strings.Join(wrong, "\n"))
	}
}

// still makes sure that all checks hold, now.
func still(ctx context.Context, claims ...[]check) {
	GinkgoHelper()
	for _, checks := range claims {
		if wrong := verify(ctx, checks, patience); len(wrong) > 0 {
			Fail("not as claimed:\n" + strings.Join(wrong, "\n"))
		}
	}
}

// verify tries all checks at once and returns a line for each that does not
// hold.
func verify(ctx context.Context, checks []check, patience time.Duration) []string {
	GinkgoHelper()
	wrong := make([]string, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() {
			defer GinkgoRecover()
			wrong[i] = c.verify(ctx, patience)
		})
	}
	wg.Wait()
	var lines []string
	for _, w := range wrong {
		if w != "" {
			lines = append(lines, w)
		}
	}
	return lines
}

// verify returns what is wrong, or "".
func (c check) verify(ctx context.Context, patience time.Duration) string {
	t := probe.Try{Kind: c.to.kind, To: c.to.to, Timeout: patience}
	if c.denied {
		t.Timeout = impatience
	}
	tries := make([]probe.Try, max(c.to.tries, 1))
	for i := range tries {
		t.Token = newToken("try")
		tries[i] = t
	}
	results, err := c.from.try(ctx, tries...)
	if err != nil {
		return fmt.Sprintf("%s could not ask: %v", c.from.name, err)
	}
	var arrived map[string]probe.Arrival
	if c.denied {
		if arrived, err = arrivals(ctx, c.to.at); err != nil {
			return err.Error()
		}
	}
	for i, r := range results {
		_, came := arrived[tries[i].Token]
		if w := c.judge(r, came); w != "" {
			return w
		}
	}
	return ""
}

func (c check) judge(r probe.Result, arrived bool) string {
	switch {
	case !c.denied && r.Outcome == probe.Answered && c.serves(r.By):
		return ""
	case !c.denied && r.Outcome == probe.Answered:
		return fmt.Sprintf("%s to %s (%s): answered by %s", c.from.name, c.to.name, c.to.to, r.By)
	case c.denied && r.Outcome == probe.Dropped && !arrived:
		return ""
	case c.denied && arrived:
		return fmt.Sprintf("%s to %s (%s): arrived, but should be denied", c.from.name, c.to.name, c.to.to)
	}
	want := "allowed"
	if c.denied {
		want = "denied"
	}
	return fmt.Sprintf("%s to %s (%s): %s %s after %v, but should be %s",
		c.from.name, c.to.name, c.to.to, r.Outcome, r.Error, r.Took.Round(time.Millisecond), want)
}

// serves tells whether a probe may answer for the target. What is not served by
// probes answers without a name.
func (c check) serves(by string) bool {
	if len(c.to.at) == 0 {
		return by == ""
	}
	for _, p := range c.to.at {
		if p.Tells == by {
			return true
		}
	}
	return false
}

// arrivals are what reached any of some pods, by token.
func arrivals(ctx context.Context, pods []*pod) (map[string]probe.Arrival, error) {
	all := map[string]probe.Arrival{}
	for _, p := range pods {
		some, err := p.probe.Arrivals(ctx)
		if err != nil {
			return nil, fmt.Errorf("arrivals at %s: %w", p, err)
		}
		for token, a := range some {
			sum := all[token]
			sum.Count += a.Count
			if sum.First.IsZero() || a.First.Before(sum.First) {
				sum.First = a.First
			}
			if a.Last.After(sum.Last) {
				sum.Last = a.Last
			}
			all[token] = sum
		}
	}
	return all, nil
}

// seenFrom returns the address that a server sees when it is asked from
// somewhere. No policy may be in the way.
func seenFrom(ctx context.Context, from asker, to target) string {
	GinkgoHelper()
	var source string
	Eventually(ctx, func(g Gomega) {
		r, err := from.try(ctx, probe.Try{Kind: to.kind, To: to.to, Token: newToken("who"), Timeout: patience})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(r[0].Outcome).To(Equal(probe.Answered), r[0].Error)
		source = r[0].Source
	}).WithTimeout(settle).Should(Succeed())
	return source
}
