package cluster

import (
	"context"
	"fmt"
	"sync"
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
	for _, kind := range kinds {
		f := &flow{
			Flow: probe.Flow{Token: newToken("flow"), Kind: kind, To: to.to, Interval: interval, Timeout: lossTimeout},
			from: from, to: to.over(kind),
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

// lossless stops flows and makes sure that each request was answered, over
// connections that did not end.
func lossless(ctx context.Context, all []*flow) {
	GinkgoHelper()
	for i, p := range stop(ctx, all) {
		f := all[i]
		Expect(p.Answered).To(BeNumerically(">", 0), f.String())
		Expect(p.Lost).To(BeZero(), fmt.Sprintf("lost of %s: %+v", f, p))
		Expect(p.Ended).To(BeEmpty(), f.String())
		Expect(p.Errors).To(BeEmpty(), f.String())
		GinkgoWriter.Printf("%s: %d answered, none lost, longest gap %v, %d retransmits\n", f, p.Answered, p.Gap, p.Retransmits)
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
