package cluster

import (
	"context"
	"fmt"
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

// flows begins a flow of each kind, to the port of a target.
func flows(ctx context.Context, from *pod, to target, interval time.Duration, kinds ...probe.Kind) []*flow {
	GinkgoHelper()
	var all []*flow
	for _, kind := range kinds {
		f := &flow{
			Flow: probe.Flow{Token: newToken("flow"), Kind: kind, To: to.to, Interval: interval, Timeout: 3 * time.Second},
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

// stop ends the flow and tells what came of it.
func (f *flow) stop(ctx context.Context) probe.Progress {
	GinkgoHelper()
	p, err := f.from.probe.Stop(ctx, f.Token)
	Expect(err).NotTo(HaveOccurred())
	return p
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
	for _, f := range all {
		p := f.stop(ctx)
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
	for _, f := range all {
		p := f.stop(ctx)
		Expect(p.Sent).To(BeNumerically(">", 0), f.String())
		Expect(p.Answered+p.Late).To(BeZero(), f.String())
		arrived, err := arrivals(ctx, f.to.at)
		Expect(err).NotTo(HaveOccurred())
		Expect(arrived[f.Token].Count).To(BeZero(), f.String()+" arrived")
		GinkgoWriter.Printf("%s: none of %d arrived, in %v\n", f, p.Sent, time.Since(p.Began).Round(time.Millisecond))
	}
}
