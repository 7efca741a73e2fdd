package nft

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A Place is where somebody keeps rules: a table, or a chain in it if Chain is
// not empty.
type Place struct {
	// Family is nft's name of it: ip, ip6 or inet.
	Family string
	Table  string
	Chain  string
}

// String writes the place as nft(8) would take it.
func (p Place) String() string {
	if p.Chain == "" {
		return "table " + p.Family + " " + p.Table
	}
	return "chain " + p.Family + " " + p.Table + " " + p.Chain
}

// nfproto is netfilter's number of the place's family.
func (p Place) nfproto() (proto byte, known bool) {
	proto, known = map[string]byte{"ip": unix.NFPROTO_IPV4, "ip6": unix.NFPROTO_IPV6, "inet": unix.NFPROTO_INET}[p.Family]
	return proto, known
}

var errFamily = errors.New("no such family")

// Present tells whether a place exists. It asks for that one by its name: a
// listing of all chains would be some megabytes where kube-proxy has one for
// each endpoint. The rules of iptables are found if they are in nftables, in the
// tables that iptables-nft makes, and not if they are those of iptables-legacy.
func (c *Conn) Present(p Place) (bool, error) {
	proto, ok := p.nfproto()
	if !ok {
		return false, fmt.Errorf("look for %s: %w", p, errFamily)
	}
	if err := c.open(); err != nil {
		return false, c.fail(err)
	}
	typ, attrs := unix.NFT_MSG_GETTABLE, appendString(nil, unix.NFTA_TABLE_NAME, p.Table)
	if p.Chain != "" {
		typ = unix.NFT_MSG_GETCHAIN
		attrs = appendString(appendString(nil, unix.NFTA_CHAIN_TABLE, p.Table), unix.NFTA_CHAIN_NAME, p.Chain)
	}
	_, err := c.requestOf(proto, typ, 0, attrs)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, c.fail(fmt.Errorf("look for %s: %w", p, err))
	}
	return true, nil
}
