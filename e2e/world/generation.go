package world

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// RulesetGeneration is nftables' own count of the transactions that changed
// the namespace's ruleset (NFT_MSG_GETGEN): as long as it is the same, nobody
// has changed anything.
func (n *Namespace) RulesetGeneration() (uint32, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: n.FD()})
	if err != nil {
		return 0, fmt.Errorf("nfnetlink in %s: %w", n.ID, err)
	}
	defer c.Close()
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   make([]byte, 4), // struct nfgenmsg: any family, version 0
	})
	if err != nil {
		return 0, fmt.Errorf("generation of the ruleset in %s: %w", n.ID, err)
	}
	for _, m := range msgs {
		attrs, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, fmt.Errorf("generation of the ruleset in %s: %w", n.ID, err)
		}
		attrs.ByteOrder = binary.BigEndian
		for attrs.Next() {
			if attrs.Type() == unix.NFTA_GEN_ID {
				return attrs.Uint32(), attrs.Err()
			}
		}
	}
	return 0, errors.New("generation of the ruleset: the answer does not have it")
}
