package machine

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is one of cgroup v1.
type hierarchy struct {
	// name is as mount takes it: the controllers with commas, or name=systemd.
	name string
	// dir is the cgroup that this program runs in. What is made below it is
	// accounted to whoever accounts for this program.
	dir string
}

func (h hierarchy) has(controller string) bool {
	return slices.Contains(strings.Split(h.name, ","), controller)
}

// hierarchies returns the hierarchies of cgroup v1 that have something to say
// about this program and are mounted.
func hierarchies() ([]hierarchy, error) {
	memberships, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseHierarchies(string(memberships), string(mounts)), nil
}

func parseHierarchies(memberships, mountinfo string) []hierarchy {
	type mount struct{ root, dir string }
	mounts := map[string]mount{} // by each super option
	for line := range strings.Lines(mountinfo) {
		// ID parent major:minor root mountpoint options [optional...] - type source superoptions
		fields := strings.Fields(line)
		dash := slices.Index(fields, "-")
		if dash < 6 || len(fields) < dash+4 || fields[dash+1] != "cgroup" {
			continue
		}
		for o := range strings.SplitSeq(fields[dash+3], ",") {
			mounts[o] = mount{fields[3], fields[4]}
		}
	}
	var hs []hierarchy
	for line := range strings.Lines(memberships) {
		// 4:cpu,cpuacct:/path; version 2 has no controllers here.
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 || parts[1] == "" {
			continue
		}
		first, _, _ := strings.Cut(parts[1], ",")
		m, ok := mounts[first]
		if !ok {
			continue
		}
		path, err := filepath.Rel(m.root, parts[2])
		if err != nil || strings.HasPrefix(path, "..") {
			continue
		}
		hs = append(hs, hierarchy{name: parts[1], dir: filepath.Join(m.dir, path)})
	}
	slices.SortFunc(hs, func(a, b hierarchy) int { return strings.Compare(a.name, b.name) })
	return hs
}

// MissingControllers returns the controllers of cgroup v1 among want that this
// program is not under.
func MissingControllers(want ...string) ([]string, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(want), func(c string) bool {
		return slices.ContainsFunc(hs, func(h hierarchy) bool { return h.has(c) })
	}), nil
}

// cgroups are those of one machine, one in each hierarchy.
type cgroups []string

// makeCgroups makes the cgroup name in each hierarchy. It writes each down in
// record before.
func makeCgroups(hs []hierarchy, name, record string) (cgroups, error) {
	f, err := os.OpenFile(record, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var made cgroups
	for _, h := range hs {
		dir := filepath.Join(h.dir, name)
		if _, err := fmt.Fprintln(f, dir); err != nil {
			return made, err
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return made, err
		}
		made = append(made, dir)
		if err := h.inherit(dir); err != nil {
			return made, fmt.Errorf("cgroup %s: %w", dir, err)
		}
	}
	return made, nil
}

// inherit gives a cgroup of the cpuset hierarchy the processors and memory of
// its parent: without, no process can be moved there.
func (h hierarchy) inherit(dir string) error {
	if !h.has("cpuset") {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(h.dir, file))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, file), value, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.clone_children"), []byte("1"), 0o644)
}

// move brings a process into the cgroups.
func (c cgroups) move(pid int) error {
	for _, dir := range c {
		err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644)
		if err != nil {
			return fmt.Errorf("move process %d to cgroup %s: %w", pid, dir, err)
		}
	}
	return nil
}

// remove removes the cgroups and all below them. No process may be left there.
func (c cgroups) remove() error {
	var errs []error
	for _, dir := range c {
		errs = append(errs, removeCgroup(dir))
	}
	return errors.Join(errs...)
}

// emptyWithin is how long the kernel may take to let go of a cgroup after its
// last process was reaped.
const emptyWithin = 3 * time.Second

// removeCgroup removes a cgroup and all below it.
func removeCgroup(dir string) error {
	deadline := time.Now().Add(emptyWithin)
	for {
		err := removeDirs(dir)
		if err == nil || !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// removeDirs removes dir and the directories below it, deepest first. The files
// of a cgroup go with its directory.
func removeDirs(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			return &fs.PathError{Op: "rmdir", Path: d, Err: err}
		}
	}
	return nil
}

// Sweep removes the cgroups that a file names, and then the file. It returns
// those that were still there. A program that uses the file must not be running.
func Sweep(record string) (removed []string, err error) {
	f, err := os.Open(record)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var errs []error
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		dir := lines.Text()
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if err := removeCgroup(dir); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, dir)
	}
	if err := errors.Join(append(errs, lines.Err())...); err != nil {
		return removed, err
	}
	return removed, os.Remove(record)
}
