// Package vm runs test binaries of this repository on the kernels that
// distributions ship, in a virtual machine: what the kernel of this machine
// lacks or does otherwise (fq_codel, 802.1q, ipvlan, matchall, SCTP) is tested
// there as users have it.
//
// A kernel is Debian's package, from apt; [Kernels] keeps it, with the modules
// that networking needs, in the cache of package e2e/artifacts:
//
//	linux-6.12.117-1~deb12u1-4f1c29d07ab3/vmlinuz
//	linux-6.12.117-1~deb12u1-4f1c29d07ab3/lib/modules/6.12.117+deb12-amd64
//	locks/linux-6.12
//
// The machine has no disk and no network. All that it has is an initramfs: the
// modules, programs of the host (ip, tc, nft, sh and the like, with their
// libraries), the repository's files, what is to be run, and as the first
// process the program that started it, in which [Guest] takes over. The
// machine's first serial port is the kernel's console. What the programs write
// and how they end comes by the second one, as lines of JSON, so that no message
// of the kernel gets in between; the last line tells how many there were. A
// machine that ends without it has crashed.
package vm
