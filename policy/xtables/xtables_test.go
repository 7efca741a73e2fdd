package xtables

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/informer/link/isolate"
)

// setReplace is the option of setsockopt that replaces a table.
const setReplace = 64

// entry is one entry of a table: with a chain's name, or a verdict if that is
// empty.
func (f family) entry(chain string, verdict int32) []byte {
	size := f.entrySize()
	e := make([]byte, size)
	target := make([]byte, 40)
	if chain != "" {
		target = make([]byte, 64)
		copy(target[2:], "ERROR")
		copy(target[32:], chain)
	} else {
		binary.NativeEndian.PutUint32(target[32:], uint32(verdict))
	}
	binary.NativeEndian.PutUint16(target, uint16(len(target)))
	binary.NativeEndian.PutUint16(e[f.match+4:], uint16(size))
	binary.NativeEndian.PutUint16(e[f.match+6:], uint16(size+len(target)))
	return slices.Concat(e, target)
}

// plant makes a table, filter or nat, as iptables-legacy would: its own chains, which
// accept, and empty chains of a user.
func (f family) plant(t *testing.T, table string, chains ...string) {
	t.Helper()
	const accept, back = -2, -5
	rule := f.entry("", accept)
	hooks := map[string][]int{"filter": {hookIn, hookForward, hookOut}, "nat": {hookPre, hookIn, hookOut, hookPost}}[table]
	var valid int
	var begin [5]int // of each hook's chain
	var entries []byte
	for _, hook := range hooks {
		valid |= 1 << hook
		begin[hook] = len(entries)
		entries = append(entries, rule...)
	}
	n := len(hooks)
	for _, c := range chains {
		entries = append(append(entries, f.entry(c, 0)...), f.entry("", back)...)
		n += 2
	}
	entries = append(entries, f.entry("ERROR", 0)...)
	n++
	fd, err := unix.Socket(f.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	info := make([]byte, infoSize)
	copy(info, table)
	if err := getsockopt(fd, f.level, getInfo, info); err != nil { // makes the table
		t.Fatalf("read the table: %v", err)
	}
	old := binary.NativeEndian.Uint32(info[infoSize-8:])
	counters := make([]byte, 16*old)
	replace := make([]byte, 96, 96+len(entries))
	copy(replace, table)
	// Each of the table's own chains ends where it begins, with its policy.
	for i, w := range slices.Concat([]int{valid, n, len(entries)}, begin[:], begin[:], []int{int(old)}) {
		binary.NativeEndian.PutUint32(replace[32+4*i:], uint32(w))
	}
	binary.NativeEndian.PutUint64(replace[88:], uint64(uintptr(unsafe.Pointer(&counters[0]))))
	replace = append(replace, entries...)
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(f.level), setReplace,
		uintptr(unsafe.Pointer(&replace[0])), uintptr(len(replace)), 0)
	runtime.KeepAlive(counters)
	if errno != 0 {
		t.Fatalf("replace a table of %d entries by %d, %d bytes: %v", old, n, len(entries), errno)
	}
}

// The hooks (enum nf_inet_hooks in linux/netfilter.h).
const (
	hookPre = iota
	hookIn
	hookForward
	hookOut
	hookPost
)

// TestChains finds what was made, and makes nothing itself.
func TestChains(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	expect := func(when, want string) {
		t.Helper()
		got, err := Chains("filter")
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v, want %s", when, got, err, want)
		}
	}
	expect("at first", "[]")
	for _, f := range families() {
		names, err := os.ReadFile(f.names)
		if err != nil {
			t.Fatalf("this kernel has no iptables-legacy, or it cannot be told: %v", err)
		}
		if strings.TrimSpace(string(names)) != "" {
			t.Errorf("looking made the tables %q", names)
		}
	}
	v4, v6 := families()[0], families()[1]
	v4.plant(t, "filter")
	expect("a table without chains", "[]")
	v4.plant(t, "filter", "KUBE-ROUTER-FORWARD", "DOCKER-USER")
	v6.plant(t, "filter", "cali-FORWARD", "DOCKER-USER")
	expect("with chains", "[DOCKER-USER KUBE-ROUTER-FORWARD cali-FORWARD]")
	if got, err := Chains("nat"); err != nil || len(got) > 0 {
		t.Errorf("in another table: %v, %v", got, err)
	}
	v4.plant(t, "nat", "FLANNEL-POSTRTG", "KUBE-POSTROUTING")
	v6.plant(t, "nat", "FLANNEL-POSTRTG", "CNI-0123456789abcdef01234567")
	if got, err := Chains("nat"); err != nil || fmt.Sprint(got) != "[CNI-0123456789abcdef01234567 FLANNEL-POSTRTG KUBE-POSTROUTING]" {
		t.Errorf("in nat: %v, %v", got, err)
	}
	expect("as before", "[DOCKER-USER KUBE-ROUTER-FORWARD cali-FORWARD]")
}

// TestGarbage reads what the kernel never says, and ends.
func TestGarbage(t *testing.T) {
	f := families()[0]
	whole := f.entry("x", 0)
	for n := range whole {
		if got := f.chains(whole[:n]); len(got) > 0 {
			t.Errorf("%v from %d bytes", got, n)
		}
	}
	f.chains(make([]byte, 1000))
}
