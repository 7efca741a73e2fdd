// Package tc brings plans of package shaping into the kernel's traffic control, and
// reads back what is there. It is the only one that speaks to that, by
// github.com/florianl/go-tc and, for what that cannot do, by netlink messages of its
// own:
//
//   - go-tc lists all queueing disciplines or none: one of somebody else's that it
//     does not know makes the whole answer an error. Here one is asked for at a time.
//   - Its tbf has no 64-bit rate.
//   - It makes no links, and so no IFB.
//
// # What is ours
//
// A queue of ours has the handle 5e1a:, its leaf 5e1b:. Filters of ours have the
// preferences 24080 to 24085. IFBs of ours have a name as shaping.IFBName makes it,
// an alias that begins with "selvage" and says of which pod they are, and the group
// 24090. All of it is recognised by an agent that knows nothing of the one before.
//
// A clsact that somebody else made is shared. One that we made is removed with the
// last filter, unless others use it by then: the IFB's alias says whose it is.
package tc
