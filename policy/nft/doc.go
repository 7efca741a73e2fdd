// Package nft brings a policy.Ruleset into the kernel and reads it back. It is
// the only package that imports github.com/google/nftables.
//
// # From a Change to the kernel
//
// Encode turns a policy.Change into netlink messages. Rules become the same
// expressions that nft(8) makes of policy.Ruleset.String, so that `nft list
// ruleset` shows what the golden files say. Conn.Apply sends the messages in
// the three steps that policy.Change describes, each as one or more nftables
// transactions, the switch always as exactly one for both families.
//
// # Buffers and acknowledgements
//
// Of each batch only the last message asks for an acknowledgement. The kernel
// reports an error of any other message all the same (nfnetlink_rcv_batch in
// net/netfilter/nfnetlink.c), and thousands of acknowledgements would cost more
// than the work and could overflow the socket's receive buffer, upon which a
// batch that was committed looks as if it had failed. A batch must fit into the
// socket's send buffer as a whole, which therefore grows with it.
//
// # Errors
//
// What an error leaves behind is never guessed. After any error the socket is
// closed, since a late acknowledgement on it would be taken for that of a later
// batch, and the one who called Apply must Read and Diff before the next Apply.
// Enforcer does all of that.
//
// # Counters
//
// Counters with names are read by a scrape, on a socket of its own. What one that is
// about to be deleted has counted is read once more between the switch and the sweep,
// when no packet can count in it any more, and added to totals. An agent that comes
// back takes over what the counters in the kernel have; the totals start again.
package nft
