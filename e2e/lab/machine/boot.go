package machine

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// kept are the directories of a machine that are on its disk.
func kept() []string { return []string{"/var/lib", "/var/log", "/opt"} }

// The layers of /etc on the disk: the machine's changes to the host's files.
const (
	etcChanges = "etc"
	etcWork    = "etc.work"
)

// diskDirs are the directories that a disk must have.
func diskDirs() []string {
	dirs := []string{etcChanges, etcWork}
	for _, d := range kept() {
		dirs = append(dirs, onDisk(d))
	}
	return dirs
}

func onDisk(dir string) string { return strings.ReplaceAll(dir[1:], "/", ".") }

// Hidden tells whether machines have something else at path than the host.
func Hidden(path string) bool {
	for _, d := range append(kept(), "/run", "/sys", "/proc", "/etc") {
		if path == d || strings.HasPrefix(path, d+"/") {
			return true
		}
	}
	return false
}

// run makes a machine of the namespaces that the process is in.
func (b boot) run() error {
	// The machine's mounts are nobody else's business.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount / private", err)
	}
	if err := unix.Sethostname([]byte(b.Name)); err != nil {
		return os.NewSyscallError("sethostname", err)
	}
	steps := []func() error{b.mountKernel, b.mountCgroups, b.mountDisk, b.maskSysctls, b.network}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	// What the kubelet mounts for a pod must show up in the pod, and the other
	// way round: container runtimes expect / to be shared.
	return os.NewSyscallError("mount / shared", unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""))
}

// mount mounts, and says what if that fails.
func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, target, err)
	}
	return nil
}

// bind makes a file or directory show up at target.
func bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", source, target, err)
	}
	return nil
}

// mountKernel mounts what shows the namespaces of the machine.
func (b boot) mountKernel() error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV
	return errors.Join(
		mount("proc", "/proc", "proc", safe|unix.MS_NOEXEC, ""),
		mount("sysfs", "/sys", "sysfs", safe|unix.MS_NOEXEC, ""),
		mount("tmpfs", "/run", "tmpfs", safe, "mode=755"),
	)
}

// mountCgroups mounts the hierarchies afresh, as the cgroup namespace shows
// them.
func (b boot) mountCgroups() error {
	const root = "/sys/fs/cgroup"
	if err := mount("tmpfs", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return err
	}
	for _, h := range b.Hierarchies {
		name, options := h, h
		if n, ok := strings.CutPrefix(h, "name="); ok {
			name, options = n, "none,"+h
		}
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := mount("cgroup", dir, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
			return err
		}
		for c := range strings.SplitSeq(name, ",") {
			if c == name {
				break
			}
			if err := os.Symlink(name, filepath.Join(root, c)); err != nil {
				return err
			}
		}
	}
	return nil
}

// mountDisk gives the machine its own files where those of several machines
// would get in each other's way: the CNI plugin host-local, for one, keeps its
// leases in /var/lib/cni.
func (b boot) mountDisk() error {
	for _, d := range kept() {
		if err := bind(filepath.Join(b.Disk, onDisk(d)), d); err != nil {
			return err
		}
	}
	layers := fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s", filepath.Join(b.Disk, etcChanges), filepath.Join(b.Disk, etcWork))
	if err := mount("overlay", "/etc", "overlay", 0, layers); err != nil {
		return err
	}
	if err := os.WriteFile("/etc/hostname", []byte(b.Name+"\n"), 0o644); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(b.Disk, etcChanges, "machine-id")); err == nil {
		return nil
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	return os.WriteFile("/etc/machine-id", fmt.Appendf(nil, "%x\n", id), 0o444)
}

// maskSysctls puts files in place of settings of the kernel that have no
// namespace and that the kubelet insists on writing, or else does not start;
// and of the one that tells one boot from another.
func (b boot) maskSysctls() error {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	for _, s := range []struct{ name, value string }{
		{"vm/overcommit_memory", "1"},
		{"vm/panic_on_oom", "0"},
		{"kernel/panic", "10"},
		{"kernel/panic_on_oops", "1"},
		{"kernel/keys/root_maxkeys", "1000000"},
		{"kernel/keys/root_maxbytes", "25000000"},
		{"kernel/random/boot_id", fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])},
	} {
		file := filepath.Join("/run/sysctl", s.name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(s.value+"\n"), 0o644); err != nil {
			return err
		}
		if err := bind(file, filepath.Join("/proc/sys", s.name)); err != nil {
			return err
		}
	}
	return nil
}

// network sets what a node of a cluster needs. Both settings are the network
// namespace's own.
func (b boot) network() error {
	for _, s := range []struct{ name, value string }{
		{"net/ipv4/ip_forward", "1"},
		// Service replies, and policy, between pods on one bridge.
		{"net/bridge/bridge-nf-call-iptables", "1"},
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys", s.name), []byte(s.value), 0o644); err != nil {
			return fmt.Errorf("sysctl %s: %w", s.name, err)
		}
	}
	return nil
}
