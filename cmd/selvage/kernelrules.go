package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/nft"
	"github.com/selvage-net/selvage/policy/trace"
)

// rulesLast is how long rules that were read are kept for the next question. They take
// as much memory as the ruleset, and reading them some time.
const rulesLast = 10 * time.Second

// rulesTimeout is how long a question waits for those before it.
const rulesTimeout = 10 * time.Second

// kernelAnswer is what an agent answers at /explain: what the rules in its node's kernel
// make of the first packet of a connection. It is for programs: what is there keeps its
// name and meaning.
type kernelAnswer struct {
	Node    string `json:"node"`
	Allowed bool   `json:"allowed"`
	// Verdict is the rules': accept, drop or reject.
	Verdict string `json:"verdict"`
	// Hook is where they look at such a packet, forward or input; it is empty if they do
	// not, for the reason that Remark gives.
	Hook   string `json:"hook,omitempty"`
	Remark string `json:"remark,omitempty"`
	// Path are the rules that matched, in the order in which the packet met them.
	Path []kernelStep `json:"path"`
}

// kernelStep is a rule.
type kernelStep struct {
	Chain string `json:"chain"`
	// Rule is as nft writes it, with the element that a look-up found.
	Rule string `json:"rule"`
}

// kernelFlow is a connection that /explain is asked about.
type kernelFlow struct {
	from, to netip.Addr
	protocol policy.Protocol
	port     uint16
}

// kernelRules answers /explain. Only one question at a time is looked at: to read the
// rules is work.
type kernelRules struct {
	node string
	keep time.Duration // see rulesLast
	// turn has something in it while a question is looked at. It guards what follows.
	turn       chan struct{}
	conn       *nft.Conn
	tracer     *trace.Tracer // nil if the rules must be read
	empty      bool          // there are no rules
	generation uint32        // of nftables, as it was when they were read
	rested     time.Time     // when they may be read again
	forget     *time.Timer
}

func newKernelRules(node string) *kernelRules {
	return &kernelRules{node: node, keep: rulesLast, turn: make(chan struct{}, 1)}
}

// ServeHTTP answers ?from=ADDRESS&to=ADDRESS&protocol=TCP&port=80.
func (k *kernelRules) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f, err := parseKernelFlow(r.URL.Query().Get)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), rulesTimeout)
	defer cancel()
	select {
	case k.turn <- struct{}{}:
	case <-ctx.Done():
		http.Error(w, "too many ask at once", http.StatusServiceUnavailable)
		return
	}
	defer func() { <-k.turn }()
	switch a, err := k.judge(ctx, f); {
	case ctx.Err() != nil:
		http.Error(w, "too many ask at once", http.StatusServiceUnavailable)
	case err != nil:
		http.Error(w, "read the rules in the kernel: "+err.Error(), http.StatusInternalServerError)
	default:
		answerJSON(w, a)
	}
}

// parseKernelFlow understands a query.
func parseKernelFlow(value func(string) string) (f kernelFlow, err error) {
	if f.from, err = netip.ParseAddr(value("from")); err != nil {
		return f, fmt.Errorf("from: %q is no address", value("from"))
	}
	if f.to, err = netip.ParseAddr(value("to")); err != nil {
		return f, fmt.Errorf("to: %q is no address", value("to"))
	}
	f.from, f.to = f.from.Unmap().WithZone(""), f.to.Unmap().WithZone("")
	if f.from.Is4() != f.to.Is4() {
		return f, errors.New("from and to are not of the same family")
	}
	switch p := strings.ToUpper(value("protocol")); p {
	case "", "TCP":
		f.protocol = policy.TCP
	case "UDP":
		f.protocol = policy.UDP
	case "SCTP":
		f.protocol = policy.SCTP
	default:
		n, err := strconv.ParseUint(p, 10, 8)
		if err != nil {
			return f, fmt.Errorf("protocol: %q is none of TCP, UDP and SCTP, and no number of a protocol", value("protocol"))
		}
		f.protocol = policy.Protocol(n)
	}
	if text := value("port"); text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return f, fmt.Errorf("port: %q is no port", text)
		}
		f.port = uint16(n)
	}
	return f, nil
}

// judge has the rules judge the first packet of a connection. It is the caller's turn.
func (k *kernelRules) judge(ctx context.Context, f kernelFlow) (kernelAnswer, error) {
	a := kernelAnswer{Node: k.node, Allowed: true, Verdict: "accept", Path: []kernelStep{}}
	own, err := ownAddresses()
	if err != nil {
		return a, err
	}
	a.Hook = "forward"
	switch {
	case slices.Contains(own, f.from):
		a.Hook, a.Remark = "", "what a node itself sends passes no rule"
		return a, nil
	case slices.Contains(own, f.to):
		a.Hook = "input"
	}
	if err := k.read(ctx); err != nil {
		return a, err
	}
	if k.empty {
		a.Hook, a.Remark = "", "there are no rules in the kernel"
		return a, nil
	}
	result, err := k.tracer.Run(a.Hook, trace.Packet{
		Saddr: f.from, Daddr: f.to, Protocol: f.protocol, HopLimit: 64,
		Flow: &trace.Flow{State: policy.StateNew, Protocol: f.protocol, OriginalSaddr: f.from, ReplySaddr: f.to, ReplyProtoSrc: f.port},
	})
	if err != nil {
		return a, err
	}
	for _, s := range result.Path {
		a.Path = append(a.Path, newKernelStep(s))
	}
	if len(result.Path) == 0 {
		a.Hook, a.Remark = "", "what pods send to their own node passes no rule"
	}
	switch result.Verdict {
	case policy.VerdictDrop:
		a.Allowed, a.Verdict = false, "drop"
	case policy.VerdictReset, policy.VerdictProhibit:
		a.Allowed, a.Verdict = false, "reject"
	default:
	}
	return a, nil
}

func newKernelStep(s trace.Step) kernelStep {
	// The chain and the number of the rule come first, and are here already.
	_, rule, _ := strings.Cut(s.String(), ": ")
	return kernelStep{Chain: s.Chain.Name, Rule: printable(rule)}
}

// read makes sure that the rules are known as they are in the kernel. After reading them
// it rests for four times as long as that took: anybody may ask, again and again, and
// gets no more than a fifth of one CPU.
func (k *kernelRules) read(ctx context.Context) error {
	if k.conn == nil {
		conn, err := nft.Open(nft.Options{})
		if err != nil {
			return err
		}
		k.conn = conn
	}
	before, err := k.conn.RulesetGeneration()
	if err != nil {
		return err
	}
	if k.tracer != nil && k.generation == before {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(k.rested)):
	}
	began := time.Now()
	rules, err := k.conn.Read()
	k.rested = time.Now().Add(4 * time.Since(began))
	if err != nil {
		return err
	}
	k.tracer, k.empty, k.generation = trace.New(rules), len(rules.Tables[policy.IPv4].Chains) == 0, before
	k.forgetLater()
	return nil
}

// forgetLater gives the memory of the rules back when nobody has asked for a while.
func (k *kernelRules) forgetLater() {
	if k.forget != nil {
		k.forget.Stop()
	}
	k.forget = time.AfterFunc(k.keep, func() {
		k.turn <- struct{}{}
		defer func() { <-k.turn }()
		k.tracer = nil
		_ = k.conn.Close() // it opens another socket when it needs one
		debug.FreeOSMemory()
	})
}

// ownAddresses are those of the node's interfaces.
func ownAddresses() ([]netip.Addr, error) {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of this node: %w", err)
	}
	own := make([]netip.Addr, 0, len(found))
	for _, a := range found {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr().Unmap().WithZone(""))
		}
	}
	return own, nil
}
