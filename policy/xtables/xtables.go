// Package xtables reads which chains iptables-legacy has made. They are no part of
// nftables, and no netlink message tells of them: libiptc, which is the tool's way
// to the kernel, reads a table as a whole by getsockopt(2), and so does this.
package xtables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options of getsockopt in linux/netfilter_{ipv4/ip,ipv6/ip6}_tables.h.
const (
	getInfo    = 64
	getEntries = 65
)

// family is what differs between IPv4 and IPv6.
type family struct {
	// names is the file that lists the tables that there are.
	names         string
	domain, level int
	// match is the size of struct ipt_ip or ip6t_ip6, which begins an entry.
	match int
}

func families() []family {
	return []family{
		{"/proc/net/ip_tables_names", unix.AF_INET, unix.SOL_IP, 84},
		{"/proc/net/ip6_tables_names", unix.AF_INET6, unix.SOL_IPV6, 136},
	}
}

// Chains returns the names of the chains that users have made in a table, for
// example filter, in both families. It makes no table: one is asked for only if
// it is there already, since the kernel would make it otherwise, and have every
// packet pass it. It needs CAP_NET_ADMIN if there is one.
func Chains(table string) ([]string, error) {
	var all []string
	for _, f := range families() {
		names, err := os.ReadFile(f.names)
		if errors.Is(err, fs.ErrNotExist) { // the kernel does not have the module
			continue
		}
		if err != nil {
			return nil, err
		}
		if !slices.Contains(strings.Fields(string(names)), table) {
			continue
		}
		entries, err := f.read(table)
		if err != nil {
			return nil, fmt.Errorf("read the table %s of iptables-legacy: %w", table, err)
		}
		all = append(all, f.chains(entries)...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// Offsets and sizes of struct ipt_getinfo and ipt_get_entries.
const (
	nameSize   = 32
	infoSize   = nameSize + 4 + 5*4 + 5*4 + 4 + 4
	headerSize = nameSize + 8
)

// entrySize is the size of struct ipt_entry or ip6t_entry: the match, a word, two
// offsets of two bytes, a word, and two counters of eight bytes, which are aligned.
func (f family) entrySize() int { return (f.match+4+2+2+4+7)&^7 + 16 }

// read reads all entries of a table. A change meanwhile has it begin anew.
func (f family) read(table string) ([]byte, error) {
	fd, err := unix.Socket(f.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	for range 10 {
		info := make([]byte, infoSize)
		copy(info[:nameSize-1], table)
		if err = getsockopt(fd, f.level, getInfo, info); err != nil {
			return nil, err
		}
		size := binary.NativeEndian.Uint32(info[infoSize-4:])
		entries := make([]byte, headerSize+int(size))
		copy(entries[:nameSize-1], table)
		binary.NativeEndian.PutUint32(entries[nameSize:], size)
		err = getsockopt(fd, f.level, getEntries, entries)
		if err == nil {
			return entries[headerSize:], nil
		}
		if !errors.Is(err, unix.EAGAIN) {
			return nil, err
		}
	}
	return nil, err
}

// getsockopt has the kernel read and fill buf. Those of x/sys only fill.
func getsockopt(fd, level, option int, buf []byte) error {
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// chains finds the names in entries: a chain begins with an entry whose target is
// ERROR, with the chain's name as its message, and so does the end of the table,
// with ERROR as its message.
func (f family) chains(entries []byte) []string {
	const (
		targetName  = 2  // struct xt_entry_target
		targetError = 32 // struct xt_error_target
	)
	var names []string
	for len(entries) >= f.entrySize() {
		target := int(binary.NativeEndian.Uint16(entries[f.match+4:]))
		next := int(binary.NativeEndian.Uint16(entries[f.match+6:]))
		if target < f.entrySize() || next < target || next > len(entries) {
			break // no such thing comes from the kernel
		}
		if t := entries[target:next]; len(t) > targetError && cstring(t[targetName:targetError]) == "ERROR" {
			if name := cstring(t[targetError:]); name != "ERROR" {
				names = append(names, name)
			}
		}
		entries = entries[next:]
	}
	return names
}

func cstring(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}
