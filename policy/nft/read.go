package nft

import (
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// maxInterrupted is how often a listing is begun anew because somebody changed
// nftables meanwhile, this table or another.
const maxInterrupted = 20

var errInterrupted = fmt.Errorf("nftables changed again and again while it was listed (%d times)", maxInterrupted)

// Read lists both tables and decodes them. What no Encode makes, and so is not
// ours, becomes something that equals nothing that is: a Diff replaces it. The
// counts of counters, and what packets put into dynamic sets, are not read. A table that is not there is empty.
func (c *Conn) Read() (*policy.Ruleset, error) {
	if err := c.open(); err != nil {
		return nil, c.fail(err)
	}
	r := &policy.Ruleset{}
	k := known{}
	for _, f := range policy.Families {
		r.Tables[f].Family = f
		present, dormant, err := c.readTable(f)
		if err != nil {
			return nil, c.fail(err)
		}
		if !present {
			continue
		}
		if err := c.readInto(&r.Tables[f]); err != nil {
			return nil, c.fail(fmt.Errorf("read table %s %s: %w", f, policy.TableName, err))
		}
		k.table[f] = !dormant
		k.hooks[f] = map[string]*policy.Hook{}
		for i := range r.Tables[f].Chains {
			ch := &r.Tables[f].Chains[i]
			k.hooks[f][ch.Name] = ch.Hook
			if dormant && ch.Hook != nil {
				// The rules are there but not in force. Applying a change to
				// this chain wakes the table.
				ch.Rules = append(ch.Rules, foreignRule("the table is dormant"))
			}
		}
	}
	c.known = k
	return r, nil
}

// RulesetGeneration returns the kernel's count of nftables transactions in the
// network namespace, of all tables (`nft monitor` calls it "new generation").
// It stays the same exactly as long as nobody changes anything.
func (c *Conn) RulesetGeneration() (uint32, error) {
	if err := c.open(); err != nil {
		return 0, c.fail(err)
	}
	msgs, err := c.request(unix.NFT_MSG_GETGEN, policy.IPv4, 0, nil)
	if err != nil {
		return 0, c.fail(fmt.Errorf("read the generation of nftables: %w", err))
	}
	for i := range msgs {
		for a := attributes(msgs[i].Data[nfgenmsgLen:]); a.next(); {
			if a.typ == unix.NFTA_GEN_ID {
				return a.uint32(), nil
			}
		}
	}
	return 0, c.fail(errors.New("read the generation of nftables: the kernel does not say it"))
}

// readTable tells whether a table is there, and whether it is asleep.
func (c *Conn) readTable(f policy.Family) (present, dormant bool, err error) {
	msgs, err := c.request(unix.NFT_MSG_GETTABLE, f, 0, appendString(nil, unix.NFTA_TABLE_NAME, policy.TableName))
	if errors.Is(err, unix.ENOENT) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("look for table %s %s: %w", f, policy.TableName, err)
	}
	for i := range msgs {
		for a := attributes(msgs[i].Data[nfgenmsgLen:]); a.next(); {
			if a.typ == unix.NFTA_TABLE_FLAGS {
				dormant = a.uint32()&unix.NFT_TABLE_F_DORMANT != 0
			}
		}
	}
	return true, dormant, nil
}

// readInto lists what is in a table. Rules come in one listing for all chains,
// elements in one for each set: the kernel offers them like that.
func (c *Conn) readInto(t *policy.Table) error {
	ofTable := appendString(nil, unix.NFTA_CHAIN_TABLE, policy.TableName)
	d := newDecoder(t)
	for _, list := range []struct {
		typ    int
		decode func(b []byte)
	}{
		{unix.NFT_MSG_GETCHAIN, d.chain},
		{unix.NFT_MSG_GETRULE, d.rule},
		{unix.NFT_MSG_GETSET, d.set},
	} {
		msgs, err := c.request(list.typ, t.Family, netlink.Dump, ofTable)
		if err != nil {
			return err
		}
		for i := range msgs {
			if len(msgs[i].Data) > nfgenmsgLen {
				list.decode(msgs[i].Data[nfgenmsgLen:])
			}
		}
	}
	err := c.listCounters(t.Family, func(counter policy.Counter, _ Count) { t.Counters = append(t.Counters, counter) })
	if err != nil {
		return err
	}
	for i := range t.Sets {
		if t.Sets[i].Dynamic {
			continue
		}
		if err := c.readElements(d, &t.Sets[i]); err != nil {
			return fmt.Errorf("set %s: %w", t.Sets[i].Name, err)
		}
	}
	d.finish()
	return nil
}

// readElements lists the elements of a set. The kernel lists a hash table piece
// by piece and begins each piece by counting off what it has listed before
// (nf_tables_dump_setelem, nft_rhash_walk). If the table is being moved into a
// larger one meanwhile, which happens in the background after many elements
// were added, that counts off the wrong ones: as many elements are listed twice
// as are left out, and no flag says so. What is listed twice gives it away.
func (c *Conn) readElements(d *decoder, s *policy.Set) error {
	request := appendString(appendString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, policy.TableName), unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	for try := range maxInterrupted {
		msgs, err := c.request(unix.NFT_MSG_GETSETELEM, d.table.Family, netlink.Dump, request)
		if err != nil {
			return err
		}
		if d.elements(s, msgs) {
			return nil
		}
		c.opts.Logger.Debug("listing a set again, which the kernel rearranged meanwhile", "family", d.table.Family, "set", s.Name)
		time.Sleep(time.Duration(1+try) * time.Millisecond)
	}
	return errInterrupted
}

// request asks the kernel for something and returns its answer. A listing that
// a commit interrupts is begun anew, since what comes after may not fit to what
// came before (NLM_F_DUMP_INTR).
func (c *Conn) request(typ int, f policy.Family, flags netlink.HeaderFlags, attrs []byte) ([]netlink.Message, error) {
	return c.requestOf(nfproto(f), typ, flags, attrs)
}

// requestOf is request for any family, by its number in linux/netfilter.h.
func (c *Conn) requestOf(nfproto byte, typ int, flags netlink.HeaderFlags, attrs []byte) ([]netlink.Message, error) {
	data := append([]byte{nfproto, unix.NFNETLINK_V0, 0, 0}, attrs...)
	for range maxInterrupted {
		sent, err := c.socket.SendMessages([]netlink.Message{{
			Header: netlink.Header{Type: messageType(typ), Flags: netlink.Request | flags},
			Data:   data,
		}})
		if err != nil {
			return nil, err
		}
		if err := c.socket.SetReadDeadline(time.Now().Add(c.opts.Timeout)); err != nil {
			return nil, err
		}
		msgs, err := c.socket.Receive()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		interrupted := false
		for i := range msgs {
			if msgs[i].Header.Sequence != sent[0].Header.Sequence {
				return nil, errors.New("the answer is to another request")
			}
			interrupted = interrupted || msgs[i].Header.Flags&netlink.DumpInterrupted != 0
		}
		if !interrupted {
			return msgs, nil
		}
	}
	return nil, errInterrupted
}
