package nft

import (
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// Stats says what was sent.
type Stats struct {
	// Batches are transactions and Messages what was in them.
	Batches, Messages int
	// Elements are those of sets and maps that were added or deleted.
	Elements int
}

// Add adds o to s.
func (s *Stats) Add(o Stats) {
	s.Batches += o.Batches
	s.Messages += o.Messages
	s.Elements += o.Elements
}

// Apply brings a change into force, step by step. An empty change sends
// nothing, and does not even open a socket.
//
// After an error the steps before the one that failed are in force, and the
// one that failed is not, unless the error is ErrUnknown: read back what is
// there. Stats always says what was sent.
func (c *Conn) Apply(change *policy.Change) (Stats, error) {
	var stats Stats
	c.last = familyCounts{}
	if change.Empty() {
		return stats, nil
	}
	m, err := c.encoder.change(change, &c.known)
	if err != nil {
		c.encoder = nil
		return stats, c.fail(c.renewEncoder(err))
	}
	if err := c.open(); err != nil {
		return stats, c.fail(err)
	}
	for _, batch := range chunks(m.Prepare) {
		if err := c.send(batch, &stats); err != nil {
			return stats, c.fail(fmt.Errorf("prepare a change of the tables: %w", err))
		}
	}
	if len(m.Switch) > 0 {
		if err := c.send(m.Switch, &stats); err != nil {
			return stats, c.fail(fmt.Errorf("change the tables: %w", err))
		}
	}
	if len(m.Sweep) > 0 && len(m.Switch) > 0 {
		c.settle()
	}
	last, err := c.lastCounts(change)
	if err != nil {
		return stats, c.fail(err)
	}
	for _, batch := range chunks(m.Sweep) {
		if err := c.send(batch, &stats); err != nil {
			return stats, c.fail(fmt.Errorf("delete what is no longer used from the tables: %w", err))
		}
	}
	stats.Elements = countElements(change)
	c.known.learn(change)
	c.last = last
	return stats, nil
}

// lastCounts reads the counters that a change deletes. By then no rule counts in them.
func (c *Conn) lastCounts(change *policy.Change) (familyCounts, error) {
	var last familyCounts
	for i := range change.Tables {
		t := &change.Tables[i]
		if len(t.DelCounters) == 0 {
			continue
		}
		last[t.Family] = map[string]Count{}
		for _, name := range t.DelCounters {
			last[t.Family][name] = Count{}
		}
		err := c.listCounters(t.Family, func(counter policy.Counter, n Count) {
			if _, ok := last[t.Family][counter.Name]; ok {
				last[t.Family][counter.Name] = n
			}
		})
		if err != nil {
			return last, fmt.Errorf("read the counters to delete from table %s %s: %w", t.Family, policy.TableName, err)
		}
	}
	return last, nil
}

// Replace makes the tables what r says, whatever they are, by deleting and
// making them anew in one transaction. A packet on its way at that moment sees
// sets as empty, so that this is only for tables that Apply cannot mend.
func (c *Conn) Replace(r *policy.Ruleset) (Stats, error) {
	var stats Stats
	c.last = familyCounts{}
	if err := c.open(); err != nil {
		return stats, c.fail(err)
	}
	change := &policy.Change{}
	for i := range r.Tables {
		t, ct := &r.Tables[i], &change.Tables[i]
		ct.Family, ct.AddCounters, ct.AddSets = t.Family, t.Counters, t.Sets
		for _, ch := range t.Chains {
			if ch.Hook != nil {
				ct.SetChains = append(ct.SetChains, ch)
			} else {
				ct.AddChains = append(ct.AddChains, ch)
			}
		}
	}
	m, err := c.encoder.change(change, &known{table: [2]bool{true, true}})
	if err != nil {
		return stats, c.fail(c.renewEncoder(err))
	}
	for _, f := range policy.Families {
		// A table that is not there cannot be deleted.
		c.encoder.conn.AddTable(table(f))
		c.encoder.conn.DelTable(table(f))
		c.encoder.conn.AddTable(table(f))
	}
	last, err := c.counts()
	if err != nil {
		return stats, err
	}
	batch := append(append(c.encoder.take(), m.Prepare...), m.Switch...)
	if err := c.send(batch, &stats); err != nil {
		return stats, c.fail(fmt.Errorf("replace the tables: %w", err))
	}
	stats.Elements = countElements(change)
	c.known = known{}
	c.known.learn(change)
	c.last = last
	return stats, nil
}

// renewEncoder replaces the encoder, which may hold half of a change, and
// returns err.
func (c *Conn) renewEncoder(err error) error {
	e, eerr := newEncoder()
	if eerr != nil {
		return fmt.Errorf("%w; %w", err, eerr)
	}
	c.encoder = e
	return err
}

func (c *Conn) send(batch []netlink.Message, stats *Stats) error {
	stats.Batches++
	stats.Messages += len(batch)
	return c.commit(batch)
}

// learn remembers what a change that succeeded has shown to be there.
func (k *known) learn(change *policy.Change) {
	for i := range change.Tables {
		t := &change.Tables[i]
		if len(t.AddCounters)+len(t.AddSets)+len(t.AddChains)+len(t.SetChains)+len(t.Elements)+
			len(t.DelChains)+len(t.DelSets)+len(t.DelCounters) == 0 {
			continue
		}
		k.table[i] = true
		if k.hooks[i] == nil {
			k.hooks[i] = map[string]*policy.Hook{}
		}
		for _, ch := range t.SetChains {
			k.hooks[i][ch.Name] = ch.Hook
		}
		for _, name := range t.DelChains {
			delete(k.hooks[i], name)
		}
	}
}

// chunks divides messages into batches of bounded size.
func chunks(msgs []netlink.Message) [][]netlink.Message {
	var batches [][]netlink.Message
	from, size := 0, 0
	for i := range msgs {
		n := unix.NLMSG_HDRLEN + align4(len(msgs[i].Data))
		if size+n > maxChunk && i > from {
			batches = append(batches, msgs[from:i])
			from, size = i, 0
		}
		size += n
	}
	if from < len(msgs) {
		batches = append(batches, msgs[from:])
	}
	return batches
}

func countElements(change *policy.Change) int {
	n := 0
	for i := range change.Tables {
		t := &change.Tables[i]
		for j := range t.AddSets {
			n += len(t.AddSets[j].Elements)
		}
		for j := range t.Elements {
			n += len(t.Elements[j].Del) + len(t.Elements[j].Add)
		}
	}
	return n
}

// settle waits until no packet is left that entered before the last commit.
// Such a packet still runs the old rules, and would find a set that these use
// empty the moment that the set is deleted. Packets run under the kernel's RCU
// read lock, and this membarrier command waits for a grace period, some
// milliseconds (membarrier(2), kernel/sched/membarrier.c). Where it is refused,
// as with nohz_full, only a packet that was held up for longer than it takes to
// send the next batch could be met.
func (c *Conn) settle() {
	const membarrierCmdGlobal = 1
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierCmdGlobal, 0, 0); errno != 0 {
		c.opts.Logger.Debug("cannot wait for packets on their way", "error", errno)
	}
}
