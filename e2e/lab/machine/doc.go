// Package machine starts machines that are made of namespaces: a process with
// network, mount, PID, UTS, IPC and cgroup namespaces of its own whose first
// process ([Main]) is an init that starts and stops processes as it is told.
//
// A machine lives no longer than the program that started it. Its init ends
// when its standard input does, and with the first process of a PID namespace
// the kernel kills all others; with the last process the other namespaces go.
// So nothing has names outside (no /run/netns, no mounts in the mount table of
// the host), with one exception: directories of cgroups stay. [Machine.Close]
// removes them; each is recorded in a file before it is made, for [Sweep].
//
// Disks, which outlive a machine but not its [Host], are directories on a tmpfs
// in a mount namespace that one thread of the program holds.
//
// It needs root and, for machines that run containers, cgroup v1.
package machine
