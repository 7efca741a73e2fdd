package main

import (
	"cmp"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// remark is something to say of an object, once as long as it stays the same.
type remark struct {
	about corev1.ObjectReference
	// topic tells remarks on one object apart.
	topic, reason, text string
	// gist, if it is not empty, is what must change for the remark to be another one:
	// the text may have numbers that change all the time.
	gist string
}

// remarks tells of what is wrong with objects: of each thing once when it appears, by
// a line in the log and an Event on the object, and once when it is over, by a line in
// the log. It is for one goroutine.
type remarks struct {
	// appears and over write a line to the log, with these attributes.
	appears, over func(attributes ...any)
	// action is what the agent does with the objects, for the Events.
	action string
	// shared says that the agents of all nodes say the same: see notice.gist.
	shared bool
	// event, if it is set, makes an Event, and tells whether it could; see
	// recorder.send.
	event func(notice) bool

	told map[subject]said // what was said last
}

// subject is what something is said about: of an object, a topic.
type subject struct {
	apiVersion, kind, name string
	uid                    types.UID
	topic                  string
}

// said is what was said, and whether there was an Event of it.
type said struct {
	gist  string
	event bool
}

// tell takes all that is to be said now, and says what is new, and what is over. It
// returns whether each has its Event: there may be more to tell at once than Events
// that may be made. The next call makes up for it.
func (r *remarks) tell(now []remark) (all bool) {
	all = true
	before := r.told
	r.told = make(map[subject]said, len(now))
	for _, m := range now {
		name := cmp.Or(m.about.Namespace, "-") + "/" + m.about.Name
		key := subject{m.about.APIVersion, m.about.Kind, name, m.about.UID, m.topic}
		gist := cmp.Or(m.gist, m.text)
		s := before[key]
		if s.gist != gist {
			r.appears("reason", m.reason, "kind", m.about.Kind, "name", name, "err", m.text)
			s = said{gist: gist}
		}
		if !s.event {
			s.event = r.event == nil || r.event(r.notice(m, gist))
			all = all && s.event
		}
		r.told[key] = s
	}
	for s := range before {
		if _, ok := r.told[s]; !ok {
			r.over("kind", s.kind, "name", s.name, "about", s.topic)
		}
	}
	return all
}

func (r *remarks) notice(m remark, gist string) notice {
	n := notice{about: m.about, action: r.action, reason: m.reason, note: m.text}
	if r.shared {
		n.gist = gist
	}
	return n
}
