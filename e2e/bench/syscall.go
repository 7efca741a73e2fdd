package bench

import (
	"io"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// send and receive go to the kernel without telling Go's scheduler: what is
// measured never blocks, and the scheduler's work would be part of the figure.

func send(fd int, b []byte) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func receive(fd int, b []byte) error {
	n, errno := receiveOnce(fd, b)
	if errno == unix.EINTR {
		// Nothing has come yet, and Go's scheduler wonders why this thread
		// does not yield.
		for start := time.Now(); errno == unix.EINTR && time.Since(start) < time.Second; {
			n, errno = receiveOnce(fd, b)
		}
		if errno == unix.EINTR {
			errno = unix.EAGAIN
		}
	}
	if errno != 0 {
		return errno
	}
	if n == 0 {
		return io.ErrUnexpectedEOF
	}
	return nil
}

func receiveOnce(fd int, b []byte) (uintptr, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
	return n, errno
}
