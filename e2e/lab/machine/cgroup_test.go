package machine

import (
	"slices"
	"testing"
)

func TestParseHierarchies(t *testing.T) {
	const memberships = `12:cpu,cpuacct:/user/x
9:name=systemd:/
4:memory:/user/x
3:freezer:/elsewhere
2:pids:/
0::/user/x
`
	const mountinfo = `24 1 0:22 / /sys/fs/cgroup rw shared:1 - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
26 24 0:24 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct
27 24 0:25 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
28 24 0:26 /user /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
29 24 0:27 /docker /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
`
	want := []hierarchy{ // freezer's cgroup and all of pids cannot be seen
		{"cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/user/x"},
		{"memory", "/sys/fs/cgroup/memory/x"},
		{"name=systemd", "/sys/fs/cgroup/systemd"},
	}
	if got := parseHierarchies(memberships, mountinfo); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if !want[0].has("cpuacct") || want[0].has("cpuset") {
		t.Error("a hierarchy does not know its controllers")
	}
	const v2 = "25 24 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	if got := parseHierarchies("0::/\n", v2); len(got) > 0 {
		t.Errorf("version 2 only: got %v", got)
	}
}

func TestHidden(t *testing.T) {
	for path, want := range map[string]bool{
		"/var/lib": true, "/var/lib/x": true, "/var/library": false, "/opt/x": true, "/etc/x": true, "/home/x": false, "/root/.cache": false,
	} {
		if Hidden(path) != want {
			t.Errorf("%s: got %v", path, !want)
		}
	}
}
