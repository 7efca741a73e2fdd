package shaping

import (
	"fmt"
	"net/netip"
	"slices"
)

// State is what there is at an interface.
type State struct {
	// Root is the queueing discipline at the root.
	Root Root
	// Hook is the kind of the queueing discipline that holds the filters of what
	// arrives and leaves: clsact, or ingress, which has only the former. Empty if
	// there is none.
	Hook string
	// HookOurs says that it is ours to remove: an IFB of the pod is marked with that,
	// or it was so when the pod was last looked at.
	HookOurs bool
	// Redirects are our filters, indexed by Place; that of AtRoot is never there.
	Redirects [3]Redirect
	// IFBs are those of the pod that there are, by their names.
	IFBs map[string]IFB
}

// Root is what is at the root of an interface.
type Root struct {
	// Foreign is the kind of a queueing discipline that somebody else put there;
	// empty if it is the kernel's default or ours.
	Foreign string
	// Queue is ours, or nil.
	Queue *Queue
}

// Redirect are our filters of one place.
type Redirect struct {
	// IFB is where they lead; empty if there are none, or if it is gone.
	IFB string
	// There says that there are filters, complete or not.
	There bool
	// Exclude are the blocks that they leave out, sorted.
	Exclude []netip.Prefix
}

// IFB is an IFB of ours.
type IFB struct {
	// Queue is at its root; nil if there is none of ours.
	Queue *Queue
	// Marked says that it is marked with the hook being ours.
	Marked bool
	// Up says that it passes packets on.
	Up bool
}

// Op is what a Step does.
type Op string

// The steps. Each leaves alone what is there already.
const (
	// MakeIFB makes an IFB for this pod, and sets it up.
	MakeIFB Op = "make IFB"
	// MarkIFB marks an IFB with the hook being ours. That is done after the hook was
	// made, which fails if somebody else was there before.
	MarkIFB Op = "mark IFB"
	// SetQueue puts a queue at the root of a device; one that is there already is
	// changed and loses nothing that waits.
	SetQueue Op = "set queue"
	// RemoveQueue takes it away, after what waits was sent.
	RemoveQueue Op = "remove queue"
	// MakeHook makes the clsact that filters are in.
	MakeHook Op = "make hook"
	// TakeHook puts clsact in the place of the bandwidth plugin's ingress.
	TakeHook Op = "take hook"
	// SetRedirect makes the filters that lead to an IFB.
	SetRedirect Op = "set redirect"
	// RemoveRedirect removes them.
	RemoveRedirect Op = "remove redirect"
	// RemoveHook removes the clsact, unless it has filters of others by now.
	RemoveHook Op = "remove hook"
	// RemoveIFB removes an IFB.
	RemoveIFB Op = "remove IFB"
)

// Step is one change in the kernel.
type Step struct {
	Op Op
	// Device is what it is done to: an IFB, or empty for the interface itself.
	Device string
	// Place is where filters are.
	Place Place
	// Queue is for SetQueue. Fresh says that there is none of ours to be changed.
	Queue Queue
	Fresh bool
	// IFB and Exclude are for SetRedirect.
	IFB     string
	Exclude []netip.Prefix
	// Hook says, for MakeIFB, that it is to be marked, too.
	Hook bool
}

// String describes a step in a line.
func (s Step) String() string {
	text := string(s.Op)
	if s.Device != "" {
		text += " " + s.Device
	}
	switch s.Op {
	case SetQueue:
		verb := "change to"
		if s.Fresh {
			verb = "new"
		}
		leaf := "fifo"
		if s.Queue.Leaf.FQCodel {
			leaf = "fq_codel"
		}
		text += fmt.Sprintf(": %s %d B/s burst %d limit %d %s", verb, s.Queue.Bucket.Rate, s.Queue.Bucket.Burst, s.Queue.Bucket.Limit, leaf)
		if s.Queue.Bucket.Largest != 0 {
			text += fmt.Sprintf(", nothing over %d until it is empty", s.Queue.Bucket.Largest)
		}
	case SetRedirect:
		text += fmt.Sprintf(" %s to %s", s.Place, s.IFB)
		if len(s.Exclude) > 0 {
			text += fmt.Sprintf(" but for %v", s.Exclude)
		}
	case RemoveRedirect:
		text += " " + s.Place.String()
	}
	return text
}

// Refusal says that a direction of a pod cannot be shaped because of what somebody
// else has put there.
type Refusal struct {
	Direction Direction
	// Kind is that of the foreign queueing discipline.
	Kind string
}

// Bandwidth tells whether it looks like what the CNI's bandwidth plugin makes.
func (r Refusal) Bandwidth() bool { return r.Kind == pluginRoot || r.Kind == pluginHook }

// pluginRoot and pluginHook are what the CNI's bandwidth plugin makes.
const pluginRoot, pluginHook = "tbf", "ingress"

// clsact has both hooks.
const clsact = "clsact"

// Diff returns the steps from what there is to what shall be, in their order, and
// what cannot be had. What is new is in force before what it replaces is taken
// away. takeOver allows to replace what the bandwidth plugin has made.
func Diff(p Plan, s State, takeOver bool) ([]Step, []Refusal) {
	d := differ{plan: p, state: s, takeOver: takeOver, hooked: s.Hook == clsact, ours: s.Hook == clsact && s.HookOurs}
	for _, shaped := range p.Shaped {
		if shaped.Place == AtRoot {
			d.root(shaped)
		} else {
			d.redirect(shaped)
		}
	}
	d.removals()
	return d.steps, d.refused
}

type differ struct {
	plan     Plan
	state    State
	takeOver bool

	steps   []Step
	refused []Refusal
	// hooked says that the hook is there or will be, ours that it is ours.
	hooked, ours bool
	// kept are the IFBs in use.
	kept []string
}

func (d *differ) add(s Step) { d.steps = append(d.steps, s) }

func (d *differ) refuse(s Shaped, kind string) {
	d.refused = append(d.refused, Refusal{s.Direction, kind})
}

// root shapes at the root.
func (d *differ) root(s Shaped) {
	if f := d.state.Root.Foreign; f != "" && (f != pluginRoot || !d.takeOver) {
		d.refuse(s, f)
		return
	}
	d.queue("", s.Queue, d.state.Root.Queue)
}

// queue has a queue on a device, where there may be one of ours.
func (d *differ) queue(device string, want Queue, there *Queue) {
	if there == nil {
		d.add(Step{Op: SetQueue, Device: device, Queue: want, Fresh: true})
		return
	}
	if there.Stuck {
		d.add(Step{Op: RemoveQueue, Device: device})
		d.add(Step{Op: SetQueue, Device: device, Queue: want, Fresh: true})
		return
	}
	// From a bucket that lets nothing in which is too large, and is empty, the next one
	// is reached directly.
	if cleared := there.Empty && there.Bucket.Largest != 0 && there.Bucket.Largest <= want.Bucket.Burst; want.Bucket.narrows(there.Bucket) && !cleared {
		want.Bucket = want.Bucket.narrowed(there.Bucket)
	}
	if !want.Same(*there) {
		d.add(Step{Op: SetQueue, Device: device, Queue: want})
	}
}

// redirect shapes by an IFB.
func (d *differ) redirect(s Shaped) {
	var hook Op
	switch {
	case d.hooked:
	case d.state.Hook == "":
		hook = MakeHook
	case d.state.Hook == pluginHook && d.takeOver:
		hook = TakeHook
	default:
		d.refuse(s, d.state.Hook)
		return
	}
	d.kept = append(d.kept, s.IFB)
	ifb, there := d.state.IFBs[s.IFB]
	if !there || !ifb.Up || ifb.Marked != d.ours {
		d.add(Step{Op: MakeIFB, Device: s.IFB, Hook: d.ours})
	}
	d.queue(s.IFB, s.Queue, ifb.Queue)
	if hook != "" {
		d.add(Step{Op: hook})
		d.add(Step{Op: MarkIFB, Device: s.IFB})
		d.hooked, d.ours = true, true
	}
	if hook == TakeHook { // its filters go with it
		d.state.Redirects = [3]Redirect{}
	}
	if r := d.state.Redirects[s.Place]; r.IFB != s.IFB || !slices.Equal(r.Exclude, d.plan.Exclude) {
		d.add(Step{Op: SetRedirect, Place: s.Place, IFB: s.IFB, Exclude: d.plan.Exclude})
	}
}

// removals takes away what is ours and not wanted any more.
func (d *differ) removals() {
	if _, wanted := d.plan.at(AtRoot); !wanted && d.state.Root.Queue != nil {
		d.add(Step{Op: RemoveQueue})
	}
	for _, place := range []Place{Arriving, Leaving} {
		r := d.state.Redirects[place]
		if s, wanted := d.plan.at(place); !r.There || wanted && slices.Contains(d.kept, s.IFB) {
			continue
		}
		if ifb, ok := d.state.IFBs[r.IFB]; ok && ifb.Queue != nil && !slices.Contains(d.kept, r.IFB) {
			// What waits goes before what then takes the direct way.
			d.add(Step{Op: RemoveQueue, Device: r.IFB})
		}
		d.add(Step{Op: RemoveRedirect, Place: place})
	}
	var unused []string
	for name := range d.state.IFBs {
		if !slices.Contains(d.kept, name) {
			unused = append(unused, name)
		}
	}
	if d.ours && len(d.kept) == 0 {
		d.add(Step{Op: RemoveHook})
	}
	slices.Sort(unused)
	for _, name := range unused {
		d.add(Step{Op: RemoveIFB, Device: name})
	}
}
