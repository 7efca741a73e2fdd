package world

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/vishvananda/netns"
)

const (
	prefix    = "selvage-"
	netnsPath = "/run/netns"
)

var sequence atomic.Uint32

// newID is a name that no other world has, now or on an earlier boot's pid: the
// process by number and start time, and a count.
func newID() (string, error) {
	start, err := startTime(os.Getpid())
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s%d-%d-%d", prefix, os.Getpid(), start, sequence.Add(1)), nil
}

// startTime is when a process started, in clock ticks since boot: field 22 of
// proc_pid_stat(5).
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// Field 2 is the command in brackets and may hold anything.
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields after the command", pid, len(fields))
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// Sweep removes the namespaces and directories of worlds whose process is gone.
// It returns what it removed.
func Sweep() ([]string, error) {
	var removed []string
	var errs []error
	for _, dir := range []string{netnsPath, os.TempDir()} {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, e := range entries {
			if !orphan(e.Name()) {
				continue
			}
			path := filepath.Join(dir, e.Name())
			if dir == netnsPath {
				err = netns.DeleteNamed(e.Name())
			} else {
				err = os.RemoveAll(path)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("remove %s: %w", path, err))
				continue
			}
			removed = append(removed, path)
		}
	}
	return removed, errors.Join(errs...)
}

// orphan tells whether the name is that of a world whose process has ended.
func orphan(name string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return false
	}
	fields := strings.SplitN(rest, "-", 3)
	if len(fields) < 3 {
		return false
	}
	pid, err1 := strconv.Atoi(fields[0])
	start, err2 := strconv.ParseUint(fields[1], 10, 64)
	if err1 != nil || err2 != nil {
		return false
	}
	now, err := startTime(pid)
	return err != nil || now != start
}
