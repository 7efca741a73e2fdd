package shaping

import "maps"

// Limits returns what the queues at an interface hold a pod to.
func (s State) Limits(at Interface) Limits {
	var l Limits
	arriving, leaving := at.DirectionAt(Arriving), at.DirectionAt(Leaving)
	limit := func(d Direction, q *Queue) {
		if q != nil {
			l[d] = Limit{Rate: Rate(q.Bucket.Rate * 8)}
		}
	}
	limit(leaving, s.Root.Queue)
	limit(leaving, s.IFBs[s.Redirects[Leaving].IFB].Queue)
	limit(arriving, s.IFBs[s.Redirects[Arriving].IFB].Queue)
	return l
}

// Narrowing returns the queues that are on the way to a lesser burst, and wait for
// being empty, by their devices as in a Step.
func (s State) Narrowing() map[string]*Queue {
	found := make(map[string]*Queue)
	add := func(device string, q *Queue) {
		if q != nil && q.Bucket.Largest != 0 {
			found[device] = q
		}
	}
	add("", s.Root.Queue)
	for name, ifb := range s.IFBs {
		add(name, ifb.Queue)
	}
	return found
}

// Repairs tells whether steps from this state put right what somebody else did, if the
// plan is as it was. To finish what narrowed began is no repair.
func (s State) Repairs(steps []Step) bool {
	for _, step := range steps {
		q := s.Root.Queue
		if step.Device != "" {
			q = s.IFBs[step.Device].Queue
		}
		switch {
		case q == nil || q.Bucket.Largest == 0:
			return true
		case q.Stuck:
		case step.Op != SetQueue || step.Queue.Bucket.Rate != q.Bucket.Rate || step.Queue.Bucket.Burst != q.Bucket.Largest:
			return true
		}
	}
	return false
}

// After returns the state after steps at an interface that was in this one.
func (s State) After(steps []Step) State {
	s.IFBs = maps.Clone(s.IFBs)
	if s.IFBs == nil {
		s.IFBs = make(map[string]IFB)
	}
	for _, step := range steps {
		ifb := s.IFBs[step.Device]
		switch step.Op {
		case MakeIFB:
			ifb.Up, ifb.Marked = true, step.Hook
			s.IFBs[step.Device] = ifb
		case MarkIFB:
			ifb.Marked = true
			s.IFBs[step.Device] = ifb
		case SetQueue:
			s.setQueue(step.Device, &step.Queue)
		case RemoveQueue:
			s.setQueue(step.Device, nil)
		case MakeHook:
			s.Hook, s.HookOurs = clsact, true
		case TakeHook:
			s.Hook, s.HookOurs, s.Redirects = clsact, true, [3]Redirect{}
		case SetRedirect:
			s.Redirects[step.Place] = Redirect{IFB: step.IFB, There: true, Exclude: step.Exclude}
		case RemoveRedirect:
			s.Redirects[step.Place] = Redirect{}
		case RemoveHook:
			s.Hook, s.HookOurs = "", false
		case RemoveIFB:
			delete(s.IFBs, step.Device)
		}
	}
	return s
}

func (s *State) setQueue(device string, q *Queue) {
	if device == "" {
		s.Root = Root{Queue: q}
		return
	}
	ifb := s.IFBs[device]
	ifb.Queue = q
	s.IFBs[device] = ifb
}
