package nft

import "testing"

// TestPresent finds what others have made, and nothing else.
func TestPresent(t *testing.T) {
	ns := newNamespace(t)
	c := ns.open(t)
	ns.nft(t, `
		add table inet kindnet-network-policies
		add chain inet kindnet-network-policies postrouting { type filter hook postrouting priority 0 ; }
		add table ip filter
		add chain ip filter cali-FORWARD
		add chain ip filter FORWARD { type filter hook forward priority 0 ; }
		add rule ip filter FORWARD jump cali-FORWARD
	`)
	for place, want := range map[Place]bool{
		{Family: "inet", Table: "kindnet-network-policies"}:                       true,
		{Family: "ip", Table: "kindnet-network-policies"}:                         false,
		{Family: "inet", Table: "kindnet"}:                                        false,
		{Family: "ip", Table: "filter", Chain: "cali-FORWARD"}:                    true,
		{Family: "ip", Table: "filter", Chain: "cali-forward"}:                    false,
		{Family: "ip", Table: "filter", Chain: "KUBE-ROUTER-FORWARD"}:             false,
		{Family: "ip6", Table: "filter", Chain: "cali-FORWARD"}:                   false,
		{Family: "inet", Table: "kindnet-network-policies", Chain: "postrouting"}: true,
	} {
		got, err := c.Present(place)
		if err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", place, got, err, want)
		}
	}
	if _, err := c.Present(Place{Family: "arp", Table: "calico-arp"}); err == nil {
		t.Error("a family that is not known is looked up")
	}
}
