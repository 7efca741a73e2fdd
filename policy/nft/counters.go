package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/policy"
)

// nftaObjUserdata is NFTA_OBJ_USERDATA, since kernel 5.10, where nft(8) keeps the
// comment, as NFTNL_UDATA_OBJ_COMMENT.
const (
	nftaObjUserdata                  = 8
	udataObjectComment userdata.Type = 0
)

// Count is what a counter has counted.
type Count struct {
	Packets, Bytes uint64
}

// Add adds o to c.
func (c *Count) Add(o Count) {
	c.Packets += o.Packets
	c.Bytes += o.Bytes
}

// familyCounts are the counts of each table's counters, by their names.
type familyCounts [len(policy.Families)]map[string]Count

// Counters reads what all counters with names have counted, both families added up.
// It takes one listing for each family.
func (c *Conn) Counters() (map[string]Count, error) {
	read, err := c.counts()
	if err != nil {
		return nil, err
	}
	sum := read[policy.IPv4]
	for name, n := range read[policy.IPv6] {
		n.Add(sum[name])
		sum[name] = n
	}
	return sum, nil
}

// counts is Counters for each family by itself.
func (c *Conn) counts() (familyCounts, error) {
	var read familyCounts
	if err := c.open(); err != nil {
		return read, c.fail(err)
	}
	for _, f := range policy.Families {
		read[f] = map[string]Count{}
		err := c.listCounters(f, func(counter policy.Counter, n Count) { read[f][counter.Name] = n })
		if err != nil {
			return read, c.fail(fmt.Errorf("read the counters of table %s %s: %w", f, policy.TableName, err))
		}
	}
	return read, nil
}

// listCounters lists the counters of a table; none if it is not there.
func (c *Conn) listCounters(f policy.Family, do func(policy.Counter, Count)) error {
	ofTable := appendString(nil, unix.NFTA_OBJ_TABLE, policy.TableName)
	ofTable = appendAttr(ofTable, unix.NFTA_OBJ_TYPE, 0, 0, 0, unix.NFT_OBJECT_COUNTER)
	msgs, err := c.request(unix.NFT_MSG_GETOBJ, f, netlink.Dump, ofTable)
	if err != nil {
		return err
	}
	for i := range msgs {
		if len(msgs[i].Data) <= nfgenmsgLen {
			continue
		}
		if counter, n, ok := decodeCounter(msgs[i].Data[nfgenmsgLen:]); ok {
			do(counter, n)
		}
	}
	return nil
}

// decodeCounter reads the attributes of a NEWOBJ message.
func decodeCounter(b []byte) (counter policy.Counter, n Count, ok bool) {
	var table string
	var kind uint32
	for a := attributes(b); a.next(); {
		switch a.typ {
		case unix.NFTA_OBJ_TABLE:
			table = cstring(a.data)
		case unix.NFTA_OBJ_NAME:
			counter.Name = cstring(a.data)
		case unix.NFTA_OBJ_TYPE:
			kind = a.uint32()
		case unix.NFTA_OBJ_DATA:
			n = Count{Packets: number64(a.data, unix.NFTA_COUNTER_PACKETS), Bytes: number64(a.data, unix.NFTA_COUNTER_BYTES)}
		case nftaObjUserdata:
			counter.Comment = userComment(a.data, udataObjectComment)
		}
	}
	return counter, n, table == policy.TableName && kind == unix.NFT_OBJECT_COUNTER
}

func number64(b []byte, typ uint16) uint64 {
	if v := attribute(b, typ); len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// addCounter makes the message for a new counter; the library has no place for its
// comment.
func (e *encoder) addCounter(f policy.Family, c *policy.Counter) {
	if err := checkComment(c.Comment); err != nil {
		e.fail(fmt.Errorf("counter %s %s: %w", f, c.Name, err))
		return
	}
	b := objectOf(f, c.Name)
	b, data := beginNested(b, unix.NFTA_OBJ_DATA)
	endNested(b, data)
	if c.Comment != "" {
		b = appendAttr(b, nftaObjUserdata, userdata.AppendString(nil, udataObjectComment, c.Comment)...)
	}
	e.object(unix.NFT_MSG_NEWOBJ, netlink.Request|netlink.Create, b)
}

func (e *encoder) delCounter(f policy.Family, name string) {
	e.object(unix.NFT_MSG_DELOBJ, netlink.Request, objectOf(f, name))
}

// objectOf begins a message about a counter.
func objectOf(f policy.Family, name string) []byte {
	b := []byte{nfproto(f), unix.NFNETLINK_V0, 0, 0}
	b = appendString(b, unix.NFTA_OBJ_TABLE, policy.TableName)
	b = appendString(b, unix.NFTA_OBJ_NAME, name)
	return appendAttr(b, unix.NFTA_OBJ_TYPE, 0, 0, 0, unix.NFT_OBJECT_COUNTER)
}

func (e *encoder) object(typ int, flags netlink.HeaderFlags, data []byte) {
	e.msgs = append(e.msgs, netlink.Message{Header: netlink.Header{Type: messageType(typ), Flags: flags}, Data: data})
}
