package shaping

import "maps"

// Limits returns what the queues at an interface hold a pod to.
func (s State) Limits(at Interface) Limits {
	var l Limits
	arriving, leaving := Egress, Ingress
	if !at.nodeEnd() {
		arriving, leaving = Ingress, Egress
	}
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
