package nft

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

func TestCheckChangesNothing(t *testing.T) {
	ns := newNamespace(t)
	c := ns.open(t)
	before, err := c.RulesetGeneration()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	if err := c.CheckLog(); err != nil {
		t.Fatal(err)
	}
	if err := c.CheckMasquerade(); err != nil {
		t.Fatal(err)
	}
	after, err := c.RulesetGeneration()
	if err != nil {
		t.Fatal(err)
	}
	if list := ns.list(t); after != before || list != "" {
		t.Errorf("generation went from %d to %d, ruleset is now %q", before, after, list)
	}
	// The Conn that was checked is as good as new.
	mustApply(t, c, fill(everything()))
}

// TestSampleIsComplete: Check can only promise what it has tried, and must not
// demand what only CheckLog or CheckMasquerade does.
func TestSampleIsComplete(t *testing.T) {
	have, log, nat := ingredients(t, sample()), ingredients(t, logSample()), ingredients(t, masqueradeSample())
	for name := range ingredients(t, fill(everything())) {
		if !have[name] && !log[name] && !nat[name] {
			t.Errorf("the samples have no %s", name)
		}
	}
	for _, f := range policy.Families {
		for name, by := range map[string]map[string]bool{"*expr.Masq": nat, "chain of type nat": nat, "*expr.Log": log, "*expr.Dynset": log, "dynamic set": log} {
			if name = f.String() + " " + name; have[name] || !by[name] {
				t.Errorf("%s: in what Check tries %t, in what it should be tried by %t", name, have[name], by[name])
			}
		}
	}
}

// ingredients names the expressions, types of chains and kinds of objects that a
// change has.
func ingredients(t *testing.T, c *policy.Change) map[string]bool {
	t.Helper()
	m, err := Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, msg := range append(m.Prepare, m.Switch...) {
		f := familyOf(&msg)
		for a := attributes(msg.Data[nfgenmsgLen:]); a.next(); {
			switch {
			case msg.Header.Type == messageType(unix.NFT_MSG_NEWOBJ) && a.typ == unix.NFTA_OBJ_TYPE:
				out[fmt.Sprintf("%s object of type %d", f, a.uint32())] = true
			case msg.Header.Type == messageType(unix.NFT_MSG_NEWSET) && a.typ == unix.NFTA_SET_FLAGS && a.uint32()&setDynamic != 0:
				out[f.String()+" dynamic set"] = true
			case msg.Header.Type == messageType(unix.NFT_MSG_NEWCHAIN) && a.typ == unix.NFTA_CHAIN_TYPE:
				out[f.String()+" chain of type "+cstring(a.data)] = true
			case msg.Header.Type == messageType(unix.NFT_MSG_NEWRULE) && a.typ == unix.NFTA_RULE_EXPRESSIONS:
				exprs, err := decodeExprs(f, a.data)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range exprs {
					out[fmt.Sprintf("%s %T", f, e)] = true
				}
			}
		}
	}
	return out
}

// TestCheckWithoutPrivileges runs Check on a thread that has given up its
// capabilities, and that ends with the test.
func TestCheckWithoutPrivileges(t *testing.T) {
	ns := newNamespace(t)
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			done <- err
			return
		}
		c := ns.open(t)
		err := c.Check()
		if _, rerr := c.Read(); !errors.Is(rerr, ErrPermission) {
			err = fmt.Errorf("Read: %w, Check: %w", rerr, err)
		}
		done <- err
	}()
	err := <-done
	if !errors.Is(err, ErrPermission) || !errors.Is(err, unix.EPERM) {
		t.Fatalf("%v", err)
	}
	for _, word := range []string{"CAP_NET_ADMIN", "root", "NET_ADMIN"} {
		if !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "\n") {
			t.Errorf("the message is %q", err)
		}
	}
}

// answering is a socket whose answer to each batch is an error.
type answering struct {
	Socket
	err error
	seq uint32
}

func (s *answering) SendMessages(msgs []netlink.Message) ([]netlink.Message, error) {
	for i := range msgs {
		msgs[i].Header.Sequence = uint32(i + 1)
	}
	s.seq = uint32(len(msgs))
	return msgs, nil
}

func (s *answering) Receive() ([]netlink.Message, error) {
	return nil, &netlink.OpError{Op: "receive", Err: s.err, Sequence: s.seq}
}
func (*answering) SetReadDeadline(time.Time) error { return nil }
func (*answering) SetWriteBuffer(int) error        { return nil }
func (*answering) Close() error                    { return nil }

func TestCheckWithoutNftables(t *testing.T) {
	for name, dial := range map[string]func() (Socket, error){
		"no netlink for netfilter": func() (Socket, error) { return nil, os.NewSyscallError("socket", unix.EPROTONOSUPPORT) },
		"no nf_tables":             func() (Socket, error) { return &answering{err: unix.EOPNOTSUPP}, nil },
		"no such expression":       func() (Socket, error) { return &answering{err: unix.ENOENT}, nil },
		"no such key":              func() (Socket, error) { return &answering{err: unix.EINVAL}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Open(Options{Dial: dial})
			if err != nil {
				t.Fatal(err)
			}
			for module, check := range map[string]func() error{"nf_tables": c.Check, "nft_log": c.CheckLog, "nft_masq": c.CheckMasquerade} {
				err := check()
				if !errors.Is(err, ErrUnsupported) {
					t.Fatalf("%v", err)
				}
				if !strings.Contains(err.Error(), module) || strings.Contains(err.Error(), "\n") {
					t.Errorf("the message is %q", err)
				}
			}
		})
	}
}

// TestErrorsNameObjects: of a batch that the kernel refuses nothing is in
// force, and the error says which object it is about.
func TestErrorsNameObjects(t *testing.T) {
	ns := newNamespace(t)
	c := ns.open(t)
	r := everything()
	mustApply(t, c, fill(r))
	want := ns.list(t)
	set := policy.Set{Name: "self-v4", Key: [2]policy.Type{policy.TypeAddr, policy.TypeAddr}}
	absent := []policy.Element{{Key: "\x01\x02\x03\x04\x01\x02\x03\x04"}}
	one := func(f policy.Family, t policy.TableChange) *policy.Change {
		c := &policy.Change{}
		t.Family = f
		c.Tables[f] = t
		return c
	}
	for object, tc := range map[string]struct {
		change *policy.Change
		errno  unix.Errno
	}{
		"element ip selvage self-v4": {one(policy.IPv4, policy.TableChange{
			SetChains: []policy.Chain{{Name: "egress"}},
			Elements:  []policy.ElementChange{{Set: set, Del: absent}},
		}), unix.ENOENT},
		"rule ip6 selvage egress": {one(policy.IPv6, policy.TableChange{
			SetChains: []policy.Chain{{Name: "empty"}, {Name: "egress", Rules: []policy.Rule{{Verdict: policy.Verdict{Kind: policy.VerdictJump, Chain: "nowhere"}}}}},
		}), unix.ENOENT},
		"set ip selvage self-v4":         {one(policy.IPv4, policy.TableChange{DelSets: []string{"self-v4"}}), unix.EBUSY},
		"counter ip selvage deny-egress": {one(policy.IPv4, policy.TableChange{DelCounters: []string{"deny-egress"}}), unix.EBUSY},
		"counter ip6 selvage nothing":    {one(policy.IPv6, policy.TableChange{DelCounters: []string{"nothing"}}), unix.ENOENT},
		"rule ip selvage egress": {one(policy.IPv4, policy.TableChange{
			SetChains: []policy.Chain{{Name: "egress", Rules: []policy.Rule{{Count: "nothing"}}}},
		}), unix.ENOENT},
		"chain ip selvage nowhere": {one(policy.IPv4, policy.TableChange{DelChains: []string{"nowhere"}}), unix.ENOENT},
	} {
		_, err := c.Apply(tc.change)
		var oe *ObjectError
		if !errors.As(err, &oe) || oe.Object != object || !errors.Is(err, tc.errno) || !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", object, err)
		}
		if got := ns.list(t); got != want {
			t.Errorf("%s: the tables have changed:\n%s", object, got)
		}
	}
	// Unsupported by this kernel or not: a batch refused at its very end.
	if _, err := c.Apply(one(policy.IPv4, policy.TableChange{
		SetChains: []policy.Chain{{Name: "empty", Rules: []policy.Rule{{Verdict: policy.Verdict{Kind: policy.VerdictJump, Chain: "egress"}}}},
			{Name: "deny-egress", Rules: []policy.Rule{{Verdict: policy.Verdict{Kind: policy.VerdictJump, Chain: "empty"}}}}},
	})); !errors.Is(err, ErrRefused) || !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.EMLINK) {
		t.Errorf("chains that loop: %v", err)
	}
	if got := ns.list(t); got != want {
		t.Errorf("the tables have changed:\n%s", got)
	}
}

func TestCleanup(t *testing.T) {
	ns := newNamespace(t)
	ns.nft(t, "add table ip other\nadd chain ip other forward { type filter hook forward priority 0; }\nadd table inet selvage")
	others := ns.list(t)
	c, sent := ns.openFaulty(t, -1, noFault)
	cleanup := func(want bool) {
		t.Helper()
		before := sent.batches
		removed, err := c.Cleanup()
		if err != nil || removed != want {
			t.Errorf("removed: %t, %v", removed, err)
		}
		if n := sent.batches - before; n > 1 || (n == 1) != want {
			t.Errorf("%d batches", n)
		}
		if got := ns.list(t); got != others {
			t.Errorf("what is left:\n%s", got)
		}
	}
	cleanup(false)
	mustApply(t, c, fill(everything()))
	cleanup(true)
	cleanup(false)
	ns.nft(t, "add table ip6 selvage") // half of it
	cleanup(true)
	mustApply(t, c, fill(everything()))
	cleanup(true)
}

// TestEmptyChange sends nothing and opens nothing.
func TestEmptyChange(t *testing.T) {
	c, err := Open(Options{Dial: func() (Socket, error) { return nil, errors.New("opened a socket") }})
	if err != nil {
		t.Fatal(err)
	}
	stats, err := c.Apply(&policy.Change{Tables: [2]policy.TableChange{{Family: policy.IPv4}, {Family: policy.IPv6}}})
	if err != nil || stats != (Stats{}) {
		t.Errorf("%+v, %v", stats, err)
	}
}

// TestSmallChangesAreSmall counts messages: what is known to be there is not
// sent again.
func TestSmallChangesAreSmall(t *testing.T) {
	ns := newNamespace(t)
	c, sent := ns.openFaulty(t, -1, noFault)
	r := everything()
	mustApply(t, c, fill(r))
	if _, err := c.Read(); err != nil {
		t.Fatal(err)
	}
	element := func(fs ...policy.Family) *policy.Change {
		change := &policy.Change{}
		for _, f := range fs {
			set := r.Tables[f].Sets[4]
			e := set.Elements[0]
			set.Elements = nil
			changed := e
			changed.Verdict = policy.Verdict{Kind: policy.VerdictDrop}
			change.Tables[f] = policy.TableChange{Family: f, Elements: []policy.ElementChange{{Set: set, Del: []policy.Element{e}, Add: []policy.Element{changed}}}}
		}
		return change
	}
	generation := &policy.Change{}
	for _, f := range policy.Families {
		forward := r.Tables[f].Chains[3]
		generation.Tables[f] = policy.TableChange{Family: f, SetChains: []policy.Chain{forward}}
	}
	for name, tc := range map[string]struct {
		change *policy.Change
		want   Stats
	}{
		"one element":      {element(policy.IPv4), Stats{Batches: 1, Messages: 2, Elements: 2}},
		"both families":    {element(policy.IPv4, policy.IPv6), Stats{Batches: 1, Messages: 4, Elements: 4}},
		"both base chains": {generation, Stats{Batches: 1, Messages: 8}},
	} {
		before := *sent
		got := mustApply(t, c, tc.change)
		if got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
		if n := sent.messages - before.messages; n != tc.want.Messages || sent.batches-before.batches != tc.want.Batches {
			t.Errorf("%s: counted %d messages", name, n)
		}
		if _, err := c.Cleanup(); err != nil {
			t.Fatal(err)
		}
		mustApply(t, c, fill(r))
	}
	if sent.dials != 1 {
		t.Errorf("%d sockets were opened", sent.dials)
	}
}

// TestLarge: sets beyond what one message can hold, and batches beyond what
// the socket's buffers hold at first.
func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: large rulesets, because of -short")
	}
	for _, size := range []struct{ rules, elements int }{{10, 4095}, {10, 4096}, {500, 5000}, {6000, 0}, {1000, 100_000}} {
		t.Run(fmt.Sprintf("%d rules, %d elements", size.rules, size.elements), func(t *testing.T) {
			ns := newNamespace(t)
			c := ns.open(t)
			want := large(size.rules, size.elements)
			for _, way := range []string{"Apply", "one batch"} {
				apply := func() (Stats, error) { return c.Apply(fill(want)) }
				if way == "one batch" {
					apply = func() (Stats, error) { return c.Replace(want) }
				}
				stats, err := apply()
				if err != nil {
					t.Fatalf("%s: %v", way, err)
				}
				if stats.Elements != size.elements || stats.Messages < size.rules || way == "one batch" && stats.Batches != 1 {
					t.Errorf("%s: %+v", way, stats)
				}
				got, err := c.Read()
				if err != nil {
					t.Fatal(err)
				}
				if change := policy.Diff(got, want); !change.Empty() {
					t.Errorf("%s: %d sets, chains and elements are not as they should be", way, countParts(change))
				}
			}
		})
	}
}
