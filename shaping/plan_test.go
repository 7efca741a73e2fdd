package shaping

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The two kinds of interfaces.
var (
	onNode = Interface{Index: 7, Name: "veth7", Frame: ethernet}
	inPod  = Interface{NetNS: "/run/netns/a", NetNSInode: 1, Index: 2, Name: "eth0", Frame: ethernet}
)

func TestPlaces(t *testing.T) {
	both := Limits{{Rate: 10 * m}, {Rate: 20 * m}}
	pod := testPod("web", nil)
	for _, tt := range []struct {
		name    string
		at      Interface
		exclude []netip.Prefix
		want    string
	}{
		{"the node's end", onNode, nil, "ingress root 1250000, egress arriving 2500000"},
		{"in the pod", inPod, nil, "ingress arriving 1250000, egress root 2500000"},
		{"the node's end, with what is left out", onNode, prefixes("10.0.0.0/8"), "ingress leaving 1250000, egress arriving 2500000"},
		{"in the pod, with what is left out", inPod, prefixes("10.0.0.0/8"), "ingress arriving 1250000, egress leaving 2500000"},
	} {
		p := NewPlan(pod, both, tt.at, Options{Exclude: tt.exclude})
		var texts []string
		for _, s := range p.Shaped {
			texts = append(texts, fmt.Sprintf("%s %s %d", s.Direction, s.Place, s.Queue.Bucket.Rate))
			if (s.IFB == "") != (s.Place == AtRoot) || s.IFB != "" && s.IFB != IFBName(pod, s.Direction) {
				t.Errorf("%s: IFB %q", tt.name, s.IFB)
			}
		}
		if got := strings.Join(texts, ", "); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	if p := NewPlan(pod, Limits{}, onNode, Options{Exclude: prefixes("10.0.0.0/8")}); len(p.Shaped)+len(p.Exclude) != 0 {
		t.Errorf("without limits: %+v", p)
	}
}

func TestIFBName(t *testing.T) {
	a, b := testPod("a", nil), testPod("b", nil)
	manifest := Pod{Key: a.Key}
	names := map[string]bool{}
	for _, p := range []Pod{a, b, manifest} {
		for _, d := range Directions() {
			name := IFBName(p, d)
			if names[name] || !IsIFBName(name) || len(name) > 15 {
				t.Errorf("name %q", name)
			}
			names[name] = true
		}
	}
	if IFBName(a, Egress) != "selve-yg2bz7yui" {
		t.Errorf("agents of other versions do not find %s", IFBName(a, Egress))
	}
	for _, other := range []string{"", "selvage0", "selvx-123456789", "selve-1234567", "bwp0123456789ab"} {
		if IsIFBName(other) {
			t.Errorf("%q is taken for ours", other)
		}
	}
}

func TestBlocks(t *testing.T) {
	got := Blocks(prefixes("10.1.2.3/16", "fd00::/8", "10.0.0.0/8", "192.168.1.1/32", "192.168.1.1/32", "fd00:1::/32"))
	if want := prefixes("10.0.0.0/8", "192.168.1.1/32", "fd00::/8"); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestSteps shows what is done, in its order.
func TestSteps(t *testing.T) {
	pod := testPod("web", nil)
	ifb := IFBName(pod, Egress)
	other := IFBName(pod, Ingress)
	plan := func(in, out Rate, exclude ...string) Plan {
		return NewPlan(pod, Limits{{Rate: in}, {Rate: out}}, onNode, Options{Exclude: prefixes(exclude...)})
	}
	after := func(p Plan) State {
		steps, _ := Diff(p, State{}, false)
		return State{}.After(steps)
	}
	queue := func(r Rate) *Queue {
		q := plan(r, 0).Shaped[0].Queue
		return &q
	}
	for _, tt := range []struct {
		name     string
		plan     Plan
		state    State
		takeOver bool
		want     []string
		refused  string
	}{
		{name: "nothing", plan: plan(0, 0)},
		{name: "both, from nothing", plan: plan(10*m, 20*m), want: []string{
			"set queue: new 1250000 B/s burst 8000 limit 25000 fifo",
			"make IFB E", "set queue E: new 2500000 B/s burst 12500 limit 50000 fifo", "make hook", "mark IFB E", "set redirect arriving to E",
		}},
		{name: "as it is", plan: plan(10*m, 20*m), state: after(plan(10*m, 20*m))},
		{name: "another rate", plan: plan(10*m, 30*m), state: after(plan(10*m, 20*m)), want: []string{
			"set queue E: change to 3750000 B/s burst 18750 limit 75000 fifo",
		}},
		{name: "a lower rate: packets may wait that are larger than its burst", plan: plan(0, 20*m), state: after(plan(0, 100*m)), want: []string{
			"set queue E: change to 2500000 B/s burst 62500 limit 50000 fifo, nothing over 12500 until it is empty",
		}},
		{name: "they still wait", plan: plan(0, 20*m), state: narrowing(plan(0, 100*m), plan(0, 20*m), false, false)},
		{name: "they are gone", plan: plan(0, 20*m), state: narrowing(plan(0, 100*m), plan(0, 20*m), true, false), want: []string{
			"set queue E: change to 2500000 B/s burst 12500 limit 50000 fifo",
		}},
		{name: "they wait for ever", plan: plan(0, 20*m), state: narrowing(plan(0, 100*m), plan(0, 20*m), false, true), want: []string{
			"remove queue E", "set queue E: new 2500000 B/s burst 12500 limit 50000 fifo",
		}},
		{name: "lower still, meanwhile", plan: plan(0, m), state: narrowing(plan(0, 100*m), plan(0, 20*m), true, false), want: []string{
			"set queue E: change to 125000 B/s burst 62500 limit 10000 fifo, nothing over 6250 until it is empty",
		}},
		{name: "higher again, meanwhile", plan: plan(0, 100*m), state: narrowing(plan(0, 100*m), plan(0, 20*m), false, false), want: []string{
			"set queue E: change to 12500000 B/s burst 62500 limit 250000 fifo",
		}},
		{name: "removed", plan: plan(0, 0), state: after(plan(10*m, 20*m)), want: []string{
			"remove queue", "remove queue E", "remove redirect arriving", "remove hook", "remove IFB E",
		}},
		{name: "something left out from now on", plan: plan(10*m, 20*m, "10.0.0.0/8"), state: after(plan(10*m, 20*m)), want: []string{
			"make IFB I", "set queue I: new 1250000 B/s burst 8000 limit 25000 fifo", "set redirect leaving to I but for [10.0.0.0/8]",
			"set redirect arriving to E but for [10.0.0.0/8]", "remove queue",
		}},
		{name: "and no longer", plan: plan(10*m, 20*m), state: after(plan(10*m, 20*m, "10.0.0.0/8")), want: []string{
			"set queue: new 1250000 B/s burst 8000 limit 25000 fifo", "set redirect arriving to E", "remove queue I", "remove redirect leaving", "remove IFB I",
		}},
		{name: "somebody's clsact is shared", plan: plan(0, 20*m), state: State{Hook: "clsact"}, want: []string{
			"make IFB E", "set queue E: new 2500000 B/s burst 12500 limit 50000 fifo", "set redirect arriving to E",
		}},
		{name: "and stays", plan: plan(0, 0), state: State{
			Hook: "clsact", Redirects: [3]Redirect{Arriving: {IFB: ifb, There: true}}, IFBs: map[string]IFB{ifb: {Queue: queue(m), Up: true}},
		}, want: []string{"remove queue E", "remove redirect arriving", "remove IFB E"}},
		{name: "the IFB is gone", plan: plan(0, 20*m), state: State{
			Hook: "clsact", HookOurs: true, Redirects: [3]Redirect{Arriving: {There: true}},
		}, want: []string{"make IFB E", "set queue E: new 2500000 B/s burst 12500 limit 50000 fifo", "set redirect arriving to E"}},
		{name: "somebody's root", plan: plan(10*m, 20*m), state: State{Root: Root{Foreign: "htb"}}, takeOver: true, refused: "[{ingress htb}]", want: []string{
			"make IFB E", "set queue E: new 2500000 B/s burst 12500 limit 50000 fifo", "make hook", "mark IFB E", "set redirect arriving to E",
		}},
		{name: "the bandwidth plugin's", plan: plan(10*m, 20*m), state: State{Root: Root{Foreign: "tbf"}, Hook: "ingress"}, refused: "[{ingress tbf} {egress ingress}]"},
		{name: "the bandwidth plugin's, to be taken over", plan: plan(10*m, 20*m), state: State{Root: Root{Foreign: "tbf"}, Hook: "ingress"}, takeOver: true, want: []string{
			"set queue: new 1250000 B/s burst 8000 limit 25000 fifo",
			"make IFB E", "set queue E: new 2500000 B/s burst 12500 limit 50000 fifo", "take hook", "mark IFB E", "set redirect arriving to E",
		}},
		{name: "refused, but once ours", plan: plan(0, 20*m), refused: "[{egress ingress}]", state: State{
			Hook: "ingress", IFBs: map[string]IFB{ifb: {Queue: queue(m), Up: true}},
		}, want: []string{"remove IFB E"}},
	} {
		steps, refused := Diff(tt.plan, tt.state, tt.takeOver)
		var got []string
		for _, s := range steps {
			got = append(got, strings.NewReplacer(ifb, "E", other, "I").Replace(s.String()))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s:\n\t%s\nwant\n\t%s", tt.name, strings.Join(got, "\n\t"), strings.Join(tt.want, "\n\t"))
		}
		if text := fmt.Sprint(refused); text != tt.refused && len(refused) > 0 || len(refused) == 0 && tt.refused != "" {
			t.Errorf("%s: refused %v, want %s", tt.name, refused, tt.refused)
		}
	}
}

// TestRepairs tells what finishes a change from what somebody else has done.
func TestRepairs(t *testing.T) {
	pod := testPod("web", nil)
	plan := func(r Rate) Plan { return NewPlan(pod, Limits{{Rate: r}, {Rate: r}}, onNode, Options{}) }
	for name, tt := range map[string]struct {
		state State
		want  bool
	}{
		"nothing":    {narrowing(plan(100*m), plan(20*m), false, false), false},
		"it ends":    {narrowing(plan(100*m), plan(20*m), true, false), false},
		"it must":    {narrowing(plan(100*m), plan(20*m), false, true), false},
		"another":    {narrowing(plan(100*m), plan(30*m), true, false), true},
		"no queue":   {State{Hook: "clsact"}, true},
		"other rate": {State{Root: Root{Queue: &Queue{Bucket: NewBucket(Limit{Rate: m}, ethernet)}}}, true},
	} {
		if steps, _ := Diff(plan(20*m), tt.state, false); tt.state.Repairs(steps) != tt.want {
			t.Errorf("%s: %v", name, steps)
		}
	}
}

// narrowing is the state on the way from one plan to another.
func narrowing(from, to Plan, empty, stuck bool) State {
	steps, _ := Diff(from, State{}, false)
	s := State{}.After(steps)
	steps, _ = Diff(to, s, false)
	s = s.After(steps)
	for _, q := range s.Narrowing() {
		q.Empty, q.Stuck = empty, stuck
	}
	return s
}

func drawPlan(t *rapid.T) Plan {
	limits := Limits{}
	for _, d := range Directions() {
		if rapid.Bool().Draw(t, d.String()) {
			limits[d] = Limit{Rate: rapid.SampledFrom([]Rate{m, 10 * m, 40 * g}).Draw(t, "rate")}
		}
	}
	at := rapid.SampledFrom([]Interface{onNode, inPod}).Draw(t, "at")
	var o Options
	if rapid.Bool().Draw(t, "exclude") {
		o.Exclude = prefixes("10.0.0.0/8", "fd00::/8")
	}
	o.FQCodel = rapid.Bool().Draw(t, "fq_codel")
	return NewPlan(testPod("web", nil), limits, at, o)
}

// drawState draws any state, sensible or not.
func drawState(t *rapid.T) State {
	pod := testPod("web", nil)
	names := []string{IFBName(pod, Ingress), IFBName(pod, Egress)}
	queue := func() *Queue {
		if rapid.Bool().Draw(t, "no queue") {
			return nil
		}
		b := NewBucket(drawLimit(t), ethernet)
		q := &Queue{Bucket: b, Leaf: NewLeaf(b, ethernet, rapid.Bool().Draw(t, "leaf")), Empty: rapid.Bool().Draw(t, "empty")}
		if rapid.Bool().Draw(t, "narrowing") {
			q.Bucket.Largest = b.Burst/2 + 1
		}
		return q
	}
	s := State{Hook: rapid.SampledFrom([]string{"", "clsact", "ingress"}).Draw(t, "hook"), IFBs: map[string]IFB{}}
	s.HookOurs = s.Hook == "clsact" && rapid.Bool().Draw(t, "ours")
	if s.Root.Foreign = rapid.SampledFrom([]string{"", "tbf", "htb"}).Draw(t, "root"); s.Root.Foreign == "" {
		s.Root.Queue = queue()
	}
	for _, n := range names {
		if rapid.Bool().Draw(t, "ifb") {
			s.IFBs[n] = IFB{Queue: queue(), Marked: s.HookOurs, Up: rapid.Bool().Draw(t, "up")}
		}
	}
	for _, place := range []Place{Arriving, Leaving} {
		if s.Hook == "" || !rapid.Bool().Draw(t, "redirect") {
			continue
		}
		s.Redirects[place].There = true
		if to := rapid.SampledFrom(append(names, "")).Draw(t, "to"); to != "" {
			if _, ok := s.IFBs[to]; ok {
				s.Redirects[place].IFB = to
			}
		}
		if rapid.Bool().Draw(t, "excluding") {
			s.Redirects[place].Exclude = prefixes("10.0.0.0/8")
		}
	}
	return s
}

// TestDiffConverges has the steps lead from any state to one where nothing is left to
// do, and never in between to a filter that leads nowhere.
func TestDiffConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, s, takeOver := drawPlan(t), drawState(t), rapid.Bool().Draw(t, "take over")
		steps, refused := Diff(p, s, takeOver)
		now := s
		for i := range steps {
			led := leads(now)
			now = now.After(steps[i : i+1])
			for place := range leads(now) {
				if !leads(now)[place] && led[place] {
					t.Errorf("%v: after %q what passes at %s is lost", steps, steps[i], place)
				}
			}
		}
		for _, q := range now.Narrowing() { // what was too large goes by and by
			q.Empty = true
		}
		last, _ := Diff(p, now, takeOver)
		now = now.After(last)
		if again, refusedAgain := Diff(p, now, takeOver); len(again) > 0 || !slices.Equal(refused, refusedAgain) {
			t.Errorf("%v, refused %v; then %v; then %v, refused %v", steps, refused, last, again, refusedAgain)
		}
		for _, shaped := range p.Shaped {
			if !slices.ContainsFunc(refused, func(r Refusal) bool { return r.Direction == shaped.Direction }) && now.queueAt(shaped) == nil {
				t.Errorf("%s is not shaped after %v", shaped.Direction, steps)
			}
		}
		if len(p.Shaped) == 0 && (now.Root.Queue != nil || len(now.IFBs) > 0 || now.Hook != "" && s.HookOurs) {
			t.Errorf("left after %v: %+v", steps, now)
		}
	})
}

// leads tells, for each place that has filters, whether these lead to an IFB that is
// up.
func leads(s State) map[Place]bool {
	m := map[Place]bool{}
	for _, place := range []Place{Arriving, Leaving} {
		if r := s.Redirects[place]; r.There {
			m[place] = s.IFBs[r.IFB].Up
		}
	}
	return m
}

// queueAt returns the queue that a direction waits in.
func (s State) queueAt(shaped Shaped) *Queue {
	if shaped.Place == AtRoot {
		return s.Root.Queue
	}
	if s.Redirects[shaped.Place].IFB != shaped.IFB {
		return nil
	}
	return s.IFBs[shaped.IFB].Queue
}

// TestLimitsOfState reads back what a plan has set.
func TestLimitsOfState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPlan(t)
		steps, _ := Diff(p, State{}, false)
		got := State{}.After(steps).Limits(p.Interface)
		var want Limits
		for _, s := range p.Shaped {
			want[s.Direction].Rate = Rate(s.Queue.Bucket.Rate * 8)
		}
		if got != want {
			t.Errorf("%v, want %v", got, want)
		}
	})
}

// TestAfterIsACopy leaves the state that it was made from alone.
func TestAfterIsACopy(t *testing.T) {
	p := NewPlan(testPod("web", nil), Limits{{Rate: m}, {Rate: m}}, onNode, Options{})
	steps, _ := Diff(p, State{}, false)
	s := State{}.After(steps)
	before := maps.Clone(s.IFBs)
	gone, _ := Diff(Plan{Pod: p.Pod, Interface: p.Interface}, s, false)
	if s.After(gone); !maps.Equal(s.IFBs, before) {
		t.Error("it changed the state")
	}
}
