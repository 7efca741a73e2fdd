package vm

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// wanted are the kernel's modules that a machine without hardware can use, as
// beginnings of their paths below kernel/. What they depend on comes along.
func wanted() []string {
	return []string{
		"net/802/", "net/8021q/", "net/bridge/", "net/core/", "net/ipv4/", "net/ipv6/", "net/ipvs/", "net/key/", "net/l2tp/",
		"net/llc/", "net/mpls/", "net/mptcp/", "net/netfilter/", "net/netlink/", "net/nsh/", "net/openvswitch/", "net/packet/",
		"net/psample/", "net/sched/", "net/sctp/", "net/tls/", "net/unix/", "net/xfrm/",
		"drivers/net/bareudp.", "drivers/net/bonding/", "drivers/net/dummy.", "drivers/net/geneve.", "drivers/net/ifb.", "drivers/net/ipvlan/",
		"drivers/net/macsec.", "drivers/net/macvlan.", "drivers/net/macvtap.", "drivers/net/netkit.", "drivers/net/nlmon.", "drivers/net/tap.",
		"drivers/net/tun.", "drivers/net/veth.", "drivers/net/vrf.", "drivers/net/vxlan/", "drivers/net/wireguard/",
		"crypto/", "lib/",
	}
}

// preloaded are the modules that the guest loads before anything else: those
// that the kernel does not load when they are first used, and those for which a
// test should not have to wait. What a kernel does not have is left out.
func preloaded() []string {
	return []string{
		// nf_tables needs it, by a name that modprobe does not resolve.
		"crc32c_generic",
		"nf_tables", "br_netfilter", "nf_conntrack", "nf_conntrack_netlink", "nfnetlink_log",
		"sch_tbf", "sch_htb", "sch_fq_codel", "sch_ingress", "cls_u32", "cls_matchall", "cls_flower", "cls_bpf", "act_mirred", "act_police",
		"bridge", "ifb", "veth", "dummy", "macvlan", "ipvlan", "8021q", "vxlan", "tun", "sctp",
	}
}

// pruneModules removes all modules of the tree but those wanted, and writes the
// index of what is left. dir has lib/modules/release.
func pruneModules(ctx context.Context, dir, release string) error {
	tree := filepath.Join(dir, "lib", "modules", release)
	if err := indexModules(ctx, dir, release); err != nil {
		return err
	}
	index, err := os.ReadFile(filepath.Join(tree, "modules.dep"))
	if err != nil {
		return err
	}
	kept := closure(string(index), wanted())
	if len(kept) == 0 {
		return fmt.Errorf("none of the modules of %s is wanted", release)
	}
	var packed []string
	err = filepath.WalkDir(filepath.Join(tree, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		if !kept[name] {
			return os.Remove(path)
		}
		if strings.HasSuffix(name, ".xz") {
			packed = append(packed, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(packed) > 0 {
		// Once here, rather than each time in the machine, which may be slow.
		if _, err := output(ctx, dir, append([]string{"xz", "--decompress", "--"}, packed...)...); err != nil {
			return err
		}
	}
	return indexModules(ctx, dir, release)
}

func indexModules(ctx context.Context, dir, release string) error {
	_, err := output(ctx, dir, "depmod", "-b", dir, release)
	return err
}

// closure returns the modules that are wanted, with all that they depend on, by
// their paths as they are in modules.dep. That names all of a module's
// dependencies, also the indirect ones.
func closure(index string, wanted []string) map[string]bool {
	kept := map[string]bool{}
	for line := range strings.Lines(index) {
		module, needs, _ := strings.Cut(line, ":")
		for _, prefix := range wanted {
			if !strings.HasPrefix(module, "kernel/"+prefix) {
				continue
			}
			kept[module] = true
			for need := range strings.FieldsSeq(needs) {
				kept[need] = true
			}
		}
	}
	return kept
}
