package lab

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/e2e/lab/machine"
)

// inotifyInstances is what the programs of three nodes need together: a limit
// for all processes of a user, in whatever namespaces.
const inotifyInstances = 128

// Check tells all that this machine lacks, at once.
func Check() error {
	var errs []error
	missing := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if os.Geteuid() != 0 {
		return errors.New("the lab needs root, for namespaces and cgroups")
	}
	controllers, err := machine.MissingControllers("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")
	if err != nil {
		return err
	}
	if len(controllers) > 0 {
		missing("cgroup v1 with the controllers %s (the lab cannot use cgroup v2)", strings.Join(controllers, ", "))
	}
	if n, err := readInt("/proc/sys/fs/inotify/max_user_instances"); err != nil || n < inotifyInstances {
		missing("sysctl fs.inotify.max_user_instances of %d; it is %d", inotifyInstances, n)
	}
	errs = append(errs, checkCommands())
	machine.OnThread(func() { errs = append(errs, checkKernel()) })
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("this machine lacks:\n%w", err)
	}
	return nil
}

// checkCommands tells which programs are missing that those of the cluster run.
func checkCommands() error {
	commands := map[string]string{
		"nft": "nftables", "nsenter": "util-linux", "mount": "mount", "umount": "mount",
		// kube-proxy needs these in one of its modes. flanneld does not start
		// without, even if it is to use nftables.
		"iptables": "iptables", "iptables-save": "iptables", "iptables-restore": "iptables", "ip6tables": "iptables",
	}
	var errs []error
	for _, c := range slices.Sorted(maps.Keys(commands)) {
		if !found(c) {
			errs = append(errs, fmt.Errorf("the program %s (Debian: apt-get install %s)", c, commands[c]))
		}
	}
	return errors.Join(errs...)
}

// found looks where machines do, whatever the PATH is here.
func found(command string) bool {
	if _, err := exec.LookPath(command); err == nil {
		return true
	}
	for _, dir := range []string{"/usr/local/sbin/", "/usr/sbin/", "/sbin/"} {
		if _, err := os.Stat(dir + command); err == nil {
			return true
		}
	}
	return false
}

// checkKernel tries what machines need, in namespaces that it gives the calling
// thread.
func checkKernel() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("namespaces: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	errs := []error{checkOverlay()}
	attrs := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	for what, link := range map[string]netlink.Link{
		"bridge (CONFIG_BRIDGE)": &netlink.Bridge{LinkAttrs: attrs("bridge")},
		"veth (CONFIG_VETH)":     &netlink.Veth{LinkAttrs: attrs("veth0"), PeerName: "veth1"},
		"vxlan (CONFIG_VXLAN)":   &netlink.Vxlan{LinkAttrs: attrs("vxlan"), VxlanId: 1, Port: 8472},
	} {
		if err := netlink.LinkAdd(link); err != nil {
			errs = append(errs, fmt.Errorf("links of kind %s: %w", what, err))
		}
	}
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err != nil {
		errs = append(errs, errors.New("netfilter on bridges (modprobe br_netfilter)"))
	}
	return errors.Join(errs...)
}

// checkOverlay mounts an overlay on a tmpfs.
func checkOverlay() error {
	if err := unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	for _, d := range []string{"/tmp/upper", "/tmp/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=/tmp/upper,workdir=/tmp/work"); err != nil {
		return fmt.Errorf("overlayfs on tmpfs (CONFIG_OVERLAY_FS, CONFIG_TMPFS_XATTR): %w", err)
	}
	return nil
}

func readInt(file string) (int, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}
