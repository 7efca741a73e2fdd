package nft

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
)

// flannelIPTables are flannel's rules for what its pods send, as its iptables
// manager makes them.
func flannelIPTables(iptables, cluster, node, multicast string) string {
	return strings.NewReplacer("IPT", iptables+" -t nat", "CLUSTER", cluster, "NODE", node, "MULTICAST", multicast).Replace(`
		IPT -N FLANNEL-POSTRTG
		IPT -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
		IPT -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
		IPT -A FLANNEL-POSTRTG -s NODE -d CLUSTER -m comment --comment "flanneld masq" -j RETURN
		IPT -A FLANNEL-POSTRTG -s CLUSTER -d NODE -m comment --comment "flanneld masq" -j RETURN
		IPT -A FLANNEL-POSTRTG ! -s CLUSTER -d NODE -m comment --comment "flanneld masq" -j RETURN
		IPT -A FLANNEL-POSTRTG -s CLUSTER ! -d MULTICAST -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
		IPT -A FLANNEL-POSTRTG ! -s CLUSTER -d CLUSTER -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
	`)
}

// flannelNFTables is what flannel does with EnableNFTables.
func flannelNFTables(family, table, cluster, node, multicast string) string {
	return "nft -f - <<END\n" + strings.NewReplacer("FAMILY", family, "TABLE", table, "CLUSTER", cluster, "NODE", node, "MULTICAST", multicast).Replace(`
		table FAMILY TABLE {
			chain postrtg {
				type nat hook postrouting priority srcnat; policy accept;
				meta mark 0x4000 return
				FAMILY saddr NODE FAMILY daddr CLUSTER return
				FAMILY saddr CLUSTER FAMILY daddr NODE return
				FAMILY saddr != NODE FAMILY daddr CLUSTER return
				FAMILY saddr CLUSTER FAMILY daddr != MULTICAST masquerade fully-random
				FAMILY saddr != CLUSTER FAMILY daddr CLUSTER masquerade fully-random
			}
		}
	`) + "END\n"
}

// TestMasqueraders finds each that is known, and what it masquerades where that can
// be read.
func TestMasqueraders(t *testing.T) {
	for name, tc := range map[string]struct {
		script string
		want   []string
	}{
		"nobody": {script: `
			iptables-nft -t nat -N KUBE-POSTROUTING
			iptables-nft -t nat -A POSTROUTING -j KUBE-POSTROUTING
			iptables-nft -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
			iptables-nft -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully`},
		"flannel with iptables": {
			script: flannelIPTables("iptables-nft", "10.244.0.0/16", "10.244.1.0/24", "224.0.0.0/4") +
				flannelIPTables("ip6tables-nft", "fd00:10:244::/49", "fd00:10:244:1::/64", "ff00::/8"),
			want: []string{"flannel [10.244.0.0/16] chain ip nat FLANNEL-POSTRTG", "flannel [fd00:10:244::/49] chain ip6 nat FLANNEL-POSTRTG"},
		},
		"flannel with nftables": {
			script: flannelNFTables("ip", "flannel-ipv4", "10.240.0.0/13", "10.244.1.0/24", "224.0.0.0/4") +
				flannelNFTables("ip6", "flannel-ipv6", "fd00:10:244::/48", "fd00:10:244:1::/64", "ff00::/8"),
			want: []string{"flannel [10.240.0.0/13] chain ip flannel-ipv4 postrtg", "flannel [fd00:10:244::/48] chain ip6 flannel-ipv6 postrtg"},
		},
		"what flannel left behind": {script: "iptables-nft -t nat -N FLANNEL-POSTRTG\nnft add table ip6 flannel-ipv6"},
		"bridge with iptables": {
			script: `
				for pod in 2 3 9; do
					chain=CNI-0123456789abcdef000000f$pod
					iptables-nft -t nat -N $chain
					iptables-nft -t nat -A $chain -d 10.88.0.0/16 -j ACCEPT -m comment --comment 'name: "cbr0" id: "x"'
					iptables-nft -t nat -A $chain ! -d 224.0.0.0/4 -j MASQUERADE -m comment --comment 'name: "cbr0" id: "x"'
					iptables-nft -t nat -A POSTROUTING -s 10.88.0.$pod -j $chain -m comment --comment 'name: "cbr0" id: "x"'
				done
				ip6tables-nft -t nat -N CNI-SN-0123456789abcdef00000
				ip6tables-nft -t nat -A CNI-SN-0123456789abcdef00000 -s ::1 -j MASQUERADE
				ip6tables-nft -t nat -A POSTROUTING -j CNI-SN-0123456789abcdef00000`,
			want: []string{"cni-plugins [10.88.0.2/31 10.88.0.9/32] chain ip nat POSTROUTING"},
		},
		"bridge with nftables": {
			script: `nft -f - <<END
				table inet cni_plugins_masquerade {
					chain masq_checks {
						ip saddr 10.88.0.7 ip daddr != 10.88.0.0/16 masquerade comment "x"
						ip6 saddr fd00:88::7 ip6 daddr != fd00:88::/64 masquerade comment "x"
						ip6 saddr fd00:88::9 ip6 daddr != fd00:88::/64 masquerade comment "y"
					}
					chain postrouting {
						type nat hook postrouting priority srcnat; policy accept;
						ip daddr 224.0.0.0/4 return
						goto masq_checks
					}
				}
				END`,
			want: []string{
				"cni-plugins [10.88.0.7/32] chain inet cni_plugins_masquerade masq_checks",
				"cni-plugins [fd00:88::7/128 fd00:88::9/128] chain inet cni_plugins_masquerade masq_checks",
			},
		},
		"calico": {
			script: `
				iptables-nft -t nat -N cali-nat-outgoing
				iptables-nft -t nat -A cali-nat-outgoing -m mark --mark 0x1/0x1 -j MASQUERADE --random-fully
				ip6tables-nft -t nat -N cali-nat-outgoing
				nft -f - <<END
				table ip6 calico {
					set cali60masq-ipam-pools { type ipv6_addr; flags interval; elements = { fd00::/8 }; }
					chain nat-cali-nat-outgoing {
						ip6 saddr @cali60masq-ipam-pools ip6 daddr != @cali60masq-ipam-pools counter masquerade fully-random
					}
				}
				END`,
			want: []string{"calico [] chain ip6 calico nat-cali-nat-outgoing", "calico [] chain ip nat cali-nat-outgoing"},
		},
		"agents": {
			script: `
				for chain in IP-MASQ-AGENT IP-MASQ; do
					iptables-nft -t nat -N $chain
					iptables-nft -t nat -A $chain -d 10.0.0.0/8 -m comment --comment "local traffic" -j RETURN
				done
				iptables-nft -t nat -A IP-MASQ -m comment --comment "outbound traffic" -j MASQUERADE
				ip6tables-nft -t nat -N KIND-MASQ-AGENT
				ip6tables-nft -t nat -A KIND-MASQ-AGENT -o eth0 -j MASQUERADE
				nft -f - <<END
				table inet kindnet-ipmasq {
					set noMasqV4 { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }
					chain postrouting {
						type nat hook postrouting priority srcnat - 10; policy accept;
						ct state established,related accept
						fib daddr type local accept
						ip daddr @noMasqV4 accept
						masquerade
					}
				}
				END`,
			want: []string{
				"ip-masq-agent [0.0.0.0/0] chain ip nat IP-MASQ",
				"kindnet [0.0.0.0/0] chain inet kindnet-ipmasq postrouting", "kindnet [::/0] chain inet kindnet-ipmasq postrouting",
				"kindnet [::/0] chain ip6 nat KIND-MASQ-AGENT",
			},
		},
		"cilium": {
			script: `
				iptables-nft -t nat -N CILIUM_POST_nat
				iptables-nft -t nat -A CILIUM_POST_nat -s 10.0.1.0/24 ! -d 10.0.0.0/16 ! -o cilium_+ -j MASQUERADE
				iptables-nft -t nat -A CILIUM_POST_nat -s 10.0.3.0/24 ! -d 10.0.0.0/16 ! -o cilium_+ -j MASQUERADE`,
			want: []string{"cilium [10.0.1.0/24 10.0.3.0/24] chain ip nat CILIUM_POST_nat"},
		},
		"sources in other words": {
			script: `nft -f - <<END
				table ip flannel-ipv4 {
					chain postrtg {
						ip saddr 10.1.2.3 ip daddr 10.4.5.6 masquerade
						ip saddr & 255.255.0.0 == 10.7.0.0 masquerade
						ip daddr 10.0.0.0/8 ip saddr 10.9.128.0/17 masquerade
					}
				}
				END
				iptables-nft -t nat -N KIND-MASQ-AGENT
				iptables-nft -t nat -A KIND-MASQ-AGENT -s 10.0.0.0/8 -j MASQUERADE
				iptables-nft -t nat -A KIND-MASQ-AGENT ! -s 10.0.0.0/8 -j MASQUERADE
				iptables-nft -t nat -N CILIUM_POST_nat
				iptables-nft -t nat -A CILIUM_POST_nat -m iprange --src-range 10.0.0.1-10.0.0.9 -j MASQUERADE
				nft -f - <<END
				table ip6 flannel-ipv6 {
					set some { type ipv6_addr . ipv6_addr; }
					chain postrtg { ip6 saddr fd00::-fd00::7 masquerade; }
				}
				table ip6 calico {
					set some { type ipv6_addr . ipv6_addr; }
					chain nat-cali-nat-outgoing { ip6 daddr . ip6 saddr @some masquerade; }
				}
				END`,
			want: []string{
				"flannel [10.1.2.3/32 10.7.0.0/16 10.9.128.0/17] chain ip flannel-ipv4 postrtg", "flannel [] chain ip6 flannel-ipv6 postrtg",
				"calico [] chain ip6 calico nat-cali-nat-outgoing",
				"kindnet [] chain ip nat KIND-MASQ-AGENT", "cilium [] chain ip nat CILIUM_POST_nat",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			// A here-document of sh(1) may be indented only by tabs, with <<-.
			ns.run(t, strings.ReplaceAll(tc.script, "<<END", "<<-END"), "sh", "-e")
			found, err := ns.open(t).Masqueraders()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range found {
				got = append(got, fmt.Sprintf("%s %v %s", m.Name, m.Sources, m.Place))
				if !slices.Contains(MasqueraderNames(), m.Name) || m.Place.Family != "inet" && m.Place.Family != m.Family.String() {
					t.Errorf("%+v", m)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}

func TestMasqueraderOf(t *testing.T) {
	for chain, want := range map[string]string{
		"FLANNEL-POSTRTG": "flannel", "IP-MASQ": "ip-masq-agent", "CILIUM_POST_nat": "cilium", "cali-nat-outgoing": "calico",
		"CNI-0123456789abcdef01234567": "cni-plugins", "CNI-DN-3456789abcdef01234567": "", "CNI-HOSTPORT-MASQ": "", "POSTROUTING": "", "": "",
	} {
		if got := MasqueraderOf(chain); got != want {
			t.Errorf("%q is %q's, want %q", chain, got, want)
		}
	}
}

// heard counts what a socket receives.
type heard struct {
	Socket
	messages, bytes *int
}

func (s heard) Receive() ([]netlink.Message, error) {
	msgs, err := s.Socket.Receive()
	for i := range msgs {
		*s.messages++
		*s.bytes += len(msgs[i].Data)
	}
	return msgs, err
}

// TestMasqueradersAmongMany: the kernel is asked for single chains, and does not tell
// of the thousands that kube-proxy has beside them.
func TestMasqueradersAmongMany(t *testing.T) {
	ns := newNamespace(t)
	var script strings.Builder
	script.WriteString("table ip nat {\nchain FLANNEL-POSTRTG { ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random; }\n")
	for i := range 10_000 {
		fmt.Fprintf(&script, "chain KUBE-SEP-%05d { ip saddr 10.244.0.1 counter masquerade; }\n", i)
	}
	script.WriteString("}\n")
	ns.nft(t, script.String())
	var messages, size int
	c, err := Open(Options{Dial: func() (Socket, error) {
		s, err := dial(int(ns.handle))
		return heard{s, &messages, &size}, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	found, err := c.Masqueraders()
	if err != nil || len(found) != 1 || found[0].Name != "flannel" {
		t.Errorf("found %+v, %v", found, err)
	}
	if messages > 1 || size > 1000 {
		t.Errorf("the kernel told %d messages, %d bytes", messages, size)
	}
}
