package probe

import (
	"errors"
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readBuffer is the room that a UDP socket asks for. The kernel doubles it.
const readBuffer = 4 << 20

// widen gives a UDP socket room for what comes while nobody reads. On a machine
// under load a process may not run for a second, in which a few flows send a
// thousand datagrams; the kernel counts 768 bytes and more for each, of the 208
// KiB that a socket has by default. Who may not have more than rmem_max gets that
// much. A socket that keeps the room it had loses more, which is counted.
func widen(c *net.UDPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	var forced error
	err = raw.Control(func(fd uintptr) {
		forced = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readBuffer)
	})
	if errors.Join(err, forced) != nil {
		_ = c.SetReadBuffer(readBuffer) // see above
	}
}

// overflowed is how many datagrams the kernel has dropped at a socket: those that
// it had no room for. (Those with a wrong checksum would be among them.) What a
// policy or the network drops never comes that far.
func overflowed(c *net.UDPConn) (uint64, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("drops at a socket: %w", err)
	}
	var info [unix.SK_MEMINFO_VARS]uint32
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		size := uint32(unsafe.Sizeof(info))
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		return 0, fmt.Errorf("drops at a socket: %w", err)
	}
	return uint64(info[unix.SK_MEMINFO_DROPS]), nil
}
