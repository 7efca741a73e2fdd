package tc

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/shaping"
)

// adopt takes over what an earlier agent left: the pods that have something are
// looked at in the first round, and annotations that cannot be used keep what is in
// force.
func (s *Shaper) adopt() {
	s.working.Lock()
	defer s.working.Unlock()
	for _, f := range s.take().changes {
		f(s.model)
	}
	look := s.look()
	for _, k := range s.model.Pods() {
		pod, _ := s.model.Pod(k)
		if s.pods[k] != nil || !pod.Located() {
			continue
		}
		at, err := s.find(pod)
		if err != nil {
			// What it has must not be taken for nobody's. The first round tries again, and
			// says what is the matter, if it has a limit.
			s.pods[k] = &record{plan: shaping.Plan{Pod: pod}, suspect: true, backoff: backoff()}
			continue
		}
		conn, look := s.node, look
		if at.NetNS != "" {
			if conn, err = OpenAt(at); err != nil {
				continue
			}
			look = conn.qdisc
		}
		plan := shaping.Plan{Pod: pod, Interface: at}
		state, err := conn.read(plan, look)
		if conn != s.node {
			err = errors.Join(err, conn.Close())
		}
		if err != nil {
			continue
		}
		if limits := state.Limits(at); limits.Any() || len(state.IFBs) > 0 {
			s.model.Adopt(k, limits)
			s.pods[k] = &record{plan: plan, suspect: true, backoff: backoff()}
		}
	}
}

// find finds the interface of a pod.
func (s *Shaper) find(pod shaping.Pod) (shaping.Interface, error) {
	switch {
	case pod.HostNetwork:
		return shaping.Interface{}, fmt.Errorf("%w: a hostNetwork pod has no interface of its own", errPlace)
	case len(pod.Addrs) == 0:
		return shaping.Interface{}, fmt.Errorf("%w: the pod has no address yet", errPlace)
	}
	at, err := s.options.Find(pod.Addrs)
	if err != nil {
		return at, fmt.Errorf("%w: %w", errPlace, err)
	}
	return at, nil
}

// gone tells whether an error means that the interface went away.
func gone(err error) bool { return errors.Is(err, ErrGone) || errors.Is(err, unix.ENODEV) }

// report tells how things are.
func (s *Shaper) report(now time.Time) {
	s.mu.Lock()
	s.done = true
	s.mu.Unlock()
	if s.options.Observe == nil {
		return
	}
	status := s.status
	status.Problems = s.model.Problems()
	for k, r := range s.pods {
		if r.failed == nil && len(r.indices) > 0 {
			status.Shaped++
		}
		if u, ok := s.unshaped(k, r, now); ok {
			status.Unshaped = append(status.Unshaped, u)
		}
	}
	slices.SortFunc(status.Unshaped, func(a, b Unshaped) int { return a.Pod.Key.Compare(b.Pod.Key) })
	s.options.Observe(status)
}

// unshaped tells why the limits of a pod are not in force.
func (s *Shaper) unshaped(k shaping.Key, r *record, now time.Time) (Unshaped, bool) {
	pod, ok := s.model.Pod(k)
	u := Unshaped{Pod: pod, Err: r.failed}
	switch {
	case !ok:
		return u, false
	case r.failed == nil && len(r.refused) == 0:
		return u, false
	case r.failed == nil:
		u.Reason, u.Err = ForeignQdisc, refusal(r)
	case pod.HostNetwork:
		// A default is not meant for those.
		u.Reason = HostNetwork
		return u, s.model.Asks(k)
	case errors.Is(r.failed, errPlace):
		u.Reason = NoInterface
		return u, now.Sub(r.since) >= s.options.Lasting && pod.Located()
	case errors.Is(r.failed, ErrPermission):
		u.Reason = NoPermission
	default:
		u.Reason = Refused
		return u, !gone(r.failed)
	}
	return u, true
}

// refusal says what is in the way, and what can be done.
func refusal(r *record) error {
	var errs []error
	for _, f := range r.refused {
		advice := "remove it, and Selvage shapes the pod at once"
		if f.Bandwidth() {
			advice = "it looks like that of the CNI plugin bandwidth: take that out of the CNI configuration, or give --take-over-bandwidth-plugin"
		}
		errs = append(errs, fmt.Errorf("%s: interface %s has a queueing discipline of somebody else's, %s: %s",
			f.Direction, r.plan.Interface.Name, f.Kind, advice))
	}
	return errors.Join(errs...)
}

// Samples returns what the pods that are shaped have passed, in no order: the node's
// queues by one dump, those in pods' namespaces one by one.
func (s *Shaper) Samples() ([]Sample, error) {
	places := make(map[int]counted)
	var samples []Sample
	s.working.Lock()
	for _, r := range s.pods {
		if r.plan.Interface.NetNS == "" {
			for index, c := range r.indices {
				places[index] = c
			}
			continue
		}
		found, err := sampleIn(r.plan.Interface, r.indices)
		if err != nil && !gone(err) {
			s.working.Unlock()
			return nil, err
		}
		samples = append(samples, found...)
	}
	s.working.Unlock()
	s.sampling.Lock()
	defer s.sampling.Unlock()
	found, err := s.sampler.sample(places)
	return append(samples, found...), err
}

// sampleIn reads the counters of queues in a pod's own namespace.
func sampleIn(at shaping.Interface, places map[int]counted) ([]Sample, error) {
	if len(places) == 0 {
		return nil, nil
	}
	c, err := OpenAt(at)
	if err != nil {
		return nil, err
	}
	found, err := c.sample(places)
	return found, errors.Join(err, c.Close())
}
