package tc

import (
	"errors"
	"fmt"
	"reflect"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/selvage-net/selvage/shaping"
)

// record is what a Shaper knows of a pod that is, was or should be shaped.
type record struct {
	// plan is the last one, state what is there after it, if settled.
	plan    shaping.Plan
	state   shaping.State
	settled bool
	refused []shaping.Refusal
	// suspect says that state may be wrong, by is who made it so, if known.
	suspect bool
	by      uint32
	// indices are the interfaces whose queues are the pod's, to count them.
	indices   map[int]counted
	narrowing narrowing
	// failed is why the plan is not in force, since when, and when it is tried again.
	failed  error
	since   time.Time
	retry   time.Time
	backoff wait.Backoff
}

// backoff is the pace of tries.
func backoff() wait.Backoff {
	return wait.Backoff{Duration: 20 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 16, Cap: 5 * time.Second}
}

// concerned tells whether any of some interfaces is the pod's, and who changed it.
func (r *record) concerned(suspects map[int]uint32) (port uint32, ok bool) {
	if r.plan.Interface.NetNS != "" {
		return 0, false
	}
	if port, ok := suspects[r.plan.Interface.Index]; ok {
		return port, ok
	}
	for index := range r.indices {
		if port, ok := suspects[index]; ok {
			return port, ok
		}
	}
	return 0, false
}

// outdated tells whether the record is of a pod that is gone, or has lost its address.
func (r *record) outdated(pod shaping.Pod, ok bool) bool {
	return !ok || r.plan.Pod.UID != pod.UID || len(pod.Addrs) == 0 && r.plan.Interface.Index != 0
}

// reconcilePod brings one pod into the state that it shall have.
func (s *Shaper) reconcilePod(k shaping.Key, look look, now time.Time) {
	r := s.pods[k]
	pod, ok := s.model.Pod(k)
	if r != nil && r.outdated(pod, ok) {
		s.forget(k, r)
		r = nil
	}
	limits := s.model.Limits(k)
	if !ok || r == nil && (!limits.Any() || pod.HostNetwork && !s.model.Asks(k)) {
		return
	}
	if r == nil {
		r = &record{backoff: backoff()}
		s.pods[k] = r
	}
	r.plan.Pod = pod
	err := s.bring(r, pod, limits, look)
	if err == nil {
		r.failed, r.since, r.backoff = nil, time.Time{}, backoff()
		r.narrowing.set(r.state, now)
		if !s.model.Limits(k).Any() { // it may have been adopted meanwhile
			delete(s.pods, k)
		}
		return
	}
	// It has nothing, and needs nothing; but one whose annotation cannot be used may
	// have what is to be adopted.
	if !limits.Any() && r.plan.Interface.Index == 0 && !s.model.Asks(k) {
		delete(s.pods, k)
		return
	}
	r.settled, r.narrowing = false, narrowing{}
	if r.retry = now.Add(r.backoff.Step()); !pod.Located() {
		r.retry = now.Add(time.Hour) // it must change before
	}
	if r.failed == nil || !pod.Located() {
		r.since = now
	}
	if !errors.Is(err, errPlace) { // but the kernel's; Observe is told of either
		s.status.Failed++
	}
	s.options.Logger.Debug("a pod is not shaped, trying again", "pod", k.String(), "err", err, "pause", r.retry.Sub(now))
	r.failed = err
}

// errPlace says that there is no place to shape a pod at, or none yet.
var errPlace = errors.New("no place to shape")

// bring brings a pod into the state that it shall have, or says why it cannot.
func (s *Shaper) bring(r *record, pod shaping.Pod, limits shaping.Limits, look look) (err error) {
	at, err := s.find(pod)
	if err != nil {
		return err
	}
	conn := s.node
	if at.NetNS != "" {
		if conn, err = OpenAt(at); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, conn.Close()) }()
		look = conn.qdisc
	}
	plan := shaping.NewPlan(pod, limits, at, shaping.Options{Exclude: s.options.Exclude, FQCodel: s.fqCodel})
	known := r.settled && !r.suspect && !r.narrowing.on && r.plan.Interface == at
	// Where nothing has changed but the kernel, steps put right what others did.
	same := r.settled && r.plan.Interface == at && reflect.DeepEqual(r.plan.Shaped, plan.Shaped)
	if !known {
		ours := r.state.HookOurs
		if r.state, err = conn.read(plan, look); err != nil {
			return err
		}
		r.narrowing.check(r.state, time.Now())
		if r.plan.Interface.Index == 0 { // seen for the first time
			s.model.Adopt(pod.Key, r.state.Limits(at))
			limits = s.model.Limits(pod.Key)
			plan = shaping.NewPlan(pod, limits, at, shaping.Options{Exclude: s.options.Exclude, FQCodel: s.fqCodel})
		}
		// The mark goes with the IFB, should somebody remove that.
		r.state.HookOurs = r.state.HookOurs || ours && r.plan.Interface == at
	}
	steps, refused := shaping.Diff(plan, r.state, s.options.TakeOver)
	repairs := same && r.state.Repairs(steps)
	r.plan, r.settled, r.suspect = plan, false, false
	for _, step := range steps {
		if err := conn.Do(plan, step); err != nil {
			return err
		}
		s.options.Logger.Debug("shaping changed", "pod", pod.Key.String(), "interface", at.Name, "step", step.String())
	}
	r.state = r.state.After(steps)
	r.refused, r.settled = refused, true
	if repairs {
		s.status.Repaired++
		s.options.Logger.Warn("somebody had changed the shaping of a pod; it is as desired again",
			"pod", pod.Key.String(), "interface", at.Name, "steps", len(steps), "netlinkPort", r.by)
	}
	return s.settle(r, conn, limits, steps)
}

// settle does what is left after the steps.
func (s *Shaper) settle(r *record, conn *Conn, limits shaping.Limits, steps []shaping.Step) error {
	for _, step := range steps {
		if step.Op != shaping.RemoveIFB {
			continue
		}
		if conn == s.node {
			s.doomed = true
		} else if err := conn.removeDoomed(); err != nil {
			return err
		}
	}
	r.indices = make(map[int]counted, len(r.plan.Shaped))
	for _, shaped := range r.plan.Shaped {
		index := r.plan.Interface.Index
		if shaped.IFB != "" {
			l, err := conn.ifb(shaped.IFB)
			if err != nil {
				return err
			}
			index = l.index
		}
		if !r.refuses(shaped.Direction) {
			r.indices[index] = counted{r.plan.Pod.Key, shaped.Direction, limits[shaped.Direction].Rate}
		}
	}
	return nil
}

func (r *record) refuses(d shaping.Direction) bool {
	for _, f := range r.refused {
		if f.Direction == d {
			return true
		}
	}
	return false
}

// forget removes what is there for a pod that is gone. Its interface may still be
// there, or be gone with its queue; its IFBs go in any case.
func (s *Shaper) forget(k shaping.Key, r *record) {
	delete(s.pods, k)
	if r.plan.Interface.NetNS != "" {
		return // everything goes with the namespace
	}
	s.doomed = true
	plan := r.plan
	plan.Shaped = nil
	state, err := s.node.Read(plan)
	if err == nil {
		steps, _ := shaping.Diff(plan, state, false)
		for _, step := range steps {
			err = errors.Join(err, s.node.Do(plan, step))
		}
	}
	for _, d := range shaping.Directions() {
		err = errors.Join(err, s.node.doomIFB(shaping.IFBName(plan.Pod, d)))
	}
	if err != nil && !gone(err) {
		s.fail(fmt.Errorf("remove the shaping of pod %s, which is gone: %w", k, err))
	}
}
