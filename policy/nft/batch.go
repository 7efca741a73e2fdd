package nft

import (
	"fmt"
	"io"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// maxComment is how long nft(8) lets a comment be (NFTNL_UDATA_COMMENT_MAXLEN).
const maxComment = 128

// Messages are those of a Change, step by step (see policy.Change), without
// what begins and ends a batch. The switch must be one batch. The other two may
// be divided anywhere: what a message refers to comes before it.
type Messages struct {
	Prepare, Switch, Sweep []netlink.Message
}

// Encode turns a change into messages. It is pure, and adds the tables and the
// base chains as if none were there yet, which is harmless if they are. An
// error means that the change cannot be expressed, and says what of it.
func Encode(c *policy.Change) (Messages, error) {
	e, err := newEncoder()
	if err != nil {
		return Messages{}, err
	}
	return e.change(c, &known{})
}

// known is what Apply knows to be in the kernel and so need not send again.
type known struct {
	// table says that a table is there, and awake.
	table [2]bool
	// hooks says of chains of a table, by name, where they are hooked: nil if
	// nowhere. Regular chains may be missing.
	hooks [2]map[string]*policy.Hook
}

// encoder has google/nftables make messages and catches them instead of
// letting it send them: one acknowledgement per batch rather than one per
// message, buffers that fit, and ct expressions put right (see ctTuple).
type encoder struct {
	conn *nftables.Conn
	msgs []netlink.Message
	// setID numbers the sets of a batch, which the kernel insists on.
	setID uint32
	err   error
}

func newEncoder() (*encoder, error) {
	e := &encoder{}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithTestDial(func(batch []netlink.Message) ([]netlink.Message, error) {
		if len(batch) > 2 {
			e.msgs = append(e.msgs, batch[1:len(batch)-1]...)
		}
		return nil, io.EOF
	}))
	if err != nil {
		return nil, fmt.Errorf("encode nftables messages: %w", err)
	}
	e.conn = conn
	return e, nil
}

// take returns the messages made so far.
func (e *encoder) take() []netlink.Message {
	e.flush()
	msgs := e.msgs
	e.msgs = nil
	return msgs
}

// flush moves what the library has buffered to e.msgs.
func (e *encoder) flush() {
	from := len(e.msgs)
	if err := e.conn.Flush(); err != nil {
		e.fail(fmt.Errorf("encode nftables messages: %w", err))
		return
	}
	for i := from; i < len(e.msgs); i++ {
		m := &e.msgs[i]
		// The kernel would echo every rule back for NLM_F_ECHO.
		m.Header = netlink.Header{Type: m.Header.Type, Flags: m.Header.Flags &^ (netlink.Acknowledge | netlink.Echo)}
		if m.Header.Type != messageType(unix.NFT_MSG_NEWRULE) {
			continue
		}
		if err := fixTuples(familyOf(m), m); err != nil {
			e.fail(err)
		}
	}
}

func (e *encoder) fail(err error) {
	if e.err == nil {
		e.err = err
	}
}

// change makes the messages of all three steps.
func (e *encoder) change(c *policy.Change, k *known) (Messages, error) {
	var m Messages
	e.setID, e.err = 0, nil
	for i := range c.Tables {
		e.prepare(&c.Tables[i])
	}
	m.Prepare = e.take()
	for i := range c.Tables {
		e.switchOver(&c.Tables[i], k)
	}
	m.Switch = e.take()
	for i := range c.Tables {
		e.sweep(&c.Tables[i], k)
	}
	m.Sweep = e.take()
	for _, step := range []*[]netlink.Message{&m.Prepare, &m.Switch, &m.Sweep} {
		if len(*step) > 0 {
			*step = append(e.tables(&m, k), *step...)
			break
		}
	}
	return m, e.err
}

// tables makes the messages for the tables that are needed and may be missing.
// It also wakes a table that someone put to sleep (NFT_TABLE_F_DORMANT).
func (e *encoder) tables(m *Messages, k *known) []netlink.Message {
	var needed [len(policy.Families)]bool
	for _, step := range [][]netlink.Message{m.Prepare, m.Switch, m.Sweep} {
		for i := range step {
			needed[familyOf(&step[i])] = true
		}
	}
	for _, f := range policy.Families {
		if needed[f] && !k.table[f] {
			e.conn.AddTable(table(f))
		}
	}
	return e.take()
}

// prepare makes new counters, chains and sets: first counters and the names of all
// chains, since maps and rules lead to them, then sets, which rules look into, then
// what is in them.
func (e *encoder) prepare(t *policy.TableChange) {
	for i := range t.AddCounters {
		e.addCounter(t.Family, &t.AddCounters[i])
	}
	for i := range t.AddChains {
		e.conn.AddChain(chain(t.Family, &t.AddChains[i]))
	}
	for i := range t.AddSets {
		e.addSet(t.Family, &t.AddSets[i])
	}
	e.flush()
	for i := range t.AddSets {
		e.elements(t.Family, &t.AddSets[i], unix.NFT_MSG_NEWSETELEM, t.AddSets[i].Elements)
	}
	for i := range t.AddChains {
		e.addRules(t.Family, &t.AddChains[i])
	}
	e.flush()
}

// switchOver changes what is in use. An element whose verdict changes is
// deleted before it is added: the kernel refuses (EEXIST) to overwrite one, as it
// refuses (ENOTEMPTY) intervals that overlap. A base chain goes here, and not with
// the sweep: packets look into its sets until it is unhooked.
func (e *encoder) switchOver(t *policy.TableChange, k *known) {
	for i := range t.SetChains {
		e.setChain(t.Family, &t.SetChains[i], k)
	}
	for _, name := range t.DelChains {
		if k.hooks[t.Family][name] != nil {
			e.conn.DelChain(chain(t.Family, &policy.Chain{Name: name}))
		}
	}
	e.flush()
	for i := range t.Elements {
		c := &t.Elements[i]
		e.elements(t.Family, &c.Set, unix.NFT_MSG_DELSETELEM, c.Del)
	}
	for i := range t.Elements {
		c := &t.Elements[i]
		e.elements(t.Family, &c.Set, unix.NFT_MSG_NEWSETELEM, c.Add)
	}
}

// setChain gives a chain other rules. Where a base chain is hooked cannot be
// changed: one that is hooked elsewhere, or a regular chain of that name, is
// replaced, whereby the new chain is hooked before the old one is unhooked.
func (e *encoder) setChain(f policy.Family, c *policy.Chain, k *known) {
	nc := chain(f, c)
	if c.Hook != nil && nc.Hooknum == nil {
		e.fail(fmt.Errorf("chain %s %s: there is no hook %q here", f, c.Name, c.Hook.Name))
		return
	}
	hook, there := k.hooks[f][c.Name]
	switch {
	case there && !sameHook(hook, c.Hook):
		e.conn.DelChain(nc)
		e.conn.AddChain(nc)
	case !there && c.Hook != nil:
		e.conn.AddChain(nc)
		e.conn.FlushChain(nc)
	default:
		e.conn.FlushChain(nc)
	}
	e.addRules(f, c)
}

func sameHook(a, b *policy.Hook) bool { return a == b || a != nil && b != nil && *a == *b }

// sweep deletes. Rules hold on to sets, counters and chains, and maps to chains, so
// that all rules go first and chains last; otherwise the kernel answers EBUSY.
func (e *encoder) sweep(t *policy.TableChange, k *known) {
	var unused []string
	for _, name := range t.DelChains {
		if k.hooks[t.Family][name] == nil {
			unused = append(unused, name)
		}
	}
	for _, name := range unused {
		e.conn.FlushChain(chain(t.Family, &policy.Chain{Name: name}))
	}
	for _, name := range t.DelSets {
		e.conn.DelSet(&nftables.Set{Table: table(t.Family), Name: name})
	}
	for _, name := range unused {
		e.conn.DelChain(chain(t.Family, &policy.Chain{Name: name}))
	}
	e.flush()
	for _, name := range t.DelCounters {
		e.delCounter(t.Family, name)
	}
}

func (e *encoder) elements(f policy.Family, s *policy.Set, typ int, elements []policy.Element) {
	if len(elements) == 0 {
		return
	}
	msgs, err := appendElements(e.msgs, f, s, typ, elements)
	if err != nil {
		e.fail(err)
		return
	}
	e.msgs = msgs
}

func (e *encoder) addSet(f policy.Family, s *policy.Set) {
	keyType, err := setType(f, s)
	if err == nil {
		err = checkComment(s.Comment)
	}
	if err != nil {
		e.fail(fmt.Errorf("set %s %s: %w", f, s.Name, err))
		return
	}
	e.setID++
	ns := &nftables.Set{
		Table: table(f), ID: e.setID, Name: s.Name, KeyType: keyType,
		Interval: s.Interval, Size: s.Size, KeyByteOrder: binaryutil.BigEndian, Comment: s.Comment,
	}
	if s.Verdicts {
		ns.IsMap, ns.DataType = true, nftables.TypeVerdict
	}
	if s.Dynamic {
		ns.Dynamic, ns.HasTimeout, ns.Timeout = true, true, time.Duration(s.Timeout)*time.Second
	}
	if err := e.conn.AddSet(ns, nil); err != nil {
		e.fail(fmt.Errorf("set %s %s: %w", f, s.Name, err))
	}
}

// setType is the type of a set's key. The numbers behind the names matter to
// nft(8) alone; the kernel compares bytes.
func setType(f policy.Family, s *policy.Set) (nftables.SetDatatype, error) {
	var fields []nftables.SetDatatype
	for _, t := range s.Key {
		switch {
		case t == policy.TypeAddr && f == policy.IPv4:
			fields = append(fields, nftables.TypeIPAddr)
		case t == policy.TypeAddr:
			fields = append(fields, nftables.TypeIP6Addr)
		case t == policy.TypeService:
			fields = append(fields, nftables.TypeInetService)
		case t != 0:
			return nftables.SetDatatype{}, fmt.Errorf("unknown type %d", t)
		}
	}
	switch {
	case s.Dynamic && (s.Interval || s.Verdicts || len(s.Elements) > 0 || s.Timeout == 0):
		return nftables.SetDatatype{}, fmt.Errorf("what packets fill is a plain set of no elements with a timeout")
	case !s.Dynamic && s.Timeout != 0:
		return nftables.SetDatatype{}, fmt.Errorf("only what packets fill can have a timeout")
	case len(fields) == 0:
		return nftables.SetDatatype{}, fmt.Errorf("no type")
	case len(fields) == 1:
		return fields[0], nil
	case s.Interval:
		return nftables.SetDatatype{}, fmt.Errorf("a concatenation cannot have intervals here")
	}
	return nftables.ConcatSetType(fields...)
}

func (e *encoder) addRules(f policy.Family, c *policy.Chain) {
	nc := chain(f, c)
	for i := range c.Rules {
		r := &c.Rules[i]
		exprs, err := encodeRule(f, r)
		if err == nil {
			err = checkComment(r.Comment)
		}
		if err != nil {
			e.fail(fmt.Errorf("chain %s %s: rule %d: %w", f, c.Name, i, err))
			return
		}
		nr := &nftables.Rule{Table: nc.Table, Chain: nc, Exprs: exprs}
		if r.Comment != "" {
			nr.UserData = userdata.AppendString(nil, userdata.TypeComment, r.Comment)
		}
		e.conn.AddRule(nr)
	}
}

func checkComment(comment string) error {
	if len(comment) > maxComment {
		return fmt.Errorf("a comment may have %d bytes, not %d: %q", maxComment, len(comment), comment)
	}
	return nil
}

// chain is the chain without its rules.
func chain(f policy.Family, c *policy.Chain) *nftables.Chain {
	nc := &nftables.Chain{Name: c.Name, Table: table(f)}
	if c.Hook == nil {
		return nc
	}
	accept := nftables.ChainPolicyAccept
	nc.Type, nc.Policy = nftables.ChainTypeFilter, &accept
	if c.Hook.NAT {
		nc.Type = nftables.ChainTypeNAT
	}
	switch c.Hook.Name {
	case hookForward:
		nc.Hooknum = nftables.ChainHookForward
	case hookInput:
		nc.Hooknum = nftables.ChainHookInput
	case hookPostrouting:
		nc.Hooknum = nftables.ChainHookPostrouting
	}
	nc.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Hook.Priority))
	return nc
}

// The hooks that a base chain can have.
const (
	hookForward     = "forward"
	hookInput       = "input"
	hookPostrouting = "postrouting"
)

func table(f policy.Family) *nftables.Table {
	return &nftables.Table{Name: policy.TableName, Family: nftables.TableFamily(nfproto(f))}
}

// nfproto is netfilter's number of the family.
func nfproto(f policy.Family) byte {
	if f == policy.IPv4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// familyOf is the family that a message is about.
func familyOf(m *netlink.Message) policy.Family {
	if len(m.Data) > 0 && m.Data[0] == unix.NFPROTO_IPV6 {
		return policy.IPv6
	}
	return policy.IPv4
}

func messageType(typ int) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | typ)
}
