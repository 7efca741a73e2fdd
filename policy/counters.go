package policy

import (
	"strconv"
	"strings"
)

// LogGroup is the group of nflog that rules send a sample of what they deny to.
const LogGroup = 24090

// What is sampled of the denied packets: so many for each pod, and so many bytes of
// each, which is enough for the headers.
const (
	sampleRate  = 2 // packets per second
	sampleBurst = 5 // packets
	// sampleTimeout is how long a pod is remembered of which nothing more is denied.
	// By then it has its whole burst again.
	sampleTimeout = 60  // seconds
	snaplen       = 128 // bytes
)

// PolicyRef names a NetworkPolicy.
type PolicyRef struct{ Namespace, Name string }

// String returns the namespace and the name.
func (r PolicyRef) String() string { return r.Namespace + "/" + r.Name }

// CounterInfo says what a counter counts.
type CounterInfo struct {
	// Denied counters count packets that were denied, the others connections that
	// were allowed: new ones, and those that were judged again.
	Denied bool
	// Direction is ingress or egress, from the pods' view, or "" for packets from and
	// to addresses that no pod is known to have.
	Direction string
	// Namespace is that of the pods, or "" where no pod is known.
	Namespace string
	// Policies are those that isolate the pods, or those of which at least one allowed
	// the connection, sorted. They must not be changed.
	Policies []PolicyRef
}

// newCounter returns the counter of what these policies do in a direction. Their
// names are quoted in what its name is made from: a name in a manifest can hold
// anything.
func newCounter(prefix string, d direction, by []key) Counter {
	var text strings.Builder
	for _, k := range by {
		text.WriteString(" " + strconv.Quote(k.namespace+"/"+k.name))
	}
	return Counter{Name: prefix + "-" + d.String() + "-" + hash(text.String()), Comment: comment("", by)}
}

// infoOf says what a counter of these policies counts. A policy selects pods of its
// own namespace, so that all of them have the same.
func infoOf(denied bool, d direction, by []key) *CounterInfo {
	info := &CounterInfo{Denied: denied, Direction: d.String(), Namespace: by[0].namespace}
	for _, k := range by {
		info.Policies = append(info.Policies, PolicyRef{k.namespace, k.name})
	}
	return info
}

// allowCounter returns the name of the counter for what these policies allow.
func (t *liveTable) allowCounter(d direction, by []key) string {
	counter := newCounter("allow", d, by)
	t.addCounter(counter, func() *CounterInfo { return infoOf(false, d, by) })
	return counter.Name
}

// denyChain returns the name of the chain that ends what a signature does not allow.
// It is the signature's own, so that what is counted and logged there tells which
// policies denied it.
func (c *Compiler) denyChain(t *liveTable, s *signature) string {
	name := "deny-" + s.chain
	if t.chains[name] != nil {
		return name // it goes by the signature's name, and so says the same
	}
	counter := Counter{Name: name, Comment: comment("isolated by ", s.policies)}
	t.addCounter(counter, func() *CounterInfo { return infoOf(true, s.dir, s.policies) })
	self := t.addSet(Set{Name: selfName(t.family), Key: [2]Type{TypeAddr, TypeAddr}, Comment: "isolated pods, to reach themselves"}, roleSelf)
	toSelf := Rule{
		Match:   []Match{{Field: FieldCtOriginalSaddr, And: FieldCtReplySaddr, Op: OpIn, Name: self.Name}},
		Verdict: Verdict{Kind: VerdictReturn}, Comment: "a pod reaches itself",
	}
	_, packet := s.dir.podField()
	t.setChain(name, nil, append([]Rule{toSelf}, c.denyRules(t, name, s.dir.String(), packet)...))
	return name
}

// denyUnknown returns the rules for packets from and to addresses of the node that no
// pod is known to have.
func (c *Compiler) denyUnknown(t *liveTable) []Rule {
	t.addCounter(Counter{Name: chainUnknown, Comment: "addresses that no pod is known to have"},
		func() *CounterInfo { return &CounterInfo{Denied: true} })
	return c.denyRules(t, chainUnknown, "unknown", FieldSaddr)
}

// denyRules end a packet in a chain, which has a counter of the same name: some are
// logged first, for each address that the field has, and all are counted. The sample
// comes before the counter in a rule of its own, because a packet beyond the rate
// leaves that rule.
func (c *Compiler) denyRules(t *liveTable, chain, sampled string, by Field) []Rule {
	var out []Rule
	if c.cfg.Log {
		set := t.addSet(Set{
			Name: "sampled-" + sampled + t.family.Suffix(), Key: [2]Type{TypeAddr},
			Dynamic: true, Size: maxLocalPods, Timeout: sampleTimeout, Comment: "of whom denied packets were logged",
		}, roleFixed)
		out = append(out, Rule{
			Sample: Sample{Set: set.Name, Key: by, Rate: sampleRate, Burst: sampleBurst},
			Log:    Log{Group: LogGroup, Prefix: chain, Snaplen: snaplen},
		})
	}
	if c.cfg.DenyAction == DenyReject {
		return append(out,
			Rule{Match: []Match{{Field: FieldL4Proto, Op: OpEqual, Value: uint32(TCP)}}, Count: chain, Verdict: Verdict{Kind: VerdictReset}},
			Rule{Count: chain, Verdict: Verdict{Kind: VerdictProhibit}},
		)
	}
	return append(out, Rule{Count: chain, Verdict: Verdict{Kind: VerdictDrop}})
}

// Counter says what the counter of a name counts, if it is one that the rules have.
// What is denied is logged with the name of the counter as its prefix.
func (c *Compiler) Counter(name string) (CounterInfo, bool) {
	for _, t := range c.tables {
		if counter := t.counters[name]; counter != nil {
			return *counter.info, true
		}
	}
	return CounterInfo{}, false
}

// Counters says of all counters that the rules have what they count, by their names.
// One name stands for the same in both families.
func (c *Compiler) Counters() map[string]CounterInfo {
	c.settle()
	out := map[string]CounterInfo{}
	for _, t := range c.tables {
		for name, counter := range t.counters {
			out[name] = *counter.info
		}
	}
	return out
}

// HasPolicy tells whether a policy is known.
func (c *Compiler) HasPolicy(ref PolicyRef) bool {
	return c.policies[key{ref.Namespace, ref.Name}] != nil
}

// HasNamespace tells whether anything of a namespace is known.
func (c *Compiler) HasNamespace(name string) bool { return c.namespaces[name] != nil }

// Isolating returns the policies that isolate the pods which a chain denies
// something, sorted, by the chain's name: that is also the prefix of what it logs.
// For a chain that is not there it returns nil.
func (c *Compiler) Isolating(chain string) []PolicyRef {
	c.settle()
	info, ok := c.Counter(chain)
	if !ok || !info.Denied {
		return nil
	}
	return info.Policies
}
