package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

// flow is a flow of requests that goes on between a pod and a target.
type flow struct {
	probe.Flow
	from *pod
	to   target
	// before is how many datagrams the UDP sockets of each server had no room for
	// until the flow began.
	before map[*pod]uint64
}

func (f *flow) String() string {
	return fmt.Sprintf("%s flow from %s to %s", f.Kind, f.from, f.to.name)
}

// anyKind are the kinds of flows: connections that live for long, and new ones.
func anyKind() []probe.Kind { return []probe.Kind{probe.TCP, probe.UDP, probe.NewTCP, probe.NewUDP} }

// anyNew are the kinds of flows that need nothing to have been allowed before.
func anyNew() []probe.Kind { return []probe.Kind{probe.UDP, probe.NewTCP, probe.NewUDP} }

// lossTimeout is how long a request may wait for its answer: nothing that TCP
// sends again after a loss, or a machine under load delays, takes longer.
const lossTimeout = 3 * time.Second

// flows begins a flow of each kind, to the port of a target.
func flows(ctx context.Context, from *pod, to target, interval time.Duration, kinds ...probe.Kind) []*flow {
	GinkgoHelper()
	var all []*flow
	before := overflowed(ctx, to.at)
	for _, kind := range kinds {
		f := &flow{
			Flow: probe.Flow{Token: newToken("flow"), Kind: kind, To: to.to, Interval: interval, Timeout: lossTimeout},
			from: from, to: to.over(kind), before: before,
		}
		Expect(from.probe.Start(ctx, f.Flow)).To(Succeed())
		all = append(all, f)
	}
	return all
}

// progress tells how far the flow has come.
func (f *flow) progress(ctx context.Context) probe.Progress {
	GinkgoHelper()
	p, err := f.from.probe.Progress(ctx, f.Token)
	Expect(err).NotTo(HaveOccurred())
	return p
}

// stop ends flows, all at once, and tells what came of them. Their last requests
// may take their time.
func stop(ctx context.Context, all []*flow) []probe.Progress {
	GinkgoHelper()
	came, errs := make([]probe.Progress, len(all)), make([]error, len(all))
	var wg sync.WaitGroup
	for i, f := range all {
		wg.Go(func() { came[i], errs[i] = f.from.probe.Stop(ctx, f.Token) })
	}
	wg.Wait()
	for i, err := range errs {
		Expect(err).NotTo(HaveOccurred(), all[i].String())
	}
	return came
}

// answering waits until each flow has been answered since now.
func answering(ctx context.Context, all []*flow) {
	GinkgoHelper()
	now := time.Now()
	for _, f := range all {
		Eventually(ctx, func() time.Time { return f.progress(ctx).LastAnswer }).
			WithTimeout(settle).WithPolling(20*time.Millisecond).
			Should(BeTemporally(">", now), f.String()+" is answered")
	}
}

// silent waits until no flow is answered any more for a while.
func silent(ctx context.Context, window time.Duration, all []*flow) {
	GinkgoHelper()
	for _, f := range all {
		Eventually(ctx, func() time.Duration { return time.Since(f.progress(ctx).LastAnswer) }).
			WithTimeout(settle+window).WithPolling(20*time.Millisecond).
			Should(BeNumerically(">", window), f.String()+" has ended")
	}
}

// overflowed is how many datagrams the UDP sockets of each server had no room for
// so far.
func overflowed(ctx context.Context, servers []*pod) map[*pod]uint64 {
	GinkgoHelper()
	all := map[*pod]uint64{}
	for _, s := range servers {
		n, err := s.probe.Overflowed(ctx)
		Expect(err).NotTo(HaveOccurred(), s.String())
		all[s] = n
	}
	return all
}

// overflowedSince is how many datagrams the UDP sockets of each server had no room
// for since the first of the flows to it began.
func overflowedSince(ctx context.Context, all []*flow) map[*pod]uint64 {
	GinkgoHelper()
	first := map[*pod]uint64{}
	for _, f := range all {
		for server, n := range f.before {
			if least, ok := first[server]; !ok || n < least {
				first[server] = n
			}
		}
	}
	since := overflowed(ctx, slices.Collect(maps.Keys(first)))
	for server := range since {
		since[server] -= first[server]
	}
	return since
}

// loss is what became of requests that were not answered.
type loss struct {
	// AtServer and AtClient count requests, and answers, that reached a UDP socket
	// which had no room for them.
	AtServer, AtClient uint64
	// Requests and Answers count the others, by what did not arrive.
	Requests, Answers uint64
}

// loss tells what a flow that has ended has lost, if so many of its requests
// arrived. Whose datagrams a server had no room for is not known: what the flow
// may have lost there is taken from left, which all flows to that server share.
func (f *flow) loss(p probe.Progress, arrived uint64, left map[*pod]uint64) loss {
	if p.Lost == 0 || f.Kind.Network() != "udp" {
		return loss{Requests: p.Lost}
	}
	l := loss{Requests: p.Sent - arrived, Answers: arrived - p.Answered}
	l.AtClient = min(l.Answers, p.Overflowed)
	l.Answers -= l.AtClient
	for _, server := range f.to.at {
		n := min(l.Requests, left[server])
		left[server] -= n
		l.Requests -= n
		l.AtServer += n
	}
	return l
}

// lossless stops flows and makes sure that each request was answered, over
// connections that did not end. A datagram that finds a UDP socket full, because
// its process does not run on a machine under load, is lost by neither the network
// nor a policy: as many as the kernel has counted at the sockets of both ends
// meanwhile may be missing. How many goes into the report.
func lossless(ctx context.Context, all []*flow) {
	GinkgoHelper()
	came := stop(ctx, all)
	left := overflowedSince(ctx, all)
	for server, n := range left {
		if n > 0 {
			GinkgoWriter.Printf("UDP sockets of %s: no room for %d datagrams\n", server, n)
		}
	}
	for i, p := range came {
		f := all[i]
		Expect(p.Answered).To(BeNumerically(">", 0), f.String())
		arrived, err := arrivals(ctx, f.to.at)
		Expect(err).NotTo(HaveOccurred())
		lost := f.loss(p, arrived[f.Token].Count, left)
		Expect(max(lost.Requests, lost.Answers)).To(BeZero(), fmt.Sprintf("lost of %s: %+v of %+v", f, lost, p))
		Expect(p.Ended).To(BeEmpty(), f.String())
		if f.Kind == probe.NewUDP {
			delete(p.Errors, probe.TimedOut) // the same as lost
		}
		Expect(p.Errors).To(BeEmpty(), f.String())
		GinkgoWriter.Printf("%s: %d answered, %d lost at full sockets, none otherwise, longest gap %v, %d retransmits\n",
			f, p.Answered, lost.AtServer+lost.AtClient, p.Gap, p.Retransmits)
	}
}

// never stops flows and makes sure that no request ever arrived, or was
// answered. How many were sent, and for how long, goes into the report.
func never(ctx context.Context, all []*flow) {
	GinkgoHelper()
	for i, p := range stop(ctx, all) {
		f := all[i]
		Expect(p.Sent).To(BeNumerically(">", 0), f.String())
		Expect(p.Answered+p.Late).To(BeZero(), f.String())
		arrived, err := arrivals(ctx, f.to.at)
		Expect(err).NotTo(HaveOccurred())
		Expect(arrived[f.Token].Count).To(BeZero(), f.String()+" arrived")
		GinkgoWriter.Printf("%s: none of %d arrived, in %v\n", f, p.Sent, time.Since(p.Began).Round(time.Millisecond))
	}
}

// TestLoss has flows lose requests and answers, one after the other, to a server
// whose sockets had no room for seven datagrams.
func TestLoss(t *testing.T) {
	server := &pod{Name: "server"}
	left := map[*pod]uint64{server: 7}
	for _, tc := range []struct {
		name    string
		kind    probe.Kind
		arrived uint64
		p       probe.Progress
		want    loss
	}{
		{"nothing", probe.UDP, 10, probe.Progress{Sent: 10, Answered: 10}, loss{}},
		{"what overflowed at the server", probe.UDP, 6, probe.Progress{Sent: 10, Answered: 6, Lost: 4}, loss{AtServer: 4}},
		{"answers are not that", probe.UDP, 10, probe.Progress{Sent: 10, Answered: 9, Lost: 1}, loss{Answers: 1}},
		{"nor what TCP loses", probe.NewTCP, 9, probe.Progress{Sent: 10, Answered: 9, Lost: 1}, loss{Requests: 1}},
		{"what overflowed at the client", probe.UDP, 10, probe.Progress{Sent: 10, Answered: 8, Lost: 2, Overflowed: 2}, loss{AtClient: 2}},
		{"requests are not that", probe.NewUDP, 5, probe.Progress{Sent: 10, Answered: 5, Lost: 5, Overflowed: 5}, loss{AtServer: 3, Requests: 2}},
		{"more than overflowed at the client", probe.UDP, 10, probe.Progress{Sent: 10, Answered: 7, Lost: 3, Overflowed: 2}, loss{AtClient: 2, Answers: 1}},
		{"an answer that came late", probe.UDP, 10, probe.Progress{Sent: 10, Answered: 9, Lost: 1, Late: 1}, loss{Answers: 1}},
		{"nothing is left of the server's", probe.UDP, 9, probe.Progress{Sent: 10, Answered: 9, Lost: 1}, loss{Requests: 1}},
	} {
		f := &flow{Flow: probe.Flow{Kind: tc.kind}, to: target{at: []*pod{server}}}
		if got := f.loss(tc.p, tc.arrived, left); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}
